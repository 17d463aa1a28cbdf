"""How detectors write boxes, and what two sets of boxes have in common.

The heads that are read: YOLO's, with and without a score for "an object is here", with and without masks, and YOLOX's (NMS is done here); SSD's boxes
beside a score for each class; and boxes after NMS, in one tensor or in three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from fettle.optimizer.measure.agreement import OVERSHOOT
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import item_of
from fettle.optimizer.measure.tasks.instance_masks import MaskParts, mask_overlaps, mask_parts
from fettle.optimizer.statistics import ratio
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

IOU = 0.5  # from which on two boxes are of one object, and of two of a class one is suppressed
SURE = 0.25  # score from which on a box counts as found: what YOLO's own tools show
LEAST_SCORE = 0.001  # of a box that is looked at: as COCO's own evaluation of detectors does
MOST_BOXES = 1000  # of an item, the surest first
MOST_BEFORE_NMS = 3000  # as many as detectors' own tools take, or more
MOST_AFTER_NMS = 1000
STRIDES = (8, 16, 32)  # pixels of a cell's side, in YOLO's three grids
LARGEST_EXPONENT = 20.0  # beyond, a box is larger than any picture
WHOLE = 1e-4  # a class number in a tensor of floats


@dataclass(frozen=True)
class Boxes:
    """Boxes of one item, the surest first. `corners` [n, 4]: left, top, right, bottom; `scores` [n]; `classes` [n], whole numbers.

    `masks` [n, bytes]: the places of each object, a bit a place, where the head says which of a box's places are the object's.
    """

    corners: Array
    scores: Array
    classes: Array
    masks: Array | None = None

    @classmethod
    def best(cls, corners: Array, scores: Array, classes: Array) -> Boxes:
        """The surest boxes, in that order."""
        order = np.argsort(-scores, kind="stable")[:MOST_BOXES]
        return cls(corners[order].astype(np.float64), scores[order].astype(np.float64), classes[order].astype(np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        masks = self.masks.nbytes if self.masks is not None else 0
        return int(self.corners.nbytes + self.scores.nbytes + self.classes.nbytes + masks)

    def above(self, score: float) -> Boxes:
        """Those with at least that score."""
        return self.some(self.scores >= score)

    def some(self, chosen: Array) -> Boxes:
        """The chosen ones, flags or places."""
        masks = self.masks[chosen] if self.masks is not None else None
        return Boxes(self.corners[chosen], self.scores[chosen], self.classes[chosen], masks)


def intersection_over_union(left: Array, right: Array) -> Array:
    """[n, m] of boxes [n, 4] and [m, 4]."""
    top = np.maximum(left[:, None, :2], right[None, :, :2])
    bottom = np.minimum(left[:, None, 2:], right[None, :, 2:])
    shared = np.prod(np.clip(bottom - top, 0, None), axis=-1)
    areas = [np.prod(np.clip(side[:, 2:] - side[:, :2], 0, None), axis=-1) for side in (left, right)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return ratio(shared, union, 0.0)


def overlaps(found: Boxes, truth: Boxes) -> Array:
    """Intersection over union of boxes of one class, or of their masks where that is less; 0 where classes differ."""
    same = found.classes[:, None] == truth.classes[None, :]
    shared = intersection_over_union(found.corners, truth.corners)
    if found.masks is not None and truth.masks is not None:
        shared = np.minimum(shared, mask_overlaps(found.masks, truth.masks))
    return np.where(same, shared, 0.0)


def assign(overlap: Array, least: float = IOU) -> Array:
    """Of each found box, the surest first, the place of the free true one that it covers best, if by `least` or more; else -1."""
    taken = np.full(len(overlap), -1)
    if not overlap.size:
        return taken
    free = np.where(overlap >= least, overlap, 0.0)
    for number in np.nonzero(free.any(axis=1))[0]:
        best = int(np.argmax(free[number]))
        if free[number, best] > 0:
            taken[number] = best
            free[:, best] = 0
    return taken


def suppress(corners: Array, scores: Array, classes: Array) -> Array:
    """Non-maximum suppression, class by class: places of the boxes that stay, the surest first."""
    order = np.argsort(-scores, kind="stable")[:MOST_BEFORE_NMS]
    kept = [order[:0]]
    for number in np.unique(classes[order]):
        some = order[classes[order] == number]
        kept.append(some[_kept(corners[some].astype(np.float64))])
    chosen = np.concatenate(kept)
    return chosen[np.argsort(-scores[chosen], kind="stable")[:MOST_BOXES]]


def _kept(corners: Array) -> list[int]:
    """Of boxes of one class, the surest first, those that no surer one suppresses."""
    left, top, right, bottom = np.ascontiguousarray(corners.T)
    areas = np.clip(right - left, 0, None) * np.clip(bottom - top, 0, None)
    kept: list[int] = []
    rest = np.arange(len(corners))
    while len(rest):
        best, rest = int(rest[0]), rest[1:]
        kept.append(best)
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest])
        shared = np.clip(width, 0, None) * np.clip(height, 0, None)
        rest = rest[shared < IOU * np.maximum(areas[best] + areas[rest] - shared, np.finfo(np.float64).tiny)]
    return kept


# ---------------------------------------------------------------------------------------------------------------------- heads


@dataclass(frozen=True)
class Head:
    """A way to write boxes. `outputs` are those it reads; `of_tables` makes boxes of them."""

    told: str
    outputs: frozenset[str]
    of_tables: Callable[[Answer], Boxes]
    classes: int | None = None  # how many there are; None where numbers of classes do not tell
    ranks: Mapping[str, int] = field(default_factory=dict)

    def decode(self, answer: Answer) -> Boxes:
        """The boxes of an answer."""
        return self.of_tables(_as_tables({name: answer[name] for name in self.outputs}, self.ranks))


def head(examples: Sequence[Answer], image: tuple[int, int] | None = None) -> Head | None:
    """The head that wrote these answers; None where they are no boxes that are known here.

    `image`: height and width of the model's input, where they are fixed.
    """
    ranks = {name: 1 if all(answer[name].shape[:-1] == (1,) for answer in examples) else 2 for name in examples[0]}
    answers = [_as_tables(answer, ranks) for answer in examples]
    for recognize in (_after_nms, _three_tensors, _ssd, partial(_yolo, image=image)):
        recognized = recognize(answers)
        if recognized is not None:
            return replace(recognized, ranks=ranks)
    recognized = _yolox(answers, image)
    return replace(recognized, ranks=ranks) if recognized is not None else None


def _as_tables(answer: Answer, ranks: Mapping[str, int]) -> Answer:
    """Without a batch axis of 1. `ranks`: axes of each output without it, as all examples have them."""
    return {name: item_of(array, ranks[name]) for name, array in answer.items()}


def _yolo(examples: Sequence[Answer], image: tuple[int, int] | None) -> Head | None:
    """One tensor: centre, width, height; then a score for each class, or one for "an object" before them."""
    for name, array in examples[0].items():
        if array.ndim != 2 or not is_float(array) or min(array.shape) < 5 or max(array.shape) < 4 * min(array.shape):
            continue
        turned = array.shape[0] < array.shape[1]  # newer heads write a column for each box, older ones a row
        rows = np.concatenate([_rows(answer[name], turned) for answer in examples])
        parts = mask_parts(examples[0], rows[:, 5:])
        scores = rows.shape[1] - parts.count
        if not _probabilities(rows[:, 4:scores]) or rows[:, :4].max(initial=0) <= 2 or rows[:, 2:4].min(initial=0) < 0:
            continue
        objectness = not turned and _objectness(rows[:, :scores])
        return Head(
            f"the boxes{' and masks' if parts.count else ''} of a YOLO head in {' and '.join((name, *parts.outputs))}"
            f"{', with a score for an object beside those of classes' if objectness else ''}",
            frozenset({name, *parts.outputs}),
            partial(_decode_yolo, _YoloForm(name, turned, objectness, parts, image)),
            scores - 4 - objectness,
        )
    return None


def _objectness(rows: Array) -> bool:
    """Whether the first score says that there is an object at all: then where it is high some class is as well; a class is so alone."""
    sure = rows[rows[:, 4] >= SURE]
    return rows.shape[1] > 5 and len(sure) > 0 and bool(np.mean(sure[:, 5:].max(axis=1) >= SURE) >= 0.5)


def _yolox(examples: Sequence[Answer], image: tuple[int, int] | None) -> Head | None:
    """One tensor of rows: the box relative to its cell of a grid, a score for "an object", one for each class; a row for every cell.

    Z. Ge et al., "YOLOX: exceeding YOLO series in 2021", arXiv:2107.08430.
    """
    for name, array in examples[0].items():
        rows = array.shape[0] if array.ndim == 2 else 0
        sizes = image or _square(rows)
        if not rows or not is_float(array) or array.shape[1] < 6 or sizes is None:
            continue
        cells = _cells(sizes)
        if len(cells) == rows and _probabilities(np.concatenate([answer[name] for answer in examples])[:, 4:]):
            told = f"the boxes of a YOLOX head in {name}"
            return Head(told, frozenset({name}), partial(_decode_yolox, name, cells), array.shape[1] - 5)
    return None


def _square(rows: int) -> tuple[int, int] | None:
    """Height and width of a square picture that has so many cells."""
    side = round((rows / sum(1 / stride**2 for stride in STRIDES)) ** 0.5)
    return (side, side) if side else None


def _cells(image: tuple[int, int]) -> Array:
    """Column, row and size in pixels of each cell, [cells, 3]."""
    grids = []
    for stride in STRIDES:
        rows, columns = (np.arange(size // stride) for size in image)
        place = np.stack([np.tile(columns, len(rows)), np.repeat(rows, len(columns))], axis=1)
        grids.append(np.concatenate([place, np.full((len(place), 1), stride)], axis=1))
    return np.concatenate(grids)


def _decode_yolox(name: str, cells: Array, answer: Answer) -> Boxes:
    rows = answer[name].astype(np.float64)
    centre = (rows[:, :2] + cells[:, :2]) * cells[:, 2:]
    half = np.exp(np.clip(rows[:, 2:4], None, LARGEST_EXPONENT)) * cells[:, 2:] / 2
    return _from_corners(np.concatenate([centre - half, centre + half], axis=1), rows[:, 5:] * rows[:, 4:5])


def _from_corners(corners: Array, scores: Array) -> Boxes:
    """The best class of each box, then NMS."""
    chosen = _surest(corners, scores)
    return _of_best_class(corners[chosen], scores[chosen])


def _of_best_class(corners: Array, scores: Array) -> Boxes:
    best = np.argmax(scores, axis=1)
    return Boxes.best(corners, scores[np.arange(len(scores)), best], best)


def _surest(corners: Array, scores: Array) -> Array:
    """Places of the boxes that stay, the surest first, each taken for its best class."""
    best = np.argmax(scores, axis=1)
    score = scores[np.arange(len(scores)), best]
    some = np.nonzero(_places(corners) & (score >= LEAST_SCORE))[0]
    return some[suppress(corners[some], score[some], best[some])]


def _rows(array: Array, turned: bool) -> Array:
    return array.T if turned else array


@dataclass(frozen=True)
class _YoloForm:
    """How a YOLO head writes. `turned`: a column for each box; `image`: height and width of the picture, where they are fixed."""

    name: str
    turned: bool
    objectness: bool
    parts: MaskParts
    image: tuple[int, int] | None


def _decode_yolo(form: _YoloForm, answer: Answer) -> Boxes:
    rows = _rows(answer[form.name], form.turned)
    last = rows.shape[1] - form.parts.count
    scores = rows[:, 5:last] * rows[:, 4:5] if form.objectness else rows[:, 4:last]
    centre, half = rows[:, :2].astype(np.float64), rows[:, 2:4].astype(np.float64) / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    chosen = _surest(corners, scores)
    boxes = _of_best_class(corners[chosen], scores[chosen])
    if not form.parts.count:
        return boxes
    size = form.image or _square(len(rows))
    return replace(boxes, masks=form.parts.masks(answer, rows[chosen, last:], boxes.corners, size))


def _after_nms(examples: Sequence[Answer]) -> Head | None:
    """One tensor of rows: four corners, a score and the number of the class, in either order."""
    for name, array in examples[0].items():
        if not is_float(array) or array.ndim != 2 or array.shape[1] != 6 or array.shape[0] > MOST_AFTER_NMS:
            continue
        rows = np.concatenate([answer[name] for answer in examples]).astype(np.float64)
        if not len(rows):
            continue
        for score, number in ((4, 5), (5, 4)):
            if (
                _corners(rows)
                and _probabilities(rows[:, score])
                and _whole(rows[:, number])
                and not _whole(rows[:, score])
            ):
                return Head(
                    f"boxes with score and class in {name}",
                    frozenset({name}),
                    partial(_decode_rows, name, score, number),
                )
    return None


def _decode_rows(name: str, score: int, number: int, answer: Answer) -> Boxes:
    rows = answer[name]
    return _counted(rows[:, :4], rows[:, score], rows[:, number])


def _three_tensors(examples: Sequence[Answer]) -> Head | None:
    """Boxes [n, 4], scores [n], and, but for detectors of one class, classes [n]."""
    first = examples[0]
    corners = [name for name, array in first.items() if array.ndim == 2 and array.shape[1] == 4 and is_float(array)]
    vectors = {name: array for name, array in first.items() if array.ndim == 1}
    if len(corners) != 1:
        return None
    whole = {name: np.concatenate([answer[name] for answer in examples]) for name in vectors}
    scores = [n for n, a in whole.items() if is_float(a) and _probabilities(a) and not _whole(a)]
    classes = [n for n, a in whole.items() if n not in scores and _whole(a)]
    if len(scores) != 1 or len(classes) > 1 or first[corners[0]].shape[0] != first[scores[0]].shape[0]:
        return None
    if not _corners(np.concatenate([answer[corners[0]] for answer in examples])):
        return None
    names = (corners[0], scores[0], *classes)

    def decode(answer: Answer) -> Boxes:
        score = answer[scores[0]]
        return _counted(answer[corners[0]], score, answer[classes[0]] if classes else np.zeros(len(score)))

    return Head(f"boxes in {', '.join(names)}", frozenset(names), decode)


def _ssd(examples: Sequence[Answer]) -> Head | None:
    """Boxes [n, 4] beside scores [n, classes], of which the first is the background's."""
    first = examples[0]
    tables = {name: array for name, array in first.items() if array.ndim == 2 and is_float(array)}
    corners = [name for name, array in tables.items() if array.shape[1] == 4]
    for place in corners:
        if not _corners(np.concatenate([answer[place] for answer in examples])):
            continue
        for name, array in tables.items():
            if name == place or len(array) != len(first[place]) or array.shape[1] < 2:
                continue
            scores = np.concatenate([answer[name] for answer in examples])
            if _probabilities(scores) and np.allclose(scores.sum(axis=1), 1, atol=1e-2):
                return Head(
                    f"boxes in {place} beside a score for each class in {name}",
                    frozenset({place, name}),
                    partial(_decode_ssd, place, name),
                    array.shape[1] - 1,
                )
    return None


