"""Metric Segmentation: how much of each class's area is found (mean intersection over union, over the classes that occur).

A model with one score for each place says foreground or not, and is judged by its foreground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from fettle.api.optimizedmodel import EvaluationSpec
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.measure.agreement import OVERSHOOT, OutputProfile, item_axis
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Pool, Scorer, item_of, ratio, shapes, sums
from fettle.store.comparison import decisions, is_float

Array = np.ndarray[Any, Any]

LEAST_PLACES = 16  # fewer decisions an item are no mask
MOST_CLASSES = 1024
LEAST_SIDE = 16  # of a plane, where nobody says that it is a mask
NEARLY, DECIDED = 0.1, 0.9  # of a mask's places, nine in ten are decided


class Segmentation:
    """A class for each place."""

    one_scale = True

    def __init__(self, name: str, axis: int | None, threshold: float, classes: int, ignored: int | None) -> None:
        self._name, self._axis, self._threshold, self._classes, self._ignored = name, axis, threshold, classes, ignored
        self.outputs = frozenset({name})
        kind = "foreground or not" if classes == 2 and axis is None else f"one of {classes} classes"
        self.told = f"a mask in {name}: each place is {kind}"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Find the axis of the classes: the one asked for, else the first. Raises DataError."""
        tensors = {tensor.name: tensor for tensor in signature.outputs}
        name = spec.output or next(iter(tensors))
        answers = [item_of(answer[name], 3) for answer in examples]
        first = answers[0]
        if not is_float(first):
            whole = (
                first.dtype.kind in "iu"
                and first.ndim >= 2
                and min(int(answer.min(initial=0)) for answer in answers) >= 0
            )
            classes = max(int(answer.max(initial=0)) for answer in answers) + 1 if whole else 0
            if 0 < classes <= MOST_CLASSES:
                return cls(name, None, 0.0, classes, spec.ignore_label)
        else:
            profile = OutputProfile()
            for answer in answers:
                profile.add(answer)
            squeezed = [size for size in first.shape if size != 1]
            if len(squeezed) == 2 and min(squeezed) > 1:  # no axis of classes
                return cls(name, None, profile.threshold, 2, spec.ignore_label)
            asked = spec.agreement.axis
            axis = item_axis(tensors[name], asked) if asked != -1 else -first.ndim
            if (
                len(squeezed) == 3
                and 1 < first.shape[axis] <= MOST_CLASSES
                and first.size // first.shape[axis] >= LEAST_PLACES
            ):
                return cls(name, axis, profile.threshold, first.shape[axis], spec.ignore_label)
        raise DataError(
            f"metric Segmentation reads no mask in {shapes({name: first})} (an item's answer): it takes a score for each class and place, "
            "a score for each place, or a number for each place; where the classes lie along another axis, set agreement.axis"
        )

    def sure(self, examples: Sequence[Answer]) -> bool:
        """Probabilities over a plane: one for each class that add up to 1, or one that is nearly 0 or nearly 1 almost everywhere."""
        answers = [item_of(answer[self._name], 3) for answer in examples]
        if not all(is_float(answer) for answer in answers):
            return False
        values = [answer.astype(np.float32) for answer in answers]
        if sum(size >= LEAST_SIDE for size in values[0].shape) < 2 or any(
            value.min(initial=0) < -OVERSHOOT or value.max(initial=0) > 1 + OVERSHOOT for value in values
        ):
            return False
        if self._axis is not None:
            return all(bool(np.allclose(value.sum(axis=self._axis), 1, atol=1e-2)) for value in values)
        everything = np.concatenate([value.reshape(-1) for value in values])
        return bool(
            np.mean((everything < NEARLY) | (everything > 1 - NEARLY)) >= DECIDED and np.any(everything > 1 - NEARLY)
        )

    def decode(self, answer: Answer) -> Array:
        """The class of each place, flat."""
        array = item_of(answer[self._name], 3)
        if not is_float(array):
            return np.asarray(array.reshape(-1).astype(np.int64))
        if self._axis is None:
            return np.asarray((array > self._threshold).reshape(-1).astype(np.int64))
        return np.asarray(decisions(array, self._axis, self._threshold).astype(np.int64))

    def values(self, said: Array) -> Array:
        """Classes that occur."""
        return said

    def read(self, label: Array, answer: Answer) -> Array:
        """Numbers of classes, one for each place."""
        places = self.decode(answer).size
        if label.size != places or label.dtype.kind not in "iub":
            raise DataError(
                f"metric Segmentation needs a whole number for each of {places} places, found {label.dtype} {list(label.shape)}: "
                "check data.evaluation.labelKey and agreement.axis"
            )
        return np.asarray(label.reshape(-1).astype(np.int64))

    def scorer(self, labelled: bool) -> Scorer:
        """Intersection over union."""
        return Overlap(self._classes, self._axis is None and self._classes == 2, self._ignored)


@dataclass
class Overlap:
    """Places by class: in both, in either. `foreground`: only class 1 is judged."""

    classes: int
    foreground: bool
    ignored: int | None
    _scores: list[Array] = field(default_factory=list)

    def add(self, said: Array, truth: Array) -> None:
        """Count the places of an item."""
        if self.ignored is not None:
            counts = truth != self.ignored
            said, truth = said[counts], truth[counts]
        if len(truth) and not (truth.min() >= 0 and truth.max() < self.classes):
            other = sorted(set(np.unique(truth).tolist()) - set(range(self.classes)))[:3]
            raise DataError(
                f"labels {', '.join(map(str, other))} are no class of {self.classes}: set data.evaluation.ignoreLabel where one does not count"
            )
        both = np.bincount(truth[said == truth], minlength=self.classes)[: self.classes]
        either = (
            np.bincount(truth, minlength=self.classes)
            + np.bincount(said, minlength=self.classes)[: self.classes]
            - both
        )
        self._scores.append(np.stack([both, either])[:, 1 if self.foreground else 0 :].astype(np.float64))

    def pool(self) -> Pool:
        """Mean over the classes that occur in either. Raises DataError where there are none."""
        if not any(score[1].any() for score in self._scores):
            raise DataError(f"nothing is marked in any of {len(self._scores)} items: give items with something to find")
        return sums(self._scores, _mean_overlap)


def _mean_overlap(totals: Array) -> Array:
    both, either = np.split(totals, 2, axis=-1)
    return ratio(ratio(both, either, 0.0).sum(axis=-1), (either > 0).sum(axis=-1), 1.0)
