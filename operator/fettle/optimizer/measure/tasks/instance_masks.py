"""Masks of single objects, as heads write them that add masks to boxes: planes, and for each box how much of each plane makes its mask.

D. Bolya et al., "YOLACT: real-time instance segmentation", arXiv:1904.02689; YOLO's own heads for segmentation do the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fettle.optimizer.measure.tasks.base import item_of
from fettle.optimizer.statistics import ratio
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

MOST_MASKS = 100  # of an item, those of the surest boxes
SMALLEST_SIDE = 16  # of a plane


@dataclass(frozen=True)
class MaskParts:
    """`count` planes in the output `outputs[0]`; as many shares stand behind the scores of each box. Nothing where a head has no masks."""

    outputs: tuple[str, ...] = ()
    count: int = 0

    def masks(self, answer: Mapping[str, Array], shares: Array, corners: Array, size: tuple[int, int] | None) -> Array:
        """Masks [n, bytes], a bit a place of the planes, inside of boxes [n, 4]. `shares` [n, count]: of the same boxes.

        `size`: height and width of the picture that the corners are in; None where it is as large as the planes.
        """
        planes = item_of(answer[self.outputs[0]], 3).astype(np.float32)
        height, width = planes.shape[1:]
        whole = size or (height, width)
        rows, columns = (
            (np.arange(length) + 0.5) * side / length for length, side in zip((height, width), whole, strict=True)
        )
        made = np.zeros((len(corners), height, width), np.bool_)
        for number, (left, top, right, bottom) in enumerate(corners[:MOST_MASKS]):
            down = slice(*np.searchsorted(rows, (top, bottom)))
            across = slice(*np.searchsorted(columns, (left, right)))
            made[number, down, across] = np.tensordot(shares[number], planes[:, down, across], axes=1) > 0
        return np.packbits(made.reshape(len(made), -1), axis=1)


def mask_parts(answer: Mapping[str, Array], behind: Array) -> MaskParts:
    """The planes in an answer, if the last of the numbers `behind` the first score of each box, [boxes, n], are shares of them.

    Shares have both signs, which scores have not.
    """
    for name, array in answer.items():
        planes = item_of(array, 3)
        count = len(planes) if planes.ndim == 3 else 0
        if not 2 <= count <= behind.shape[1] or not is_float(array) or min(planes.shape[1:]) < SMALLEST_SIDE:
            continue
        if behind[:, -count:].min(initial=0) < 0:
            return MaskParts((name,), count)
    return MaskParts()


def mask_overlaps(left: Array, right: Array) -> Array:
    """Intersection over union, [n, m], of masks; 1 where both are empty, as those beyond MOST_MASKS are."""
    bits = [np.unpackbits(side, axis=1).astype(np.float32) for side in (left, right)]
    shared = bits[0] @ bits[1].T
    union = bits[0].sum(axis=1)[:, None] + bits[1].sum(axis=1)[None, :] - shared
    return ratio(shared, union, 1.0)
