"""Metric Detection: are the objects found, and only those?

With labels: average precision at an overlap of .5, as COCO's evaluation takes it (101 points of recall, at most 100 boxes an item, mean over
classes). As agreement: F1 of the boxes that both are sure of, against the original's.
T.-Y. Lin et al., "Microsoft COCO: common objects in context", ECCV 2014; https://github.com/cocodataset/cocoapi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from fettle.api.optimizedmodel import EvaluationSpec
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Pool, Scorer, ratio, shapes, sums
from fettle.optimizer.measure.tasks.boxes import IOU, Boxes, Head, head, match
from fettle.optimizer.statistics import Indices, groups_of

Array = np.ndarray[Any, Any]

SURE = 0.25  # score from which on a box counts as found: what YOLO's own tools show
RECALLS = np.linspace(0, 1, 101)


class Detection:
    """Boxes with a score and a class."""

    one_scale = False

    def __init__(self, found: Head) -> None:
        self._head = found
        self.told = (
            f"{found.told}, a box found where its score is at least {SURE:g} and it covers an object by {IOU:g} or more"
        )
        self.outputs = found.outputs

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Recognise the head. Raises DataError."""
        found = head(examples, _image(signature))
        if found is None:
            raise DataError(
                f"metric Detection reads no boxes in {shapes(examples[0])} (an item's answer): it knows YOLO heads, boxes [n, 4] beside "
                "scores, and rows of corners, score and class after NMS; leave metric out, or append the decoding to the model"
            )
        return cls(found)

    def sure(self, examples: Sequence[Answer]) -> bool:
        """Boxes are written in a way of their own; some must be found."""
        return any(len(self.decode(answer).above(SURE).scores) for answer in examples)

    def decode(self, answer: Answer) -> Boxes:
        """The boxes of an answer, after NMS."""
        return self._head.decode(answer)

    def values(self, said: Boxes) -> Array:
        """Classes of the objects that are found."""
        return said.above(SURE).classes

    def read(self, label: Array, answer: Answer) -> Boxes:
        """`label` is [n, 5]: left, top, right, bottom, class; a row with a negative class fills up and does not count."""
        if label.ndim != 2 or label.shape[1] != 5 or label.dtype.kind not in "iuf":
            raise DataError(
                f"metric Detection needs labels [n, 5] for an item (left, top, right, bottom, class; class -1 fills up), "
                f"found {label.dtype} {list(label.shape)}"
            )
        rows = label[label[:, 4] >= 0].astype(np.float64)
        return Boxes(rows[:, :4], np.ones(len(rows)), rows[:, 4].astype(np.int64))

    def scorer(self, labelled: bool) -> Scorer:
        """Average precision by labels, F1 against the original's boxes."""
        return AveragePrecision() if labelled else F1()


def _image(signature: Signature) -> tuple[int, int] | None:
    """Height and width of the first input that is a picture, where both are fixed."""
    for tensor in signature.inputs:
        shape = tensor.shape
        if len(shape) == 4:
            sizes = shape[1:3] if shape[3] in (1, 3, 4) else shape[2:]
            if min(sizes) > 0:
                return sizes[0], sizes[1]
    return None


@dataclass
class F1:
    """Boxes that both are sure of: right ones, too many, missing."""

    _counts: list[Array] = field(default_factory=list)

    def add(self, said: Boxes, truth: Boxes) -> None:
        """Match the sure boxes of an item."""
        found, there = said.above(SURE), truth.above(SURE)
        right = int(match(found, there).sum())
        self._counts.append(np.array([right, len(found.scores) - right, len(there.scores) - right], dtype=np.float64))

    def pool(self) -> Pool:
        """F1 over all boxes of all items. Raises DataError where there is no object at all."""
        if not any(right + missing for right, _, missing in self._counts):
            message = (
                f"the original finds no object in any of {len(self._counts)} items: give items with objects in them"
            )
            raise DataError(message)
        return sums(self._counts, _f1)


def _f1(totals: Array) -> Array:
    right, weight = 2 * totals[..., 0], 2 * totals[..., 0] + totals[..., 1] + totals[..., 2]
    return ratio(right, weight, 1.0)


@dataclass
class AveragePrecision:
    """Every box in the order of its score, right or wrong, and how many objects there are, by class."""

    _items: int = 0
    _rows: list[Array] = field(default_factory=list)  # item, class, score, right
    _objects: list[Array] = field(default_factory=list)  # item, class

    def add(self, said: Boxes, truth: Boxes) -> None:
        """Match the boxes of an item."""
        item = np.full(len(said.scores), self._items)
        self._rows.append(np.stack([item, said.classes, said.scores, match(said, truth)], axis=1))
        self._objects.append(np.stack([np.full(len(truth.classes), self._items), truth.classes], axis=1))
        self._items += 1

    def pool(self) -> Pool:
        """Average precision, mean over the classes that occur. Raises DataError where there is no object at all."""
        rows, objects = np.concatenate(self._rows), np.concatenate(self._objects)
        if not len(objects):
            raise DataError(f"the labels of {self._items} items name no object: check data.evaluation.labelKey")
        group = groups_of(self._items)
        rows = rows[np.argsort(-rows[:, 2], kind="stable")]
        groups = int(group.max(initial=-1)) + 1
        classes = [
            (group[objects[objects[:, 1] == each][:, 0]], group[chosen[:, 0].astype(np.int64)], chosen[:, 3])
            for each in np.unique(objects[:, 1])
            for chosen in [rows[rows[:, 1] == each]]
        ]

        def value(drawn: Indices) -> Array:
            times = _times(drawn, groups)
            found = np.stack([_average_precision(times, *each) for each in classes])
            return np.asarray(np.nanmean(found, axis=0)) if np.isfinite(found).any() else np.zeros(times.shape[:-1])

        return Pool(self._items, groups, rows, value)


def _times(drawn: Indices, groups: int) -> Array:
    """How often each group was drawn: `[..., draws]` -> `[..., groups]`."""
    flat = drawn.reshape(-1, drawn.shape[-1])
    counts = np.stack([np.bincount(row, minlength=groups) for row in flat])
    return np.asarray(counts.reshape(*drawn.shape[:-1], groups))


def _average_precision(times: Array, objects: Array, boxes: Array, right: Array) -> Array:
    """Of one class: `objects` and `boxes` are their groups, boxes by falling score. NaN where no object was drawn."""
    there = times[..., objects].sum(axis=-1)
    if not len(boxes):
        return np.where(there > 0, 0.0, np.nan)
    weights = times[..., boxes]
    true = np.cumsum(weights * right, axis=-1)
    precision = true / np.maximum(np.cumsum(weights, axis=-1), 1)
    recall = true / np.maximum(there, 1)[..., None]
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    flat_recall, flat_precision = recall.reshape(-1, recall.shape[-1]), precision.reshape(-1, recall.shape[-1])
    found = np.zeros(len(flat_recall))
    for number, (row, values) in enumerate(zip(flat_recall, flat_precision, strict=True)):
        places = np.searchsorted(row, RECALLS, side="left")
        found[number] = np.append(values, 0.0)[np.minimum(places, len(values))].mean()
    return np.asarray(np.where(there > 0, found.reshape(there.shape), np.nan))
