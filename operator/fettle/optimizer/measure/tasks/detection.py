"""Metric Detection: are the objects found, and only those?

With labels: average precision at an overlap of .5, as COCO's evaluation takes it (101 points of recall, mean over classes). As agreement: F1
against the original's boxes, counted at several scores and overlaps; a box whose score moved far is another box.
T.-Y. Lin et al., "Microsoft COCO: common objects in context", ECCV 2014; https://github.com/cocodataset/cocoapi.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.labels import not_counted
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.average_precision import AveragePrecision
from fettle.optimizer.measure.tasks.base import (
    Likeness,
    Pool,
    Scorer,
    TaskMetric,
    f1,
    require_in_range,
    require_names,
    shapes,
    sums,
    whole_numbers,
)
from fettle.optimizer.measure.tasks.boxes import (
    IOU,
    SURE,
    Boxes,
    Head,
    assign,
    head,
    intersection_over_union,
    overlaps,
)
from fettle.optimizer.measure.tasks.pictures import pictures
from fettle.runtimes.base import Array

SCORES = (SURE, 0.5, 0.75)  # where boxes are counted: users cut them off at different scores
OVERLAPS = (IOU, 0.75)  # as COCO's strict metric
MOVED = 0.2  # a score that moves further says something else; between two of `SCORES` nothing else would show it
# Average precision does not look at the scores themselves, and `maxChanged` allows a tenth more than `maxDrop`.
MOVED_BESIDE_LABELS = 0.1
STILL_THERE = 0.15  # score of an object that was found before: what moves across `SURE` is counted by F1, and not lost
SMALL = 32**2  # pixels: COCO's small objects
SMALL_OBJECTS = "objects smaller than 32 x 32"


class Detection(TaskMetric):
    """Boxes with a score and a class."""

    def __init__(self, found: Head, spec: EvaluationSpec) -> None:
        self._head = found
        self._classes = found.classes or len(spec.classes) or None
        self._offset, self._ignored = spec.label_offset, not_counted(spec)
        self.told = found.told
        self.outputs = found.outputs

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Recognize the head. Raises DataError."""
        found = head(examples, _size(signature))
        if found is None:
            raise DataError(
                f"metric Detection finds no boxes in {shapes(examples[0])} (one item's answer): it supports YOLO heads, boxes [n, 4] beside "
                "scores, and rows of corners, score and class after NMS; set metric: Auto, or export the model with its box decoding"
            )
        if spec.output is not None and signature.judged_output(spec.output) not in found.outputs:
            raise DataError(
                f"data.evaluation.output is {spec.output!r}, which holds no boxes: metric Detection reads {found.told}; leave output out"
            )
        require_names("Detection", spec, found.classes)
        return cls(found, spec)

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """Boxes are written in a way of their own; some must be found."""
        some = any(len(self.decode(answer).above(SURE).scores) for answer in examples)
        return Likeness.SURE if some else Likeness.NONE

    def decode(self, answer: Answer) -> Boxes:
        """The boxes of an answer, after NMS."""
        return self._head.decode(answer)

    def read(self, label: Array, prediction: Boxes) -> Boxes:
        """`label` is [n, 5]: left, top, right, bottom, class; a row with a negative class, or the one that is ignored, does not count."""
        numbers = (
            whole_numbers(label[:, 4])
            if label.ndim == 2 and label.shape[1] == 5 and label.dtype.kind in "iuf"
            else None
        )
        if numbers is None:
            raise DataError(
                f"metric Detection needs labels [n, 5] for an item (left, top, right, bottom, and the number of the class; -1 is padding), "
                f"found {label.dtype} {list(label.shape)}"
            )
        counts = (numbers >= min(self._offset, 0)) & ~np.isin(numbers, self._ignored)
        corners, classes = label[counts, :4].astype(np.float64), numbers[counts] - self._offset
        require_in_range(classes, self._classes, self._offset)
        if (corners[:, 2:] < corners[:, :2]).any():
            row = corners[(corners[:, 2:] < corners[:, :2]).any(axis=1)][0]
            raise DataError(
                f"a label's box is {row.tolist()}, whose right is smaller than its left, or bottom smaller than its top: write boxes as left, top, "
                "right, bottom, not as centre and size"
            )
        return Boxes(corners, np.ones(len(corners)), classes)

    def scorer(self, labelled: bool) -> Scorer:
        """Average precision by labels, F1 against the original's boxes."""
        return AveragePrecision() if labelled else F1()

    def changes(self) -> Scorer:
        """F1 of boxes whose scores hardly moved."""
        return F1(MOVED_BESIDE_LABELS)

    def kept(self, prediction: Boxes, truth: Boxes) -> Mapping[Hashable, bool]:
        """Classes of which at least half of the objects are found, and whether small objects are."""
        there = truth.above(SURE)
        found = np.zeros(len(there.scores), dtype=bool)
        taken = assign(overlaps(prediction.above(STILL_THERE), there))
        found[taken[taken >= 0]] = True
        flags: dict[Hashable, list[bool]] = defaultdict(list)
        areas = np.prod(there.corners[:, 2:] - there.corners[:, :2], axis=1)
        for number, area, flag in zip(there.classes.tolist(), areas, found.tolist(), strict=True):
            flags[number].append(flag)
            if area < SMALL:
                flags[SMALL_OBJECTS].append(flag)
        return {key: 2 * sum(each) >= len(each) for key, each in flags.items()}

    def pairs(self, prediction: Boxes, truth: Boxes) -> Iterable[tuple[Hashable, Hashable]]:
        """The class of each object with that of the box that is found at its place."""
        found = prediction.above(SURE)
        taken = assign(intersection_over_union(found.corners, truth.corners))
        right = taken >= 0
        return list(zip(truth.classes[taken[right]].tolist(), found.classes[right].tolist(), strict=True))

    def misreadings(self, truth: Boxes) -> Mapping[str, Boxes]:
        """Numbers of a box in another order."""
        corners, half = truth.corners, truth.corners[:, 2:] / 2
        centred = np.concatenate([corners[:, :2] - half, corners[:, :2] + half], axis=1)
        return {
            "top, left, bottom, right": Boxes(corners[:, [1, 0, 3, 2]], truth.scores, truth.classes),
            "centre, width, height": Boxes(centred, truth.scores, truth.classes),
            "left, top, width, height": Boxes(
                np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1), truth.scores, truth.classes
            ),
        }