def _decode_ssd(place: str, name: str, answer: Answer) -> Boxes:
    corners, scores = answer[place], answer[name]
    return _from_corners(corners.astype(np.float64), scores[:, 1:])


def _counted(corners: Array, scores: Array, classes: Array) -> Boxes:
    some = _places(corners) & (scores >= LEAST_SCORE)  # rows that fill a tensor up have no score
    return Boxes.best(corners[some], scores[some], np.rint(classes[some]))


def _places(corners: Array) -> Array:
    """Which boxes lie somewhere: NaN and infinity are no place."""
    return np.asarray(np.isfinite(corners.astype(np.float64)).all(axis=1))


def _corners(rows: Array) -> bool:
    """Whether right is right of left and bottom below top, but for rounding; centre and size, or offsets, are seldom so."""
    sizes = rows[:, 2:4].astype(np.float64) - rows[:, :2].astype(np.float64)
    return bool(np.mean(np.all(sizes >= -WHOLE, axis=1)) >= 0.99) if len(rows) else False


def _probabilities(values: Array) -> bool:
    return bool(values.size) and bool(np.all((values >= -OVERSHOOT) & (values <= 1 + OVERSHOOT)))


def _whole(values: Array) -> bool:
    numbers = values.dtype.kind in "iuf" and bool(values.size)
    return numbers and bool(np.all((values >= 0) & (np.abs(values - np.rint(values)) < WHOLE)))
