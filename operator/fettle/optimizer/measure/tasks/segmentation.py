"""Metric Segmentation: how much of each class's area is found (mean intersection over union, over the classes that occur).

A model with one score for each place says foreground or not, and is judged by its foreground.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.labels import not_counted
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.labels.reader import NOT_COUNTED
from fettle.optimizer.measure.agreement import OVERSHOOT, item_axis
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import (
    Likeness,
    Pool,
    Scorer,
    TaskMetric,
    item_of,
    require_in_range,
    require_names,
    shapes,
    sums,
    whole_numbers,
)
from fettle.optimizer.measure.tasks.pictures import pictures
from fettle.optimizer.statistics import ratio
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

LEAST_PLACES = 16  # fewer decisions an item are no mask
MOST_CLASSES = 1024
LEAST_AREA = 1e-3  # of an item: less of a class comes and goes at the edges of others
LEAST_SIDE = 16  # of a plane, where nobody says that it is a mask
NEARLY, DECIDED = 0.1, 0.9  # of a mask's places, nine in ten are decided
LOOKED_AT = 10_000  # places
SKETCHED = 1 << 14
COLOURS = 3
FEW_CLASSES = 4  # of so few, every second one is next to another


class Segmentation(TaskMetric):
    """A class for each place."""

    one_scale = True

    def __init__(
        self, name: str, axis: int | None, threshold: float, classes: int | None, spec: EvaluationSpec, planes: Planes
    ) -> None:
        self._name, self._axis, self._threshold, self._classes, self._planes = name, axis, threshold, classes, planes
        self._foreground = axis is None and classes == 2
        self._offset, self._ignored = spec.label_offset, not_counted(spec)
        self.outputs = frozenset({name})
        kind = "a class" if classes is None else f"one of {classes} classes"
        self.told = f"a mask in {name}: each place is {'foreground or not' if self._foreground else kind}"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Find the axis of the classes: the one asked for, else the first. Raises DataError."""
        name = signature.judged_output(spec.output)
        first = item_of(examples[0][name], 3)
        axis, classes = None, 0
        squeezed = [size for size in first.shape if size != 1]
        if first.dtype.kind in "iub" and first.ndim >= 2:
            classes = 2 if first.dtype.kind == "b" else _numbers_of(examples, name)
        elif is_float(first) and len(squeezed) == 2 and min(squeezed) > 1:  # no axis of classes
            classes = 2
        elif is_float(first) and len(squeezed) == 3:
            tensor = next(tensor for tensor in signature.outputs if tensor.name == name)
            asked = spec.agreement.axis
            axis = item_axis(tensor, asked) if asked != -1 else -first.ndim
            size = first.shape[axis]
            classes = size if size > 1 and first.size // size >= LEAST_PLACES else 0
        if not 0 < classes <= MOST_CLASSES:
            raise DataError(
                f"metric Segmentation finds no mask in {shapes({name: first})} (one item's answer): it needs a score for each class and pixel, "
                "a score for each pixel, or a class number for each pixel; if the classes are along another axis, set agreement.axis"
            )
        # The first answers need not show every number that a mask of ints may hold; names may tell how many there are.
        known = None if first.dtype.kind in "iu" else classes
        require_names("Segmentation", spec, known)
        return cls(name, axis, _threshold(examples, name), known or len(spec.classes) or None, spec, _planes(signature))

    @property
    def axis(self) -> int | None:
        """That of the scores of classes in an item's answer, counted from the end; None where there is one score, or a number, for each place."""
        return self._axis

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """Sure where nine of ten places are decided, and marked ones are areas of a plane that is as large as the picture."""
        answers = [item_of(answer[self._name], 3) for answer in examples]
        if not all(is_float(answer) and sum(size >= LEAST_SIDE for size in answer.shape) >= 2 for answer in answers):
            return Likeness.NONE
        values = [answer.astype(np.float32) for answer in answers]
        if not all(_probabilities(value) for value in values):
            return Likeness.NONE
        if self._axis is None:
            looks = _decided(values) and any(bool((value > 1 - NEARLY).any()) for value in values)
            sure = looks and _areas(values)
        else:
            scores = [np.moveaxis(value, self._axis, 0) for value in values]
            looks = all(bool(np.allclose(score.sum(axis=0), 1, atol=1e-2)) for score in scores)
            sure = looks and _decided([score.max(axis=0) for score in scores]) and not _bins(scores)
        plane = self.decode(examples[0]).shape
        fits = any(all(size in (-1, had) for size, had in zip(each, plane, strict=True)) for each in self._planes)
        return Likeness.SURE if sure and len(plane) == 2 and fits else Likeness.LIKELY if looks else Likeness.NONE

    def decode(self, answer: Answer) -> Array:
        """The class of each place, in the form of the plane."""
        array = item_of(answer[self._name], 3)
        if not is_float(array):
            most = int(array.max(initial=0))
            classes, small = array, np.min_scalar_type(most) if array.min(initial=0) >= 0 else np.dtype(np.int64)
        elif self._axis is None:
            classes, small = array > self._threshold, np.dtype(np.uint8)
        else:
            classes, small = np.argmax(array, axis=self._axis), np.min_scalar_type(array.shape[self._axis])
        return np.asarray(classes.astype(small).squeeze())

    def read(self, label: Array, prediction: Array) -> Array:
        """Numbers of classes, one for each place; `NOT_COUNTED` where none counts."""
        numbers = whole_numbers(label)
        if numbers is None or numbers.size != prediction.size:
            raise DataError(
                f"metric Segmentation needs a whole number for each of {prediction.size} places, found {label.dtype} {list(label.shape)}: "
                "check data.evaluation.labelKey and agreement.axis"
            )
        plane = numbers.squeeze()
        if plane.shape != prediction.shape and plane.ndim > 1:
            turned = "transposed" if plane.shape == prediction.shape[::-1] else "of another shape"
            raise DataError(
                f"labels are {turned}: a label has the shape {list(label.shape)}, but the model's mask has {list(prediction.shape)}; "
                "write labels with the axes in the order of the model's mask"
            )
        plane = plane.reshape(prediction.shape)
        ignored = np.isin(plane, self._ignored)
        require_in_range(plane[~ignored] - self._offset, self._classes or MOST_CLASSES, self._offset)
        return np.where(ignored, NOT_COUNTED, plane - self._offset).astype(np.int16)

    def scorer(self, labelled: bool) -> Scorer:
        """Intersection over union."""
        return Overlap(self._foreground)

    def kept(self, prediction: Array, truth: Array) -> Mapping[Hashable, bool]:
        """Classes of which at least half of the places are found; the background of a model that has no class for it does not count."""
        table = confusion(prediction, truth)
        areas = table.sum(axis=1)
        least = max(LEAST_AREA * truth.size, 1)
        return {
            number: bool(2 * table[number, number] >= areas[number])
            for number in range(int(self._foreground), len(table))
            if areas[number] >= least
        }

    def pairs(self, prediction: Array, truth: Array) -> Iterable[tuple[Hashable, Hashable]]:
        """Each class of a label with the class that most of its places are given."""
        table = confusion(prediction, truth)
        least = max(LEAST_AREA * truth.size, 1)
        return [(number, int(np.argmax(row))) for number, row in enumerate(table) if row.sum() >= least]

    def misreadings(self, truth: Array) -> Mapping[str, Array]:
        """A square mask may lie on its side without its shape telling."""
        return {"transposed (width before height)": truth.T} if truth.ndim == 2 and len(set(truth.shape)) == 1 else {}

    def sketch(self, prediction: Array) -> Array:
        """Every n-th place along each axis."""
        step = math.ceil((prediction.size / SKETCHED) ** (1 / max(prediction.ndim, 1)))
        return prediction[(slice(None, None, max(step, 1)),) * prediction.ndim]


