"""The metrics for classes and numbers: what each keeps of an item, and its value over all items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fettle.api import metrics
from fettle.api.interval import tango
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.measured import Flips, Interval
from fettle.api.vocabulary import AgreementMode, Average, Metric
from fettle.errors import DataError
from fettle.optimizer.labels.reader import NOT_COUNTED, LabelReader
from fettle.optimizer.statistics import Indices, bca, by_group, clipped, draws_at_once, groups_of, mean_interval, ratio
from fettle.runtimes.base import Array, as_texts
from fettle.store.comparison import Comparison, cosine, decisions


@dataclass(frozen=True)
class ScoringRule:
    """How answers are compared with labels: the metric, the interpretation of labels, and how an answer becomes a decision."""

    metric: Metric
    reader: LabelReader
    average: Average = Average.MACRO
    axis: int = -1
    threshold: float = 0.0

    @classmethod
    def of(cls, metric: Metric, reading: LabelReading, average: Average, axis: int, threshold: float) -> ScoringRule:
        """With labels that are interpreted by `reading`."""
        return cls(metric, LabelReader(reading, axis), average, axis, threshold)

    @property
    def form(self) -> LabelForm:
        """The form of a label."""
        return self.reader.reading.form

    @property
    def decides(self) -> bool:
        """Whether an answer is either right or wrong, as opposed to more or less close."""
        return metrics.entry(self.metric).names_classes

    def of_numbers(self, answer: Array, truth: Array) -> float:
        """The metric of one item whose answer is numbers: mean cosine similarity, or mean squared difference."""
        if self.metric == Metric.COSINE_SIMILARITY:
            return float(np.mean(cosine(answer, truth, -1)))
        return float(np.mean((answer - truth) ** 2)) if answer.size else 0.0

    def decided(self, answer: Array) -> Array:
        """The decisions of an answer, flat, in the form in which labels are compared."""
        if self.form is LabelForm.ALL_OF:
            return np.asarray((answer > self.threshold).reshape(-1))
        decision = decisions(answer, self.axis, self.threshold)
        return as_texts(decision) if self.form is LabelForm.TEXTS else decision

    def wanted(self, answer: Array, label: Array) -> Array:
        """The label in the form of the answer's decisions. Raises DataError (DataInvalid) if the two do not fit."""
        try:
            return self.reader(label, answer.shape)
        except (ValueError, IndexError, KeyError) as error:
            message = f"a label of shape {list(label.shape)} does not fit an answer of shape {list(answer.shape)}"
            raise DataError(
                f"{message} ({error}): check data.evaluation.labelKey, output and agreement.axis"
            ) from error

    def counts(self, truth: Array) -> Array | slice:
        """Which of the decisions count."""
        if self.form is LabelForm.ANY_OF:
            return np.asarray(truth.any(axis=-1))  # where no class is right no model can be
        if self.form is LabelForm.TEXTS:
            return ~np.isin(truth, as_texts(np.array(self.reader.reading.ignored)))
        return truth != NOT_COUNTED if self.form is LabelForm.CLASSES else slice(None)

    def right(self, decided: Array, wanted: Array) -> Array:
        """The right decisions by the label; the model's own one if a label does not count, or if it is one of several right classes."""
        if self.form is LabelForm.ANY_OF:
            stands = wanted[np.arange(len(decided)), decided] | ~wanted.any(axis=-1)
            return np.where(stands, decided, np.argmax(wanted, axis=-1))
        if self.form is LabelForm.CLASSES:
            return np.where(wanted == NOT_COUNTED, decided, wanted)
        return wanted


