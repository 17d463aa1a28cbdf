"""Metric Ranking: are items in the right order by their score?

With labels of yes and no: area under the ROC curve, the share of pairs of a yes and a no in which the yes has the higher score. As agreement:
the share of all pairs that the original orders which are in that order; and of those across its top and its bottom tenth, the worst of the
three. A pair that has become a tie is half in order, as in the area under the curve.
T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27 (2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Collected, Likeness, Pool, Scorer, TaskMetric, shapes
from fettle.optimizer.statistics import Indices, groups_of, ratio, times
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

ENDS = 0.1  # share of the items at the top, and at the bottom, whose order against all others is looked at by itself


class Ranking(TaskMetric):
    """A score for each item."""

    def __init__(self, name: str, two: bool) -> None:
        self._name, self._two = name, two
        self.outputs = frozenset({name})
        score = "the second of two scores minus the first" if two else "a score"
        self.told = f"{score} in {name}, by which items are put in order"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Take one score, or the two of a classifier of yes and no. Raises DataError."""
        name = signature.judged_output(spec.output)
        first = examples[0][name]
        if not is_float(first) or any(
            answer[name].size not in (1, 2) or answer[name].size != first.size for answer in examples
        ):
            raise DataError(
                f"metric Ranking finds no score in {shapes({name: first})} (one item's answer): it needs one floating-point number per item, or "
                "the two of a yes-or-no classifier; name another output in data.evaluation.output"
            )
        return cls(name, first.size == 2)

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """One number may be anything."""
        return Likeness.NONE

    def decode(self, answer: Answer) -> float:
        """The score."""
        scores = answer[self._name].reshape(-1).astype(np.float64)
        return np.float64(scores[1] - scores[0]) if self._two else np.float64(scores[0])

    def read(self, label: Array, prediction: float) -> float:
        """1 for yes, 0 or -1 for no."""
        if label.size != 1 or label.dtype.kind not in "biuf" or label.reshape(-1)[0] not in (-1, 0, 1):
            raise DataError(
                f"metric Ranking needs 1 for yes and 0 or -1 for no as the label of an item, found {label.dtype} {list(label.shape)} "
                f"{label.reshape(-1)[:1].tolist()}: check data.evaluation.labelKey"
            )
        return float(label.reshape(-1)[0] == 1)

    def scorer(self, labelled: bool) -> Scorer:
        """Area under the curve, or pairs that are in the original's order."""
        return Collected(area_under_curve if labelled else same_order)


def area_under_curve(prediction: Sequence[float], truth: Sequence[float]) -> Pool:
    """Area under the ROC curve of scores beside labels of 0 and 1. Raises DataError where labels are all the same, or scores are no numbers."""
    scores, labels = np.array(prediction), np.array(truth)
    if not np.isfinite(scores).all():
        raise DataError(f"the scores of {int((~np.isfinite(scores)).sum())} of {len(scores)} items are NaN or infinite")
    if len(set(truth)) < 2:
        raise DataError(
            f"the labels of all {len(labels)} items are the same: Ranking needs items with yes and items with no"
        )
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))
    group, yes = groups_of(len(scores)), labels[order]
    groups = int(group.max()) + 1

    def value(drawn: Indices) -> Array:
        weights = times(drawn, groups)[..., group[order]]
        right, wrong = (np.add.reduceat(weights * side, starts, axis=-1) for side in (yes, 1 - yes))
        below = np.cumsum(wrong, axis=-1) - wrong
        pairs = right.sum(axis=-1) * wrong.sum(axis=-1)
        return ratio((right * (below + wrong / 2)).sum(axis=-1), pairs, 0.5)

    return Pool(len(scores), groups, scores, value, constant=0.5)


def same_order(prediction: Sequence[float], truth: Sequence[float]) -> Pool:
    """The worst share of pairs that are in the original's order: of all, across the top and across the bottom. Raises DataError where the
    original orders none.

    Where few items are a yes, hardly any pair has one in it: all of them could be at the wrong end, and nine of ten pairs be in order.
    """
    scores, original = np.array(prediction), np.array(truth)
    if not np.nanmax(original) > np.nanmin(original):
        raise DataError(
            f"the original gives the same score to all {len(scores)} items, so a candidate that ignores its input would pass"
        )
    wanted, right = _pairs(scores, original)

    def value(drawn: Indices) -> Array:
        weights = times(drawn, wanted.shape[1])
        both = [np.einsum("...g,...g->...", weights @ table, weights) for table in (*right, *wanted)]
        shares = [ratio(both[place], both[place + len(wanted)], 1.0) for place in range(len(wanted))]
        return np.asarray(np.min(shares, axis=0))

    return Pool(len(scores), wanted.shape[1], scores, value)


def _pairs(scores: Array, original: Array) -> tuple[Array, Array]:
    """How many pairs the original orders, and how many of those are in its order, by the groups of both: `[cuts, groups, groups]` each.

    `cuts`: all pairs; those of which one is among the original's top; those of which one is among its bottom. No pair is ever looked at by
    itself: there may be millions of items.
    """
    group = groups_of(len(scores))
    groups = int(group.max()) + 1
    low, high = np.quantile(original[np.isfinite(original)], (ENDS, 1 - ENDS))
    ends = (original >= min(high, np.nanmax(original)), original <= low)
    wanted, right = np.zeros((3, groups, groups)), np.zeros((3, groups, groups))
    for number in range(groups):
        lower = _Lower.of(np.flatnonzero(group == number), scores, original)
        counts = [lower.counts(np.ones(len(scores), bool)), *map(lower.counts, ends)]
        for cut, end in enumerate((None, *ends)):
            for table, every, inside in zip((wanted, right), counts[0], counts[cut], strict=True):
                across = every if end is None else np.where(end, every - inside, inside)
                table[cut, :, number] = np.bincount(group, weights=across, minlength=groups)
    return wanted, right


@dataclass(frozen=True)
class _Lower:
    """Some items, by the original's score, and of every item how many of them that puts below it (`below`), how many a candidate puts
    below it (`less`), and how many not above it (`most`). What is NaN is neither above nor below anything."""

    items: Array
    rank: Array  # of each of `items` by the candidate's score; -1 where that is NaN
    below: Array
    less: Array
    most: Array

    @classmethod
    def of(cls, some: Array, scores: Array, original: Array) -> _Lower:
        """Of the items at these places."""
        known = some[~np.isnan(original[some])]
        items = known[np.argsort(original[known], kind="stable")]
        scored = np.flatnonzero(~np.isnan(scores[items]))
        order = scored[np.argsort(scores[items[scored]], kind="stable")]
        rank = np.full(len(items), -1)
        rank[order] = np.arange(len(order))
        ladder = scores[items[order]]
        below = np.where(np.isnan(original), 0, np.searchsorted(original[items], original))
        less, most = (
            np.where(np.isnan(scores), 0, np.searchsorted(ladder, scores, side)) for side in ("left", "right")
        )
        return cls(items, rank, below, less, most)

    def counts(self, inside: Array) -> tuple[Array, Array]:
        """Of every item, how many of those `inside` the original puts below it, and how many of these the candidate does; a tie is half."""
        chosen = inside[self.items]
        marked = np.zeros((len(self.items) + 1, int(self.rank.max(initial=-1)) + 2))
        ranked = np.flatnonzero(chosen & (self.rank >= 0))
        marked[ranked + 1, self.rank[ranked] + 1] = 1
        table = marked.cumsum(axis=0).cumsum(axis=1)
        wanted = np.append(0, np.cumsum(chosen))[self.below]
        return wanted, (table[self.below, self.less] + table[self.below, self.most]) / 2
