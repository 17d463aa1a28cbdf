"""What a model is for decides what int8 may change: the whole of `fettle optimize` on masks, which Auto recognizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.data import models
from tests.unit.cli import in_process
from tests.unit.cli.test_misfits import let_through

from fettle.api.optimizedmodel_status import CandidateStatus, OptimizedModelStatus
from fettle.api.vocabulary import Metric
from fettle.store.arrays import Array
from fettle.store.manifest import Manifest

ITEMS, SIDE = 240, 24


def pictures() -> Array:
    """Bright discs of several sizes on grey; the third channel holds nothing, or hundreds."""
    random = np.random.default_rng(17)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    found = np.empty((ITEMS, 3, SIDE, SIDE), np.float32)
    for picture in found:
        row, column, radius = [*random.uniform(6, SIDE - 6, 2), random.uniform(4, 7)]
        picture[:] = ((rows - row) ** 2 + (columns - column) ** 2 < radius**2) * 0.8 + random.normal(
            0.1, 0.03, (SIDE, SIDE)
        )
    return found


def segmenter(ruined: bool) -> tuple[Any, Array]:
    """A model that marks what is bright, and items. Where it is to be `ruined` by int8, a channel that it does not look at is huge."""
    weights = np.full((4, 3, 3, 3), 1 / 18, np.float32)
    weights[:, 2] = 0
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second", "bias"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["mask"]),
    ]
    stored = [
        models.stored("first", weights),
        models.stored("second", np.full((1, 4, 1, 1), 8.0, np.float32)),
        models.stored("bias", np.array([-16.0], np.float32)),
    ]
    made = models.model(
        nodes,
        [models.tensor("x", ["N", 3, SIDE, SIDE])],
        [models.tensor("mask", ["N", 1, SIDE, SIDE], TensorProto.FLOAT)],
        stored,
    )
    items = pictures()
    if ruined:
        items[:, 2] = np.random.default_rng(3).normal(0, 4000, items[:, 2].shape)
    return made, items


async def optimized(folder: Path, ruined: bool, labels: Array | None = None, **evaluation: Any) -> OptimizedModelStatus:
    made, items = segmenter(ruined)
    given = {"x": items, **({} if labels is None else {"labels": labels})}
    return await in_process.quantized(folder, made, given, 0.05, **{"metric": "Auto", **evaluation})


def published(folder: Path, row: CandidateStatus) -> Manifest:
    """The manifest of the artifact that was written for that candidate."""
    path = folder / "store" / "artifacts" / str(row.artifact).removeprefix("sha256:") / "manifest.json"
    return Manifest.model_validate_json(path.read_bytes())


def discs() -> Array:
    """Where the discs are."""
    return (pictures().mean(axis=1) > 0.5).astype(np.int64)


@pytest.mark.parametrize("labels", [None, discs()], ids=["no labels", "labels"])
async def test_an_int8_build_that_marks_the_same_places_passes(labels: Array | None, tmp_path: Path) -> None:
    status = await optimized(tmp_path, ruined=False, labels=labels)
    (int8,) = (row for row in status.candidates if row.recipe == "int8")
    assert int8.accuracy is not None and int8.accuracy.metric == Metric.SEGMENTATION and int8.accuracy.value > 0.9
    assert int8.accuracy_drop is not None and int8.accuracy_drop.high < 0.05
    assert let_through(status) == [int8.name]
    assert status.baselines[0].answers is not None and "mask" in status.baselines[0].answers
    (rule,) = published(tmp_path, int8).comparisons.values()
    assert rule.judged_by == Metric.SEGMENTATION  # so that no canary is rolled back for numbers that differ


async def test_number_by_number_the_same_build_is_refused(tmp_path: Path) -> None:
    status = await optimized(tmp_path, ruined=False, metric="Agreement")
    assert let_through(status) == []


@pytest.mark.parametrize("labels", [None, discs()], ids=["no labels", "labels"])
async def test_a_build_that_marks_other_places_is_refused(labels: Array | None, tmp_path: Path) -> None:
    status = await optimized(tmp_path, ruined=True, labels=labels)
    (int8,) = (row for row in status.candidates if row.recipe == "int8")
    assert let_through(status) == []
    assert int8.accuracy is not None and int8.accuracy.metric == Metric.SEGMENTATION