@dataclass
class Scores:
    """The results of one model: a number for each item that counts. Only F1 needs `decided` and `wanted`."""

    scoring: ScoringRule
    values: list[float] = field(default_factory=list)
    decided: list[Array] = field(default_factory=list)
    wanted: list[Array] = field(default_factory=list)

    def add(self, answer: Array, label: Array) -> None:
        """Score one item. Raises DataError (DataInvalid) if the label does not fit the answer."""
        scoring = self.scoring
        truth = scoring.wanted(answer, label)
        if not scoring.decides:
            self.values.append(scoring.of_numbers(answer.astype(np.float64), truth))
            return
        decided = scoring.decided(answer)
        if scoring.form is LabelForm.ALL_OF:
            right = np.array([bool(np.array_equal(decided, truth))])
        elif scoring.form is LabelForm.ANY_OF:
            right = truth[np.arange(len(decided)), decided][scoring.counts(truth)]
        else:
            if decided.shape != truth.shape:
                raise DataError(
                    f"{truth.size} labels for {decided.size} decisions: check data.evaluation.labelKey and agreement.axis"
                )
            counts = scoring.counts(truth)
            decided, truth = decided[counts], truth[counts]
            right = decided == truth
        if not right.size:
            return  # nothing of this item counts
        self.values.append(float(np.mean(right)))
        if scoring.metric == Metric.F1:
            self.decided.append(decided)
            self.wanted.append(truth)

    def value(self) -> float:
        """The metric over all items. Raises DataError if no item counts."""
        if not self.values:
            raise DataError("every label is the value that is ignored")
        if self.scoring.metric == Metric.F1:
            return float(Confusion.of([self]).f1(0, self.scoring.average))
        return float(np.mean(self.values))


def drop(original: Scores, candidate: Scores, alpha: float) -> Interval | None:
    """The interval of the candidate's drop compared with the original; positive means worse. None if there are too few items."""
    metric = original.scoring.metric
    original_values, candidate_values = np.asarray(original.values), np.asarray(candidate.values)
    if metric == Metric.F1:
        return _f1_drop(original, candidate, alpha)
    if metric == Metric.MEAN_SQUARED_ERROR:
        return mean_interval(candidate_values - original_values, alpha)
    if metric == Metric.ACCURACY and np.isin(original_values, (0, 1)).all() and np.isin(candidate_values, (0, 1)).all():
        flipped = flips(original, candidate)
        return tango(flipped.worse, flipped.better, len(original_values), alpha)
    return mean_interval(original_values - candidate_values, alpha)


def flips(original: Scores, candidate: Scores) -> Flips:
    """The number of items on which exactly one of the two is right, in each direction."""
    original_values, candidate_values = np.asarray(original.values), np.asarray(candidate.values)
    return Flips(
        worse=int(np.sum((original_values == 1) & (candidate_values < 1))),
        better=int(np.sum((original_values < 1) & (candidate_values == 1))),
    )


@dataclass(frozen=True)
class Confusion:
    """Counts from which F1 follows. `counts[model, group, class]` holds true positives, false positives, false negatives."""

    counts: Array

    @classmethod
    def of(cls, models: Sequence[Scores]) -> Confusion:
        """Counts of several models on the same items."""
        if models[0].scoring.form is LabelForm.ALL_OF:
            return cls(_hot_counts(models))
        group = groups_of(len(models[0].decided))
        sizes = [len(wanted) for wanted in models[0].wanted]
        group = np.repeat(group, sizes)
        truth = np.concatenate(models[0].wanted)
        answers = [np.concatenate(model.decided) for model in models]
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
        """F1 of a model over all groups, or over those that are drawn along the last axis. Classes that never occur do not count."""
        chosen = self.counts[model] if drawn is None else self.counts[model][drawn]
        total = chosen.sum(axis=-3)
        if average == Average.MICRO:
            total = total.sum(axis=-2, keepdims=True)
        elif average == Average.BINARY:
            total = total[..., -1:, :]  # of two classes, the greater is the positive one
        weight = 2 * total[..., 0] + total[..., 1] + total[..., 2]
        scores = ratio(2 * total[..., 0], weight, 0.0)
        return np.asarray(scores.sum(axis=-1) / np.maximum((weight > 0).sum(axis=-1), 1))


def _hot_counts(models: Sequence[Scores]) -> Array:
    """The counts for labels with several classes per item; a class that is neither in the label nor found does not count."""
    truth = np.stack(models[0].wanted)
    decided = [np.stack(model.decided) for model in models]
    cases = [np.stack((each & truth, each & ~truth, ~each & truth), axis=-1) for each in decided]
    return np.stack([by_group(each) for each in cases])