def _threshold(examples: Sequence[Answer], name: str) -> float:
    """From where on a single score says yes: .5 for probabilities, 0 for anything else."""
    whole = all(_probabilities(answer[name]) for answer in examples)
    return 0.5 if whole else 0.0


def _probabilities(values: Array) -> bool:
    return bool(values.min(initial=0) >= -OVERSHOOT and values.max(initial=1) <= 1 + OVERSHOOT)


def _numbers_of(examples: Sequence[Answer], name: str) -> int:
    """How many classes ints show; 0 where they are none."""
    least = min(int(answer[name].min(initial=0)) for answer in examples)
    return 0 if least < 0 else max(int(answer[name].max(initial=0)) for answer in examples) + 1


# ------------------------------------------------------------------------------------------------------------- recognized unasked

Planes = Sequence[tuple[int, int]]


def _planes(signature: Signature) -> Planes:
    """Height and width of each input that is a picture in colour; -1 where one varies. What is grey may as well be a spectrogram."""
    return [(picture.height, picture.width) for picture in pictures(signature) if picture.channels == COLOURS]


def _decided(values: Sequence[Array]) -> bool:
    """Whether nine of ten places have a score near 0 or near 1."""
    shares = [np.mean((value < NEARLY) | (value > 1 - NEARLY)) for value in values]
    return bool(np.mean(shares) >= DECIDED)


