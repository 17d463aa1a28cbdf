"""Detectors that say which places of a box are the object's: a candidate that loses the masks has lost the objects."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.optimizer.measure.task_answers import RANDOM, apart, fitted, judged, passes, reference, yolo

from fettle.api.vocabulary import Metric
from fettle.optimizer.measure.tasks.instance_masks import mask_overlaps
from fettle.store.arrays import Array

CELLS = 2100  # of a picture of 320 x 320 in YOLO's three grids
PLANES = 4


def answer(count: int, shift: float = 0.0, noise: float = 0.0) -> dict[str, Array]:
    """Boxes whose objects fill their left half, moved by `shift` of it; as YOLO's heads for segmentation write them."""
    random = np.random.default_rng(RANDOM + count)
    said = apart(count)
    table = np.concatenate([yolo(said, rows=CELLS), random.normal(size=(CELLS, PLANES)).astype(np.float32)], axis=1)
    columns = (np.arange(80) + 0.5) * 4
    planes = random.normal(0, 0.01, (PLANES, 80, 80)).astype(np.float32)
    planes[0], planes[1] = columns[None, :] / 320, 1
    for number, (left, _, right, _) in enumerate(said.corners):
        edge = left + (right - left) * (0.5 + shift)
        table[number, -PLANES:] = [-1, edge / 320, 0, 0]  # positive left of the edge
    table[:, -PLANES:] += random.normal(0, noise, (CELLS, PLANES)).astype(np.float32) if noise else 0
    return {"boxes": np.ascontiguousarray(table.T), "planes": planes}


ORIGINAL = [answer(count) for count in (8, 7, 6, 5) * 15]


def test_boxes_and_masks_are_read_from_both_outputs() -> None:
    metric = fitted(Metric.DETECTION, ORIGINAL[:8])
    assert "boxes and masks of a YOLO head in boxes and planes" in metric.told
    assert metric.outputs == {"boxes", "planes"}
    read = metric.decode(ORIGINAL[0])
    np.testing.assert_allclose(read.corners, apart(8).corners, atol=1e-3)
    filled = np.unpackbits(read.masks, axis=1).sum(axis=1) * 16  # a place of a plane is 4 x 4 pixels
    assert filled == pytest.approx(np.full(8, 30 * 15), rel=0.25)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        pytest.param({"noise": 1e-4}, True, id="noise moves no mask"),
        pytest.param({"shift": 0.5}, False, id="masks that fill the whole box"),
        pytest.param({"shift": -0.4}, False, id="masks that are nearly empty"),
        pytest.param({"noise": 3.0}, False, id="masks of anything"),
    ],
)
def test_a_candidate_with_the_same_boxes_and_other_masks_has_lost_the_objects(
    change: dict[str, float], kept: bool
) -> None:
    found = judged(reference(Metric.DETECTION, ORIGINAL), [answer(count, **change) for count in (8, 7, 6, 5) * 15])
    assert passes(found, max_drop=0.1) == kept


def test_masks_overlap_by_their_places() -> None:
    masks = np.packbits(np.array([[1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0], [0] * 8], np.bool_), axis=1)
    np.testing.assert_allclose(mask_overlaps(masks, masks), [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 1]])
