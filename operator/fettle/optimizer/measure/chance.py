"""The score of a constant predictor: evidence on which it is as good as the original proves nothing about a candidate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fettle.api import metrics
from fettle.api.labels import LabelForm
from fettle.api.vocabulary import Average, Metric
from fettle.errors import DataError
from fettle.optimizer.measure.metrics import Scores, ScoringRule
from fettle.optimizer.measure.misplaced import described, misplaced
from fettle.runtimes.base import Array

FEWEST = 10  # items from which a constant predictor says something; fewer certify nothing lossy anyhow
FEWEST_SHUFFLED = 20
FEW_DECISIONS = 1000  # counted one by one
LARGEST_CLASS = 1 << 31
SURE = 1.645  # standard deviations: as good a match of answers and labels comes by chance in 5 % of the orders


@dataclass
class Chance:
    """Counts over the items that give the metric of the best constant predictor, and how well answers match labels in random order."""

    scoring: ScoringRule
    items: int = 0
    decisions: int = 0
    matches: int = 0
    shares: dict[Hashable, float] = field(default_factory=dict)  # by label: its share of each item's labels, summed up
    labels: Counter[Hashable] = field(default_factory=Counter)
    answers: Counter[Hashable] = field(default_factory=Counter)
    # (label, answer), of one class a decision.
    pairs: Counter[tuple[Hashable, Hashable]] = field(default_factory=Counter)
    sums: Array | None = None  # of the labels, by element
    squares: Array | None = None

    def add(self, answer: Array, label: Array) -> None:
        """Take one item into account, as `Scores.add` does."""
        truth = self.scoring.wanted(answer, label)
        if not self.scoring.decides:
            self._add_numbers(truth)
            return
        decided = self.scoring.decided(answer)
        if self.scoring.form is LabelForm.ALL_OF:
            self._count(np.array([decided.tobytes().hex()]), np.array([truth.tobytes().hex()]))
        elif self.scoring.form is LabelForm.ANY_OF:
            counts = self.scoring.counts(truth)
            self._count_any(decided[counts], truth[counts])
        else:
            counts = self.scoring.counts(truth)
            self._count(decided[counts], truth[counts])
            self.pairs.update(_paired(truth[counts], decided[counts]))

    def constant(self) -> float | None:
        """The metric of the best constant predictor on these items; None if it is not defined."""
        metric = self.scoring.metric
        if not self.items:
            return None
        if metric == Metric.MEAN_SQUARED_ERROR:
            assert self.sums is not None and self.squares is not None
            return float(np.mean(self.squares / self.items - (self.sums / self.items) ** 2))
        if metric == Metric.COSINE_SIMILARITY:
            assert self.sums is not None
            return float(np.mean(np.linalg.norm(self.sums, axis=-1))) / self.items
        if metric == Metric.F1:
            return self._constant_f1()
        return float(max(self.shares.values())) / self.items

    def shuffled(self) -> float | None:
        """By how many standard deviations the matches of answers and labels exceed those in random order.

        None for metrics without decisions. All decisions of an item count as one, which makes the number smaller rather than larger.
        """
        count = self.decisions
        if not self.scoring.decides or count < 2:
            return None
        both = [(self.answers[key], times) for key, times in self.labels.items()]
        products = np.array([answered * labelled for answered, labelled in both], dtype=np.float64)
        expected = float(products.sum()) / count
        if self.scoring.form is LabelForm.ANY_OF:
            share = min(expected / count, 1.0)
            variance = count * share * (1 - share)
        else:
            pairs = np.array(
                [answered * (answered - 1) * labelled * (labelled - 1) for answered, labelled in both], dtype=np.float64
            )
            total = float(products.sum())
            variance = expected + (total**2 - float((products**2).sum()) + float(pairs.sum())) / (count * (count - 1))
            variance -= expected**2
        if variance <= 0:
            return 0.0
        return (self.matches - expected) / math.sqrt(variance) * math.sqrt(self.items / count)

    def _count(self, decided: Array, truth: Array) -> None:
        if not truth.size:
            return
        self.items += 1
        self.decisions += truth.size
        self.matches += int(np.sum(decided == truth))
        self.answers.update(_counted(decided))
        times_by_label = _counted(truth)
        self.labels.update(times_by_label)
        for key, times in times_by_label.items():
            self.shares[key] = self.shares.get(key, 0.0) + times / truth.size

    def _count_any(self, decided: Array, truth: Array) -> None:
        if not len(truth):
            return
        self.items += 1
        self.decisions += len(decided)
        self.matches += int(truth[np.arange(len(decided)), decided].sum())
        self.answers.update(decided.tolist())
        for key, times in enumerate(truth.sum(axis=0).tolist()):
            self.labels[key] += times
            self.shares[key] = self.shares.get(key, 0.0) + times / len(decided)

    def _add_numbers(self, truth: Array) -> None:
        self.items += 1
        if self.scoring.metric == Metric.COSINE_SIMILARITY:
            norm = np.linalg.norm(truth, axis=-1, keepdims=True) if truth.ndim else np.abs(truth)
            truth = truth / np.where(norm > 0, norm, 1)
        self.sums = truth if self.sums is None else self.sums + truth
        self.squares = truth**2 if self.squares is None else self.squares + truth**2

    def _constant_f1(self) -> float:
        if self.scoring.form is LabelForm.ALL_OF:
            return 0.0  # nothing found is the usual constant; always everything is told by the accuracy of the sets
        present = len(self.labels)
        each = {key: 2 * times / (self.decisions + times) for key, times in self.labels.items()}
        average = self.scoring.average
        if average == Average.MICRO:
            return max(self.labels.values()) / self.decisions
        if average == Average.BINARY:
            # Of two classes, the greater is the positive one.
            return float(each[max(each, key=lambda key: str(key).zfill(20))])
        return float(max(each.values())) / present


def _counted(values: Array) -> dict[Hashable, int]:
    known, times = np.unique(values, return_counts=True)
    return dict(zip(known.tolist(), times.tolist(), strict=True))


def _paired(labels: Array, answers: Array) -> Mapping[tuple[Hashable, Hashable], int]:
    """How often each answer is given to each label."""
    numbers = labels.dtype.kind in "iu" and answers.dtype.kind in "iu" and labels.size > FEW_DECISIONS
    if not numbers or answers.min() < 0 or answers.max() > LARGEST_CLASS:
        return Counter(zip(labels.tolist(), answers.tolist(), strict=True))
    known, places = np.unique(labels, return_inverse=True)  # a picture has a million of them
    codes, times = np.unique(places.astype(np.int64) * (int(answers.max()) + 1) + answers, return_counts=True)
    split = (divmod(code, int(answers.max()) + 1) for code in codes.tolist())
    return {(known[place].item(), answer): count for (place, answer), count in zip(split, times.tolist(), strict=True)}


def refuse_chance(scores: Scores, chance: Chance, sample: bool = False) -> None:
    """Raises DataError (DataInvalid) if labels seem to be shifted or permuted, or match the original's answers no better than a constant
    answer does, or than labels in random order.

    A `sample` of the items is refused only if it fails both of the last two tests, since all items together may still pass.
    """
    moved = misplaced(chance.pairs)
    if moved:
        advice = "correct them: the order of data.evaluation.classes, labelOffset, or names of folders in that order"
        raise _refusal(scores, described(moved), advice)
    value, constant, decides = scores.value(), chance.constant(), scores.scoring.decides
    if constant is None:
        return
    metric = scores.scoring.metric
    better = value < constant if metrics.entry(metric).lower_is_better else value > constant
    shuffled = chance.shuffled()
    by_chance = shuffled is not None and chance.items >= FEWEST_SHUFFLED and shuffled < SURE
    no_better = not better and (chance.items >= FEWEST or (decides and value == 0 and chance.items > 1))
    if not (no_better or by_chance) or (sample and decides and not (no_better and by_chance)):
        return
    verdict = (
        f"no better than the best constant predictor ({constant:.4g})"
        if no_better
        else "no better than with shuffled labels"
    )
    advice = "check labels and items (labelOffset, classes, preprocess), or leave the labels out to be judged by agreement with the original"
    if metric == Metric.ACCURACY and value > 0.5:
        advice += "; if one class is rare, set metric: F1 and average: Binary"
    raise _refusal(scores, f"{verdict}: such items prove nothing", advice)


def _refusal(scores: Scores, verdict: str, advice: str) -> DataError:
    """An error with the original's score, what is wrong with it, and how the labels were read."""
    metric, value = scores.scoring.metric, scores.value()
    worth = f"the original's {metric} is {value:.4g}"
    if scores.scoring.decides:
        right = sum(score == 1 for score in scores.values)
        worth = f"the original is right on {right} of {len(scores.values)} items ({metric} {value:.4g})"
    return DataError(f"{worth}, {verdict}. Labels were interpreted as {scores.scoring.reader.reading.told}; {advice}")
