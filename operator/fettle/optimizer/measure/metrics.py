"""How good answers are: what each metric keeps of an item, and what it makes of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fettle.api.interval import tango
from fettle.api.optimizedmodel_status import Flips, Interval
from fettle.api.vocabulary import Average, Metric
from fettle.errors import DataError
from fettle.optimizer.statistics import Indices, bca, groups_of, mean_interval
from fettle.store.comparison import class_count, cosine, decisions, is_float

Array = np.ndarray[Any, Any]
BATCH_NUMBERS = 4_000_000  # numbers that a bootstrap may hold at once


@dataclass(frozen=True)
class Judging:
    """What labels are compared with: the metric, and how an answer becomes a decision."""

    metric: Metric
    average: Average = Average.MACRO
    axis: int = -1
    threshold: float = 0.0


@dataclass
class Scores:
    """One model's results, item by item. `values` is a number per item; `decided` and `labels` only F1 needs."""

    judging: Judging
    values: list[float] = field(default_factory=list)
    decided: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)

    def add(self, answer: Array, label: Array) -> None:
        """Score one item. Raises DataError (DataInvalid) where the label does not fit the answer."""
        metric = self.judging.metric
        if metric in (Metric.MEAN_SQUARED_ERROR, Metric.COSINE_SIMILARITY):
            self.values.append(_distance(metric, answer, label))
            return
        decided = decisions(answer, self.judging.axis, self.judging.threshold)
        wanted = labelled_decisions(answer, decided, label, self.judging.axis)
        self.values.append(float(np.mean(_same(decided, wanted))) if decided.size else 1.0)
        if metric == Metric.F1:
            self.decided.append(decided)
            self.labels.append(wanted)

    def value(self) -> float:
        """The metric over all items."""
        if self.judging.metric == Metric.F1:
            return float(Confusion.of([self]).f1(0, self.judging.average))
        return float(np.mean(self.values))


def drop(original: Scores, candidate: Scores, alpha: float) -> Interval | None:
    """Interval of what the candidate lost against the original; positive = worse. None where there are too few items."""
    metric = original.judging.metric
    before, after = np.asarray(original.values), np.asarray(candidate.values)
    if metric == Metric.F1:
        return _f1_drop(original, candidate, alpha)
    if metric == Metric.MEAN_SQUARED_ERROR:
        return mean_interval(after - before, alpha)
    if metric == Metric.ACCURACY and np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        changed = flips(original, candidate)
        return tango(changed.worse, changed.better, len(before), alpha)
    return mean_interval(before - after, alpha)


def flips(original: Scores, candidate: Scores) -> Flips:
    """Items whose decision was right for exactly one of the two."""
    before, after = np.asarray(original.values), np.asarray(candidate.values)
    return Flips(worse=int(np.sum((before == 1) & (after < 1))), better=int(np.sum((before < 1) & (after == 1))))


@dataclass(frozen=True)
class Confusion:
    """Counts from which F1 follows. `counts[model, group, class]` holds true positives, false positives, false negatives."""

    counts: Array

    @classmethod
    def of(cls, models: Sequence[Scores]) -> Confusion:
        """Counts of several models on the same items."""
        group = groups_of(len(models[0].decided))
        sizes = [len(labels) for labels in models[0].labels]
        group = np.repeat(group, sizes)
        truth = _text_or_number(np.concatenate(models[0].labels))
        answers = [_text_or_number(np.concatenate(model.decided)) for model in models]
        classes, codes = np.unique(np.concatenate([truth, *answers]), return_inverse=True)
        true = codes[: len(truth)]
        counts = np.zeros((len(models), int(group.max()) + 1, len(classes), 3))
        for index in range(len(models)):
            decided = codes[len(truth) * (index + 1) : len(truth) * (index + 2)]
            right = decided == true
            np.add.at(counts[index], (group[right], true[right], 0), 1)
            np.add.at(counts[index], (group[~right], decided[~right], 1), 1)
            np.add.at(counts[index], (group[~right], true[~right], 2), 1)
        return cls(counts)

    def f1(self, model: int, average: Average, drawn: Indices | None = None) -> Array:
        """F1 of a model over all groups, or over those drawn along the last axis. Classes that occur nowhere do not count."""
        chosen = self.counts[model] if drawn is None else self.counts[model][drawn]
        total = chosen.sum(axis=-3)
        if average == Average.MICRO:
            total = total.sum(axis=-2, keepdims=True)
        elif average == Average.BINARY:
            total = total[..., -1:, :]  # of two classes, the greater is the positive one
        weight = 2 * total[..., 0] + total[..., 1] + total[..., 2]
        scores = np.where(weight > 0, 2 * total[..., 0] / np.where(weight > 0, weight, 1), 0)
        return np.asarray(scores.sum(axis=-1) / np.maximum((weight > 0).sum(axis=-1), 1))


def _f1_drop(original: Scores, candidate: Scores, alpha: float) -> Interval | None:
    pairs = zip(original.decided, candidate.decided, strict=True)
    if all(np.array_equal(before, after) for before, after in pairs):
        # Nothing flipped, so a bootstrap would say [0, 0] on any number of items: as for Accuracy, the score interval does not.
        return tango(0, 0, len(original.decided), alpha) if original.decided else None
    confusion = Confusion.of([original, candidate])
    average = original.judging.average
    return bca(
        confusion.counts.shape[1],
        lambda drawn: confusion.f1(0, average, drawn) - confusion.f1(1, average, drawn),
        alpha,
        batch=max(1, BATCH_NUMBERS // confusion.counts[0].size),
    )


def _distance(metric: Metric, answer: Array, label: Array) -> float:
    if not is_float(answer) or answer.size != label.size:
        raise DataError(
            f"{metric} needs labels of the output's shape: expected {list(answer.shape)} numbers, "
            f"found {list(label.shape)} beside {answer.dtype} answers"
        )
    left, right = answer.astype(np.float64), label.reshape(answer.shape).astype(np.float64)
    if metric == Metric.MEAN_SQUARED_ERROR:
        return float(np.mean((left - right) ** 2))
    return float(np.mean(cosine(left, right, -1)))


def labelled_decisions(answer: Array, decided: Array, label: Array, axis: int) -> Array:
    """The classes that a label names: as many as were decided, or scores (one-hot) of the answer's shape."""
    if label.size == decided.size:
        return label.reshape(-1)
    if label.size == answer.size and class_count(answer, axis) > 1:
        return np.asarray(np.argmax(label.reshape(answer.shape), axis=axis)).reshape(-1)
    raise DataError(
        f"a label of shape {list(label.shape)} does not fit an answer of shape {list(answer.shape)}, "
        f"which decides {decided.size}: check data.evaluation.labelKey, output and agreement.axis"
    )


def _same(decided: Array, wanted: Array) -> Array:
    if decided.dtype.kind in "OSU" or wanted.dtype.kind in "OSU":
        return np.asarray(_text_or_number(decided) == _text_or_number(wanted))
    return np.asarray(decided == wanted)


def _text_or_number(values: Array) -> Array:
    """Values that can be compared and sorted: texts as str."""
    if values.dtype.kind not in "OSU":
        return values
    return np.array(
        [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()], dtype=str
    )