def _size(signature: Signature) -> tuple[int, int] | None:
    """Height and width of the first input that is a picture, where both are fixed."""
    sizes = ((picture.height, picture.width) for picture in pictures(signature))
    return next((size for size in sizes if min(size) > 0), None)


@dataclass
class F1:
    """Right boxes, those too many and those missing, at each of `SCORES` and `OVERLAPS`, added up.

    A box whose score `moved` further is another one.
    """

    moved: float = MOVED
    _counts: list[Array] = field(default_factory=list)

    def add(self, prediction: Boxes, truth: Boxes) -> None:
        """Match the boxes of an item."""
        prediction, truth = prediction.above(SURE), truth.above(SURE)
        overlap = overlaps(prediction, truth)
        overlap[np.abs(prediction.scores[:, None] - truth.scores[None, :]) > self.moved] = 0
        counts = np.zeros(3)
        for score in SCORES:
            found, there = int((prediction.scores >= score).sum()), int((truth.scores >= score).sum())
            for least in OVERLAPS:
                right = int((assign(overlap[:found, :there], least) >= 0).sum())
                counts += [right, found - right, there - right]
        self._counts.append(counts)

    def pool(self) -> Pool:
        """F1 over all boxes of all items. Raises DataError where there is no object at all."""
        if not any(right + missing for right, _, missing in self._counts):
            message = f"the original finds no object (a score of {SURE:g} or more) in any of {len(self._counts)} items: provide items with objects"
            raise DataError(message)
        return sums(self._counts, f1)
