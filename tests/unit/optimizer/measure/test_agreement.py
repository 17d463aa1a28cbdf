"""When two answers are the same, and what the original's answers say of how to compare them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fettle.api.data import AgreementSpec
from fettle.api.signature import Tensor
from fettle.api.vocabulary import AgreementMode
from fettle.errors import DataError
from fettle.optimizer.measure.agreement import OutputProfile, comparisons, item_axis, within_noise
from fettle.store.arrays import Array
from fettle.store.comparison import Comparison


def profile(*answers: Any) -> OutputProfile:
    """What these answers look like."""
    found = OutputProfile()
    for answer in answers:
        found.add(np.asarray(answer))
    return found


SOFTMAX = profile(np.array([0.2, 0.8], np.float32), np.array([0.9, 0.1], np.float32))
LOGITS = profile(np.array([-3.0, 5.0], np.float32), np.array([2.0, 1.0], np.float32))


@pytest.mark.parametrize(
    ("found", "spec", "classified", "mode"),
    [
        (SOFTMAX, {}, False, AgreementMode.TOP_ONE),
        (LOGITS, {}, False, AgreementMode.ELEMENTWISE),
        (LOGITS, {}, True, AgreementMode.TOP_ONE),
        (profile(np.array([1, 2])), {}, False, AgreementMode.EXACT),
        (profile(np.array(["a"], object)), {}, True, AgreementMode.EXACT),
        (profile(np.array([True])), {"mode": AgreementMode.COSINE}, False, AgreementMode.EXACT),
        (SOFTMAX, {"mode": AgreementMode.COSINE}, False, AgreementMode.COSINE),
        (SOFTMAX, {"mode": AgreementMode.ELEMENTWISE}, True, AgreementMode.ELEMENTWISE),
    ],
)
def test_auto_looks_at_what_the_original_answers(
    found: OutputProfile, spec: dict[str, Any], classified: bool, mode: AgreementMode
) -> None:
    ways = comparisons({"y": found}, AgreementSpec(**spec), "y" if classified else None)
    assert ways["y"].mode == mode


@pytest.mark.parametrize(
    ("way", "left", "right", "agrees"),
    [
        (Comparison(mode=AgreementMode.EXACT), [1, 2], [1, 2], True),
        (Comparison(mode=AgreementMode.EXACT), [1, 2], [1, 3], False),
        (Comparison(mode=AgreementMode.EXACT), [1, 2], [1, 2, 3], False),
        (Comparison(mode=AgreementMode.TOP_ONE), [0.1, 0.9], [0.4, 0.6], True),
        (Comparison(mode=AgreementMode.TOP_ONE), [0.1, 0.9], [0.6, 0.4], False),
        (Comparison(mode=AgreementMode.TOP_ONE, threshold=0.5), 0.4, 0.6, False),
        (Comparison(mode=AgreementMode.COSINE, min_cosine=0.99), [1.0, 0.0], [5.0, 0.1], True),
        (Comparison(mode=AgreementMode.COSINE, min_cosine=0.99), [1.0, 0.0], [1.0, 1.0], False),
        (Comparison(mode=AgreementMode.COSINE), [0.0, 0.0], [0.0, 0.0], True),
        (Comparison(mode=AgreementMode.COSINE), [0.0, 0.0], [0.0, 0.1], False),
        (Comparison(mode=AgreementMode.ELEMENTWISE, atol=0.1), [1.0, 2.0], [1.05, 1.95], True),
        (Comparison(mode=AgreementMode.ELEMENTWISE, atol=0.1), [1.0, 2.0], [1.05, 2.2], False),
        (Comparison(mode=AgreementMode.ELEMENTWISE, rtol=0.1), [100.0], [109.0], True),
        (Comparison(mode=AgreementMode.ELEMENTWISE, atol=0.1), [np.nan], [np.nan], True),
        (Comparison(mode=AgreementMode.ELEMENTWISE, atol=0.1), [np.inf], [1.0], False),
    ],
)
def test_two_answers_agree(way: Comparison, left: Any, right: Any, agrees: bool) -> None:
    assert way.agrees(np.asarray(left), np.asarray(right)) is agrees


def test_elementwise_allows_a_hundredth_of_the_range_that_the_original_uses() -> None:
    way = comparisons({"y": profile(np.array([0.0, 10.0], np.float32))}, AgreementSpec(), None)["y"]
    assert way.atol == pytest.approx(0.1)
    assert way.rtol == 0


@pytest.mark.parametrize(("spec", "rtol", "atol"), [({"rtol": 0.2}, 0.2, 0.0), ({"atol": 0.3}, 0.0, 0.3)])
def test_a_tolerance_that_is_given_replaces_the_default(spec: dict[str, float], rtol: float, atol: float) -> None:
    way = comparisons({"y": LOGITS}, AgreementSpec(**spec), None)["y"]
    assert (way.rtol, way.atol) == (rtol, atol)


def test_only_the_outputs_that_are_named_are_compared() -> None:
    ways = comparisons({"a": LOGITS, "b": LOGITS}, AgreementSpec(outputs=("b",)), None)
    assert list(ways) == ["b"]


def test_an_output_that_does_not_exist_is_named() -> None:
    with pytest.raises(DataError, match="'c'"):
        comparisons({"a": LOGITS}, AgreementSpec(outputs=("c",)), None)


@pytest.mark.parametrize(
    ("batch_axis", "axis", "expected"),
    [(0, 1, -3), (0, -1, -1), (0, 3, -1), (2, 1, -2), (2, 3, -1), (None, 1, -3), (None, -4, -4), (0, 7, 7)],
)
def test_the_axis_of_classes_is_counted_in_the_models_output(batch_axis: int | None, axis: int, expected: int) -> None:
    tensor = Tensor(name="y", dtype="FP32", shape=(-1, 21, -1, 8), batch_axis=batch_axis)
    assert item_axis(tensor, axis) == expected


def test_an_output_of_one_number_an_item_needs_no_axis_of_classes() -> None:
    axis = item_axis(Tensor(name="output_label", dtype="INT64", shape=(-1,), batch_axis=0), -1)
    found = OutputProfile(axis=axis)
    found.add(np.int64(1))
    assert found.floating is False
    score = OutputProfile(axis=axis)
    score.add(np.float32(0.7))
    assert score.classes == 1


def test_the_batch_axis_holds_no_classes() -> None:
    with pytest.raises(DataError, match="batch axis"):
        item_axis(Tensor(name="y", dtype="FP32", shape=(-1, 21), batch_axis=0), 0)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (np.float32([1.0, 100.0]), np.float32([1.0 + 1e-4, 100.0]), True),
        (np.float32([1.0, 100.0]), np.float32([1.2, 100.0]), False),
        (np.array([1, 2]), np.array([1, 2]), True),
        (np.array([1, 2]), np.array([1, 3]), False),
    ],
)
def test_float_noise_is_what_the_order_of_operations_explains(left: Array, right: Array, same: bool) -> None:
    assert within_noise(left, right, profile(left).noise()) is same


@pytest.mark.parametrize(
    ("answers", "threshold"),
    [([np.float32([0.2]), np.float32([0.9])], 0.5), ([np.float32([-2.0]), np.float32([3.0])], 0.0)],
)
def test_a_single_score_is_a_probability_where_it_stays_between_zero_and_one(
    answers: list[Array], threshold: float
) -> None:
    assert profile(*answers).threshold == threshold


def test_a_probability_that_overshoots_is_still_one() -> None:
    profile = OutputProfile()
    profile.add(np.array([-1e-8, 0.3, 1.0000001]))
    assert profile.threshold == 0.5
