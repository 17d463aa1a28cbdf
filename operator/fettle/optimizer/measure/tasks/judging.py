"""The original judged by its task's metric, and candidates beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fettle.api.measured import Interval
from fettle.api.reasons import Reason
from fettle.api.vocabulary import Metric
from fettle.errors import DataError, RuntimeFailure
from fettle.optimizer.measure.chance import FEWEST
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Pool, Scorer, TaskMetric, drop
from fettle.optimizer.measure.tasks.sample import ITEMS, LabelSample, size_of, tried
from fettle.optimizer.statistics import clipped, least_share
from fettle.runtimes.base import Array

SAME = 1 - 1e-9
HELD_BYTES = 64 << 20  # of what the original says: more is decoded again for each candidate
LEAST_ITEMS = 5  # in which the original finds a class: fewer say nothing of it
MOST_LOST = 0.1  # of these items
ERROR = 0.05  # that any class is found to be lost by mistake


@dataclass(frozen=True)
class TaskVerdict:
    """What a candidate is worth. `changed`: with labels, how much of what the original says it says otherwise.

    `items`: how many say anything. `gone`: a class or character that the candidate loses in many of the items in which the original finds it,
    or a channel or tag that it no longer follows, for a person. `details`: what else the metric tells.
    """

    value: float
    drop: Interval | None
    changed: Interval | None
    items: int
    gone: str | None = None
    details: str | None = None


def refuse_unlike_itself(name: Metric, metric: TaskMetric, itself: Pool) -> None:
    """The metric must see that the original answers as itself. Raises DataError."""
    value = itself.whole()
    if not value >= SAME:
        raise DataError(
            f"{name} of the original against itself is {value:.4g}, expected 1: its answers are not {metric.told}, or hold NaN; "
            "choose another metric"
        )


class TaskReference:
    """The original's own scores: by labels, where there are any, and against itself."""

    def __init__(self, name: Metric, metric: TaskMetric, answers: Iterable[Answer], labels: Array | None) -> None:
        """Raises DataError where labels do not fit, where nothing is to be found, or where any other item's label fits as well."""
        self.name, self.metric = name, metric
        self._held: list[Any] = []
        self._agreement = metric.changes if labels is not None else lambda: metric.scorer(labelled=False)
        try:
            self._score(answers, labels)
        except (ValueError, IndexError, TypeError) as error:
            told = "answers and labels" if labels is not None else "answers"
            raise DataError(f"{name} cannot read the {told} of every item ({error}): choose another metric") from error

    def _score(self, answers: Iterable[Answer], labels: Array | None) -> None:
        metric, room = self.metric, HELD_BYTES
        itself, labelled = self._agreement(), metric.scorer(labelled=True)
        beside, before = self._agreement(), None  # each item beside the one before it
        every = max(1, -(-len(labels) // ITEMS)) if labels is not None else 1
        sample = LabelSample(self.name, metric, whole=every == 1)
        for number, answer in enumerate(answers):
            prediction = metric.decode(answer)
            room -= size_of(prediction)
            if room >= 0:
                self._held.append(prediction)
            itself.add(prediction, prediction)
            if before is not None:
                tried(beside, prediction, before)
            before = prediction
            if labels is not None:
                truth = metric.read(np.asarray(labels[number]), prediction)
                labelled.add(prediction, truth)
                if number % every == 0:  # items may lie class by class
                    sample.add(prediction, truth)
        self._itself = itself.pool()
        self._refuse_blind(beside)
        self._labelled = labelled.pool() if labels is not None else None
        if self._labelled is not None:
            self._refuse_constant(self._labelled)
            sample.refuse()

    @property
    def value(self) -> float:
        """The metric by the labels; against itself 1."""
        return (self._labelled or self._itself).whole()

    def decoded(self, number: int, answer: Answer) -> Any:
        """What the original predicts for an item, decoded once where there is room."""
        return self._held[number] if number < len(self._held) else self.metric.decode(answer)

    @property
    def constant(self) -> float | None:
        """The metric of the best constant predictor by the labels, where the metric knows it."""
        return self._labelled.constant if self._labelled is not None else None

    @property
    def told(self) -> str:
        """What the original's answers were taken for, and what else the metric tells of them."""
        details = self._labelled.details if self._labelled is not None else None
        return f"{self.metric.told}; {details}" if details else self.metric.told

    def trial(self) -> Trial:
        """For one candidate."""
        return Trial(self, self._agreement(), self.metric.scorer(labelled=True) if self._labelled is not None else None)

    def verdict(self, agreement: Pool, labelled: Pool | None, alpha: float) -> TaskVerdict:
        """What a candidate with these scores is worth."""
        lost = drop(self._itself, agreement, alpha)
        changed = clipped(lost) if lost is not None else None
        if labelled is None or self._labelled is None:
            return TaskVerdict(agreement.whole(), changed, None, self._itself.items, agreement.gone, agreement.details)
        by_labels = drop(self._labelled, labelled, alpha)
        items = min(self._labelled.items, self._itself.items)
        # Where nothing can be said of what changed, nothing is proved of what was lost.
        return TaskVerdict(
            labelled.whole(),
            by_labels if changed is not None else None,
            changed,
            items,
            agreement.gone,
            labelled.details,
        )

    def _refuse_blind(self, beside: Scorer) -> None:
        """The metric must see that the original answers as itself, and that it answers other items otherwise."""
        refuse_unlike_itself(self.name, self.metric, self._itself)
        if self._itself.items < FEWEST:
            return
        try:
            others = beside.pool().whole()
        except (DataError, ValueError):
            return  # no item has the size of the one before
        if others >= SAME:
            raise DataError(
                f"by {self.name} the original gives the same answer for all {self._itself.items} items, so a candidate that ignores its input "
                "would pass: such items prove nothing"
            )

    def _refuse_constant(self, labelled: Pool) -> None:
        """The original must know more than the best answer that ignores the input, where the metric knows what that is worth."""
        value, constant = labelled.whole(), labelled.constant
        if labelled.items >= FEWEST and constant is not None and not value > constant:
            raise DataError(
                f"the original's {self.name} is {value:.4g}, no better than the best constant predictor ({constant:.4g}): such items prove "
                f"nothing. Its answers were interpreted as {self.metric.told}; check labels and items, or leave the labels out"
            )


@dataclass
class Losses:
    """By class or character, in how many items the original finds it, and in how many of these the candidate loses it."""

    found: Counter[Hashable] = field(default_factory=Counter)
    lost: Counter[Hashable] = field(default_factory=Counter)

    def worst(self) -> tuple[Hashable, int, int] | None:
        """The one that is lost in the largest share of its items, and both counts, if that share is proved to be above `MOST_LOST`."""
        several = {key: items for key, items in self.found.items() if items >= LEAST_ITEMS}
        alpha = ERROR / max(len(several), 1)
        for key, items in sorted(several.items(), key=lambda each: -self.lost[each[0]] / each[1]):
            if self.lost[key] <= MOST_LOST * items:
                break
            if least_share(self.lost[key], items, alpha) > MOST_LOST:
                return key, self.lost[key], items
        return None


@dataclass
class Trial:
    """One candidate's answers, scored beside the original's."""

    reference: TaskReference
    _agreement: Scorer
    _labelled: Scorer | None
    _losses: Losses = field(default_factory=Losses)
    _items: int = 0

    def add(self, original: Answer, candidate: Answer, label: Array) -> None:
        """Score the answer to the next item. Raises DataError."""
        metric = self.reference.metric
        try:
            prediction, before = metric.decode(candidate), self.reference.decoded(self._items, original)
            self._items += 1
            self._agreement.add(prediction, before)
            truth = before
            if self._labelled is not None:
                truth = metric.read(label, before)
                self._labelled.add(prediction, truth)
            kept = metric.kept(prediction, truth)
            known = metric.kept(before, truth) if self._labelled is not None else dict.fromkeys(kept, True)
        except (ValueError, IndexError, TypeError) as error:
            message = f"{self.reference.name} cannot compare its answer with the original's ({error})"
            raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID) from error
        found = [key for key, right in known.items() if right]
        self._losses.found.update(found)
        self._losses.lost.update(key for key in found if not kept[key])

    def verdict(self, alpha: float) -> TaskVerdict:
        """When all items are in."""
        labelled = self._labelled.pool() if self._labelled is not None else None
        verdict = self.reference.verdict(self._agreement.pool(), labelled, alpha)
        return replace(verdict, gone=verdict.gone or self._gone())

    def _gone(self) -> str | None:
        worst = self._losses.worst()
        if worst is None:
            return None
        key, lost, items = worst
        what = key if isinstance(key, str) and len(key) > 1 else f"class or character {key!r}"
        return (
            f"it loses {what} in {lost} of {items} items in which the original finds it: {self.reference.name} does not show the loss of "
            "rare or small things; quantize fewer operators"
        )
