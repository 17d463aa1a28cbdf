"""Whether an answer depends on the other items in its batch: looked at on models whose arithmetic is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure import items
from fettle.optimizer.measure.neighbours import depends
from fettle.optimizer.measure.process import WorkerDied
from fettle.optimizer.measure.protocol import Judge
from fettle.store.arrays import Array

TENSOR = Tensor(name="x", dtype="FP32", shape=(-1, 6), batch_axis=0)
SIGNATURE = Signature(inputs=(TENSOR,), outputs=(TENSOR.model_copy(update={"name": "y"}),))
ROWS = np.random.default_rng(3).normal(size=(12, 6)).astype(np.float32)
WEIGHTS = np.random.default_rng(4).normal(size=(6, 6)).astype(np.float32)
CALLS: list[int] = []


def dynamic(x: Array) -> Array:
    """int8 with a range of the whole run."""
    step = np.abs(x).max() / 127
    return np.asarray(np.round(x / step) * step @ WEIGHTS, np.float32)


def by_item(x: Array) -> Array:
    """int8 with a range for each item."""
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    return np.asarray(np.round(x / step) * step @ WEIGHTS, np.float32)


def a_rare_branch(x: Array) -> Array:
    """Cuts off what is far above anything that the run usually holds, then takes what is common to all off."""
    return np.asarray(x - (x.max() if x.max() > 100 else 0), np.float32)


def rounds_by_rows(x: Array) -> Array:
    """Independent of its neighbours, but rounds otherwise for one row, as a kernel for one row may."""
    return np.asarray(np.round(x, 2 if len(x) > 1 else 1), np.float32)


def never_the_same(x: Array) -> Array:
    """Answers anew each time."""
    CALLS.append(1)
    return np.asarray(x + len(CALLS), np.float32)


def refuses_large_items(x: Array) -> Array:
    if np.abs(x).max() > 100:
        raise RuntimeFailure("the index is out of range")
    return x


def dies(x: Array) -> Array:
    if np.abs(x).max() > 100:
        raise WorkerDied("the process died", reason=Reason.OUT_OF_MEMORY)
    return x


def asked(model: Callable[[Array], Array], rows: Array = ROWS) -> Callable[[Judge], Sequence[items.Answer]]:
    """A process that has loaded the model, without the process."""
    found = items.of({"x": rows}, SIGNATURE)

    def answer(request: Judge) -> Sequence[items.Answer]:
        feed = found.feed(items.padded(list(request.indices), request.size))
        outputs = {"y": model(items.enlarged(SIGNATURE, feed, request.scaled)["x"])}
        return items.split(SIGNATURE, outputs, len(request.indices)) or []

    return answer


def exactly(one: items.Answer, two: items.Answer) -> bool:
    return bool(np.allclose(one["y"], two["y"], rtol=0, atol=1e-4))


@pytest.mark.parametrize(
    ("model", "fixed", "expected"),
    [
        (dynamic, None, True),
        (dynamic, 8, True),
        (dynamic, 1, False),
        (by_item, None, False),
        (by_item, 8, False),
        (a_rare_branch, None, True),
        (lambda x: x - x.mean(axis=0), None, True),
        (lambda x: np.cumsum(x, axis=0), None, True),
        (lambda x: np.cumsum(x[::-1], axis=0)[::-1], None, True),
        (never_the_same, None, False),
        (refuses_large_items, None, False),
        (lambda x: np.full_like(x, np.nan), None, False),
    ],
)
def test_an_answer_that_changes_with_its_neighbours_depends_on_them(
    model: Callable[[Array], Array], fixed: int | None, expected: bool
) -> None:
    assert depends(asked(model), len(ROWS), fixed, None) is expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_items_are_enough_to_see_it(count: int) -> None:
    assert depends(asked(dynamic, ROWS[:count]), count, None, None)


def test_large_items_need_room_for_two() -> None:
    assert depends(asked(dynamic), len(ROWS), None, None, most=1)
    assert not depends(asked(by_item), len(ROWS), None, None, most=1)


@pytest.mark.parametrize(("same", "expected"), [(None, False), (exactly, True), (lambda one, two: True, False)])
def test_an_answer_alone_must_be_the_same_one_where_rounding_is_no_excuse(same: Any, expected: bool) -> None:
    assert depends(asked(rounds_by_rows), len(ROWS), None, same) is expected


def test_a_process_that_dies_is_no_answer() -> None:
    with pytest.raises(WorkerDied):
        depends(asked(dies), len(ROWS), None, None)


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "FP32"), (np.float16, "FP16"), (np.int64, "INT64")])
def test_only_floating_point_inputs_are_made_large_and_stay_numbers(dtype: Any, kind: str) -> None:
    signature = Signature(
        inputs=(TENSOR.model_copy(update={"dtype": kind, "shape": (6, -1), "batch_axis": 1}),), outputs=()
    )
    array = np.full((6, 3), 100, dtype)
    large = items.enlarged(signature, {"x": array}, (2,))["x"]
    assert large.dtype == dtype
    assert (array == 100).all()
    assert (large[:, :2] == 100).all()
    assert np.isfinite(large.astype(np.float64)).all()
    assert (large[:, 2] > 100).all() == (kind != "INT64")
