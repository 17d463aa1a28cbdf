"""Padding: what a text model answers where its mask is 0 is not compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import AgreementMode
from fettle.server.replay import outcome_of
from fettle.server.samples import Sample, SamplesHead
from fettle.store.comparison import Comparison, Outcome
from fettle.store.padding import MASK, Padding


def signature(*output: int, mask: tuple[int, ...] = (-1, -1), name: str = MASK, dtype: str = "INT64") -> Signature:
    """A text model with one output `y` of that shape, its batch first."""
    tokens = Tensor(name="input_ids", dtype="INT64", shape=(-1, -1), batch_axis=0)
    given = Tensor(name=name, dtype=dtype, shape=mask, batch_axis=0)
    return Signature(inputs=(tokens, given), outputs=(Tensor(name="y", dtype="FP32", shape=output, batch_axis=0),))


def removed(model: Signature, answer: Any, *mask: int) -> list[Any]:
    padding = Padding.of(model)
    assert padding is not None
    found: list[Any] = padding.removed({"y": np.array(answer)}, np.array(mask))["y"].tolist()
    return found


@pytest.mark.parametrize(
    ("model", "answer", "left"),
    [
        (signature(-1, -1, 2), [[1, 2], [3, 4], [5, 6]], [[1, 2], [5, 6]]),
        (signature(-1, 2, -1), [[1, 2, 3], [4, 5, 6]], [[1, 3], [4, 6]]),
        (signature(-1, -1), [1, 2, 3], [1, 3]),
    ],
)
def test_positions_that_the_mask_excludes_are_removed(model: Signature, answer: Any, left: Any) -> None:
    assert removed(model, answer, 1, 0, 1) == left


@pytest.mark.parametrize("mask", [(1, 1, 1), (0, 0, 0), (1, 0)])
def test_an_answer_stays_whole_where_the_mask_says_nothing_of_it(mask: tuple[int, ...]) -> None:
    assert removed(signature(-1, -1), [1, 2, 3], *mask) == [1, 2, 3]


@pytest.mark.parametrize(
    "model",
    [
        signature(-1, 3),
        signature(-1, -1, -1),
        signature(-1, -1, mask=(-1, 3)),
        signature(-1, -1, name="mask_of_something"),
        signature(-1, -1, dtype="BYTES"),
    ],
    ids=["a vector of a fixed size", "two sizes that vary", "a mask of a fixed size", "another input", "texts"],
)
def test_only_sizes_that_vary_with_the_mask_are_positions(model: Signature) -> None:
    assert Padding.of(model) is None


def test_a_canary_that_differs_in_padding_only_agrees() -> None:
    rule = Comparison(mode=AgreementMode.ELEMENTWISE, atol=0.1)
    head = SamplesHead(revision="stable", signature=signature(-1, -1, 1), comparisons={"y": rule})
    inputs = {"input_ids": np.array([7, 0]), MASK: np.array([1, 0])}
    sample = Sample(inputs, {"y": np.array([[1.0], [2.0]])}, 32)
    assert outcome_of(head, sample, {"y": np.array([[1.0], [9.0]])}) is Outcome.AGREED
    assert outcome_of(head, sample, {"y": np.array([[9.0], [2.0]])}) is Outcome.DISAGREED
