"""Metric TopK: is the right class among the k with the highest scores, as of a list of suggestions?

With labels: top-k accuracy. As agreement: the original's best class is among the candidate's k and the candidate's best among the original's,
and more than half of the k are the same. With k = 1 that is the same class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.labels import not_counted
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.labels.reader import NOT_COUNTED
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
    share,
    whole_numbers,
)
from fettle.runtimes.base import Array, as_text
from fettle.store.comparison import is_float

LEAST_SKILL = 0.5  # of what the most frequent answer gets wrong a candidate may get half as much wrong


class TopK(TaskMetric):
    """A score for each class."""

    def __init__(self, name: str, classes: int, spec: EvaluationSpec) -> None:
        self._name, self._classes, self._spec = name, classes, spec
        self.outputs = frozenset({name})
        self.told = f"the best {spec.top_k} of {classes} classes in {name}"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """See how many classes there are. Raises DataError."""
        name = signature.judged_output(spec.output)
        first = item_of(examples[0][name], 1)
        if first.ndim != 1 or not is_float(first):
            raise DataError(
                f"metric TopK finds no class scores in {shapes({name: first})} (one item's answer): it needs one score for each class, and one "
                "decision per item"
            )
        classes = len(first)
        if 2 * spec.top_k > classes:
            raise DataError(
                f"data.evaluation.topK is {spec.top_k}, but {name} has only {classes} classes: hardly any answer is wrong if more than half of the "
                f"classes count; set topK to {classes // 2} or less, or set metric: Accuracy"
            )
        require_names("TopK", spec, classes, [name])
        return cls(name, classes, spec)

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """Nothing in the answers says how many of them are looked at."""
        return Likeness.NONE

    def decode(self, answer: Answer) -> Array:
        """Numbers of the best classes, the best first; of equal ones the one with the lowest number."""
        scores = item_of(answer[self._name], 1).astype(np.float64)
        return np.argsort(-scores, kind="stable")[: self._spec.top_k]

    def read(self, label: Array, prediction: Array) -> int:
        """The number of the right class, or its name; `NOT_COUNTED` where it does not count."""
        spec = self._spec
        value = label.reshape(-1)[0] if label.size == 1 else None
        if label.dtype.kind in "OSU" and value is not None:
            name = as_text(value)
            if name not in spec.classes:
                raise DataError(
                    f"the label {name!r} is not among data.evaluation.classes: give all names, in the order of the scores"
                )
            return spec.classes.index(name)
        if value is None or whole_numbers(label) is None:
            raise DataError(
                f"metric TopK needs the number or the name of one class as the label of an item, found {label.dtype} {list(label.shape)}: "
                "check data.evaluation.labelKey"
            )
        if value in not_counted(spec):
            return NOT_COUNTED
        place = int(value) - spec.label_offset
        require_in_range(np.array(place), self._classes, spec.label_offset)
        return place

    def scorer(self, labelled: bool) -> Scorer:
        """Top-k accuracy, or how far the best are those of the original."""
        return Hits() if labelled else SameBest()


@dataclass
class Hits:
    """The best classes beside the right one."""

    _right: list[bool] = field(default_factory=list)
    _labels: Counter[int] = field(default_factory=Counter)
    _k: int = 1

    def add(self, prediction: Array, truth: int) -> None:
        """See whether the right class is among the best."""
        if truth != NOT_COUNTED:
            self._right.append(bool(np.any(prediction == truth)))
            self._labels[truth] += 1
            self._k = len(prediction)

    def pool(self) -> Pool:
        """Top-k accuracy. Raises DataError where no label counts."""
        if not self._right:
            raise DataError("every label is the value that is ignored")
        most = sum(times for _, times in self._labels.most_common(self._k))
        return replace(share(self._right), constant=most / len(self._right))


@dataclass
class SameBest:
    """The best classes beside the original's."""

    _same: list[bool] = field(default_factory=list)
    _truth: list[Array] = field(default_factory=list)

    def add(self, prediction: Array, truth: Array) -> None:
        """Compare the two lists of an item."""
        self._same.append(_alike(prediction, truth))
        self._truth.append(truth)

    def pool(self) -> Pool:
        """Share of items with the same best."""
        items, wrong = len(self._same), self._same.count(False)
        usual = np.array(Counter(tuple(best.tolist()) for best in self._truth).most_common(1)[0][0])
        missed = sum(not _alike(usual, best) for best in self._truth)
        gone = None
        if missed and wrong > LEAST_SKILL * missed:
            gone = (
                f"its best classes differ from the original's in {wrong} of {items} items, and the most frequent answer, given to all items, would "
                f"differ in {missed}: the candidate hardly depends on its input any more; quantize fewer operators"
            )
        return replace(share(self._same), gone=gone)


def _alike(one: Array, other: Array) -> bool:
    """Whether either's best class is among the other's best, and more than half of them are the same."""
    common = len(np.intersect1d(one, other))
    return bool(np.any(other == one[0]) and np.any(one == other[0]) and 2 * common > len(one))