def _f1_drop(original: Scores, candidate: Scores, alpha: float) -> Interval | None:
    pairs = zip(original.decided, candidate.decided, strict=True)
    if all(np.array_equal(*pair) for pair in pairs):
        # Nothing flipped, so a bootstrap would say [0, 0] on any number of items: as for Accuracy, the score interval does not.
        return tango(0, 0, len(original.decided), alpha) if original.decided else None
    confusion = Confusion.of([original, candidate])
    average = original.scoring.average
    return bca(
        confusion.counts.shape[1],
        lambda drawn: confusion.f1(0, average, drawn) - confusion.f1(1, average, drawn),
        alpha,
        batch=draws_at_once(confusion.counts[0].size),
    )


# ------------------------------------------------------------------------------------------------------------------- changes


@dataclass
class Changes:
    """How much a candidate's answers differ from the original's, right or wrong. This includes changes that cancel out in the metric.

    Decisions: the share of those that differ, among those that count. Cosine: 1 - cosine. Numbers: the squared difference, in units of the
    original's variance over the items.
    """

    scoring: ScoringRule
    values: list[float] = field(default_factory=list)
    sums: Array | None = None
    squares: Array | None = None

    def add(self, original: Array, candidate: Array, label: Array) -> None:
        """Compare the answers to one item."""
        scoring = self.scoring
        if not scoring.decides:
            self._add_distance(original, candidate)
            return
        original_decisions, candidate_decisions = scoring.decided(original), scoring.decided(candidate)
        if scoring.form is LabelForm.ALL_OF:
            self.values.append(float(not np.array_equal(original_decisions, candidate_decisions)))
            return
        counts = scoring.counts(scoring.wanted(original, label))
        if original_decisions[counts].size:
            self.values.append(float(np.mean(original_decisions[counts] != candidate_decisions[counts])))

    def interval(self, alpha: float) -> Interval | None:
        """The interval of the changed share. None if there are too few items."""
        values = np.asarray(self.values)
        if not len(values):
            return None
        if self.scoring.decides:
            return share_interval(values, alpha)
        if self.scoring.metric == Metric.MEAN_SQUARED_ERROR:
            assert self.sums is not None and self.squares is not None
            variance = float(np.mean(self.squares - self.sums**2 / len(values)))
            if variance > 0:
                values = values * len(values) / variance
            elif values.any():
                values = np.ones_like(values)  # the original does not vary, the candidate does
        interval = mean_interval(values, alpha)
        return None if interval is None else clipped(interval)

    def _add_distance(self, original: Array, candidate: Array) -> None:
        left, right = original.astype(np.float64), candidate.astype(np.float64)
        value = self.scoring.of_numbers(left, right)
        if self.scoring.metric == Metric.COSINE_SIMILARITY:
            self.values.append(1 - value)
            return
        self.values.append(value)
        self.sums = left if self.sums is None else self.sums + left
        self.squares = left**2 if self.squares is None else self.squares + left**2


def share_interval(shares: Array, alpha: float) -> Interval | None:
    """The interval of the mean of shares, one for each item. None if there are too few items."""
    if np.isin(shares, (0, 1)).all():
        return clipped(tango(int(shares.sum()), 0, len(shares), alpha))
    interval = mean_interval(shares, alpha)
    return None if interval is None else clipped(interval)


class OtherDecisions:
    """Changed decisions in outputs without labels, for example the classes of a second head.

    `rules`: how those outputs are compared; only TopOne has decisions.
    """

    def __init__(self, rules: Mapping[str, Comparison]) -> None:
        self._rules = {name: rule for name, rule in rules.items() if rule.mode == AgreementMode.TOP_ONE}
        self._shares: dict[str, list[float]] = {name: [] for name in self._rules}

    def add(self, original: Mapping[str, Array], candidate: Mapping[str, Array]) -> None:
        """Compare the answers to one item."""
        for name, rule in self._rules.items():
            original_decisions, candidate_decisions = (
                decisions(side[name], rule.axis, rule.threshold) for side in (original, candidate)
            )
            if original_decisions.shape != candidate_decisions.shape:
                self._shares[name].append(1.0)
            elif original_decisions.size:
                self._shares[name].append(float(np.mean(original_decisions != candidate_decisions)))

    def worst(self, changed: Interval | None, alpha: float) -> Interval | None:
        """The changed share of the output with the highest upper end; `changed` is that of the labelled output."""
        intervals = [share_interval(np.asarray(shares), alpha) for shares in self._shares.values() if shares]
        return max(
            (interval for interval in (changed, *intervals) if interval is not None),
            key=lambda interval: interval.high,
            default=None,
        )
