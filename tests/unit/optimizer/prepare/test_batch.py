"""The proof of a batch axis: which inputs have a batch of 1 from then on, because the model itself takes no more."""

from __future__ import annotations

import numpy as np
import pytest

from fettle.api.signature import Signature, Tensor
from fettle.errors import RuntimeFailure
from fettle.optimizer.data.items import Items
from fettle.optimizer.prepare.batch import prove_batch
from fettle.optimizer.sources.base import RunModel
from fettle.runtimes.base import Arrays

ITEMS = 6
SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4)),), outputs=(Tensor(name="y", dtype="FP32", shape=(-1,)),)
)


def alone(run: RunModel) -> dict[str, int]:
    """By input, the axis of which the proof says that there can be one item only."""
    x = np.random.default_rng(2).standard_normal((ITEMS, 1, 4)).astype(np.float32)
    proof = prove_batch(run, SIGNATURE, {"x": 0}, Items({"x": x}))
    assert proof.axes is None
    return dict(proof.alone)


def sums(given: Arrays) -> Arrays:
    return {"y": given["x"].sum(-1)}


@pytest.mark.parametrize(("most", "axes"), [(1, {"x": 0}), (2, {}), (3, {})])
def test_a_model_that_fails_on_two_items_takes_one_and_one_that_fails_on_more_does_not(
    most: int, axes: dict[str, int]
) -> None:
    def run(given: Arrays) -> Arrays:
        if len(given["x"]) > most:
            raise RuntimeFailure("bad allocation")
        return sums(given)

    assert alone(run) == axes


def test_a_run_that_fails_once_does_not_limit_the_batch() -> None:
    failures = ["the first run of two items"]

    def run(given: Arrays) -> Arrays:
        if len(given["x"]) == 2 and failures:
            raise RuntimeFailure(failures.pop())
        return sums(given)

    assert alone(run) == {}


def test_an_answer_that_does_not_grow_with_the_items_does_not_limit_the_batch() -> None:
    assert alone(lambda given: {"y": np.stack([np.zeros(7, np.float32), np.ones(7, np.float32)])}) == {}


def test_an_answer_whose_rank_depends_on_the_number_of_items_limits_it_to_one() -> None:
    assert alone(lambda given: {"y": np.squeeze(sums(given)["y"])}) == {"x": 0}