def _areas(values: Sequence[Array]) -> bool:
    """Whether most marked places lie among others: objects have an inside, the peaks of a heat map and the notes of a roll have none."""
    marked = inside = 0
    for value in values:
        plane = value.squeeze() > 0.5
        core = plane[1:-1, 1:-1] & plane[:-2, 1:-1] & plane[2:, 1:-1] & plane[1:-1, :-2] & plane[1:-1, 2:]
        marked, inside = marked + int(plane.sum()), inside + int(core.sum())
    return 2 * inside >= marked > 0


def _bins(scores: Sequence[Array]) -> bool:
    """Whether the second best class is the one beside the best: these are steps of a quantity, as a distance."""
    if len(scores[0]) <= FEW_CLASSES:
        return False
    beside = []
    for score in scores:
        flat = score.reshape(len(score), -1)
        second, best = np.argsort(flat[:, :: max(1, flat.shape[1] // LOOKED_AT)], axis=0)[-2:]
        beside.append(np.mean(np.abs(second - best) == 1))
    return bool(np.mean(beside) > 0.5)


# -------------------------------------------------------------------------------------------------------------------- scores


def confusion(prediction: Array, truth: Array) -> Array:
    """How many places of each class of the truth (rows) are given each class (columns), square; those that do not count left out.

    Raises ValueError where the two have different shapes, or numbers are no classes.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of the shapes {list(prediction.shape)} and {list(truth.shape)}")
    counts = truth >= 0
    given, wanted = prediction[counts].astype(np.int64), truth[counts].astype(np.int64)
    size = max(int(given.max(initial=-1)), int(wanted.max(initial=-1))) + 1
    if given.min(initial=0) < 0 or size > MOST_CLASSES:
        raise ValueError(f"a mask holds {int(given.min(initial=0))} to {size - 1}, classes are 0 to {MOST_CLASSES - 1}")
    return np.bincount(wanted * size + given, minlength=size * size).reshape(size, size)


@dataclass
class Overlap:
    """Places by class: in both, in either. `foreground`: only class 1 is judged."""

    foreground: bool
    _scores: list[Array] = field(default_factory=list)  # [2, classes] of each item, as many as it has

    def add(self, prediction: Array, truth: Array) -> None:
        """Count the places of an item."""
        table = confusion(prediction, truth)
        both = np.diag(table)
        self._scores.append(np.stack([both, table.sum(axis=0) + table.sum(axis=1) - both]).astype(np.float64))

    def pool(self) -> Pool:
        """Mean over the classes that occur in either. Raises DataError where there are none."""
        classes = max((score.shape[1] for score in self._scores), default=0)
        padded = np.zeros((len(self._scores), 2, max(classes, 2)))
        for row, score in zip(padded, self._scores, strict=True):
            row[:, : score.shape[1]] = score
        if self.foreground:
            padded = padded[:, :, 1:2]
        either = padded[:, 1]
        if not either.any():
            raise DataError(f"nothing is marked in any of {len(padded)} items: give items with something to find")
        # An item that is all background says nothing of the other classes.
        others = either if self.foreground else np.delete(either, int(np.argmax(either.sum(axis=0))), axis=1)
        return sums(list(padded), _mean_overlap, int(others.any(axis=1).sum()))


def _mean_overlap(totals: Array) -> Array:
    both, either = np.split(totals, 2, axis=-1)
    return ratio(ratio(both, either, 0.0).sum(axis=-1), (either > 0).sum(axis=-1), 1.0)
