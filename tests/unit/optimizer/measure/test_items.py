"""From stored items to what a model takes, and back to one answer per item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.unit.optimizer.measure.models import open_store

from fettle.api.signature import Signature, Tensor
from fettle.errors import DataError, StoreError
from fettle.optimizer.measure import items


def signature(shape: tuple[int, ...], axis: int | None, dtype: str = "FP32") -> Signature:
    """One input and one output."""
    return Signature(
        inputs=(Tensor(name="x", dtype=dtype, shape=shape, batch_axis=axis),),
        outputs=(Tensor(name="y", dtype=dtype, shape=shape, batch_axis=axis),),
    )


@pytest.mark.parametrize(
    ("shape", "axis", "stored", "indices", "fed"),
    [
        ((-1, 3), 0, (5, 3), [1, 2], (2, 3)),
        ((7, -1, 3), 1, (5, 7, 3), [0, 4], (7, 2, 3)),
        ((1, 3), None, (5, 1, 3), [3], (1, 3)),
        ((7, 3), None, (5, 7, 3), [0], (7, 3)),
        ((), None, (5,), [2], ()),
    ],
)
def test_items_are_stacked_where_the_model_wants_them(
    shape: tuple[int, ...], axis: int | None, stored: tuple[int, ...], indices: list[int], fed: tuple[int, ...]
) -> None:
    found = items.of({"x": np.arange(np.prod(stored), dtype=np.float32).reshape(stored)}, signature(shape, axis))
    assert found.feed(indices)["x"].shape == fed


def test_two_items_in_one_run_need_a_batch_axis() -> None:
    found = items.of({"x": np.zeros((5, 1, 3), np.float32)}, signature((1, 3), None))
    with pytest.raises(DataError, match="do not fit"):
        found.feed([0, 1])


@pytest.mark.parametrize(("axis", "shape"), [(0, (-1, 3)), (1, (3, -1))])
def test_answers_are_split_along_the_batch_axis(axis: int, shape: tuple[int, ...]) -> None:
    outputs = {"y": np.moveaxis(np.arange(12.0).reshape(4, 3), 0, axis)}
    found = items.split(signature(shape, axis), outputs, 3)  # the fourth only filled the batch up
    assert found is not None
    assert [answer["y"].tolist() for answer in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


ONE_EACH: list[tuple[str, Any]] = [
    ("BYTES", np.array(["ham", "spam"], dtype=object)),
    ("FP32", np.array([0.5, 1.5], np.float32)),
    ("FP16", np.array([0.5, 1.5], np.float16)),
    ("BF16", np.array([0.5, 1.5], ml_dtypes.bfloat16)),
    ("INT64", np.array([3, 4])),
    ("BOOL", np.array([True, False])),
]


@pytest.mark.parametrize(("dtype", "output"), ONE_EACH, ids=[line[0] for line in ONE_EACH])
def test_one_value_per_item_is_an_array_of_no_dimensions_whatever_its_type(dtype: str, output: Any) -> None:
    found = items.split(signature((-1,), 0, dtype), {"y": output}, 2)
    assert found is not None
    for index, answer in enumerate(found):
        assert (answer["y"].shape, answer["y"].dtype) == ((), output.dtype)
        assert answer["y"].item() == output[index]


def test_an_output_that_does_not_follow_the_batch_cannot_be_split() -> None:
    assert items.split(signature((-1, 3), 0), {"y": np.zeros((1, 3))}, 2) is None


@pytest.mark.parametrize(
    ("axis", "fixed", "alone", "size"),
    [(0, None, False, 32), (0, None, True, 1), (0, 4, False, 4), (0, 4, True, 4), (None, None, False, 1)],
)
def test_items_per_run_while_judging(axis: int | None, fixed: int | None, alone: bool, size: int) -> None:
    shape, stored = ((-1, 3), (50, 3)) if axis == 0 else ((1, 3), (50, 1, 3))
    assert items.batch_size(items.of({"x": np.zeros(stored, np.float32)}, signature(shape, axis)), fixed, alone) == size


def test_large_items_come_in_small_batches() -> None:
    large = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (40, 10_000_000), (0, 0))
    found = items.of({"x": large}, signature((-1, 10_000_000), 0))
    assert items.batch_size(found, None, False) == items.FEED_BYTES // 40_000_000


def test_items_with_large_answers_come_in_small_batches() -> None:
    small = signature((-1, 3), 0)
    large = small.model_copy(update={"outputs": (small.outputs[0].model_copy(update={"shape": (-1, 4, 1 << 20)}),)})
    found = items.of({"x": np.zeros((40, 3), np.float32)}, large)
    assert items.batch_size(found, None, False) == 3  # 16 MiB each, and their inputs


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("FP32", np.arange(6, dtype=np.float32).reshape(3, 2)),
        ("BYTES", np.array([["a", "bc"], ["", "d"], ["e", "ü"]], object)),
    ],
)
def test_stored_items_are_mapped_and_come_back_as_they_were(tmp_path: Path, dtype: str, values: Any) -> None:
    store = open_store(tmp_path / "store")
    files = items.unpack(store, store.put_data({"x": values}), tmp_path / "items")
    found = items.opened(files, signature((-1, 2), 0, dtype)).feed([0, 2])["x"]
    assert found.tolist() == values[[0, 2]].tolist()
    assert found.dtype == values.dtype


def test_items_that_were_changed_in_the_store_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    data = store.put_data({"x": np.zeros((3, 2), np.float32)})
    store.write_bytes(f"blobs/{data.sha256}", b"something else")
    with pytest.raises(StoreError, match="changed by something other"):
        items.unpack(store, data, tmp_path / "items")


def test_an_input_without_an_array_is_named() -> None:
    with pytest.raises(DataError, match=r"\['x'\].*\['z'\]"):
        items.of({"z": np.zeros((3, 2))}, signature((-1, 2), 0))
