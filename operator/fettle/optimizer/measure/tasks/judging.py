"""The original judged by its task's metric, and candidates beside it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fettle.api.optimizedmodel_status import Interval
from fettle.api.reasons import Reason
from fettle.api.vocabulary import Metric
from fettle.errors import DataError, RuntimeFailure
from fettle.optimizer.measure.chance import FEWEST
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.remains import Decided
from fettle.optimizer.measure.tasks.base import Pool, Scorer, TaskMetric, drop
from fettle.optimizer.statistics import clipped

Array = np.ndarray[Any, Any]

EXAMPLES = 32  # answers that a metric is fitted to
SAME = 1 - 1e-9


@dataclass(frozen=True)
class Verdict:
    """What a candidate is worth. `changed`: with labels, how much of what the original says it says otherwise.

    `gone`: a class or character that the original finds in several items and the candidate in none, for a person; not looked for with
    labels, which judge what that costs, but by metrics in whose sum a dead channel or a rare tag is lost. `details`: what else the metric tells.
    """

    value: float
    drop: Interval | None
    changed: Interval | None
    gone: str | None = None
    details: str | None = None


class TaskReference:
    """The original's own scores: by labels, where there are any, and against itself."""

    def __init__(self, name: Metric, metric: TaskMetric, answers: Iterable[Answer], labels: Array | None) -> None:
        """Raises DataError where labels do not fit, where nothing is to be found, or where any other item's label fits as well."""
        self.name, self.metric = name, metric
        try:
            self._score(answers, labels)
        except (ValueError, IndexError, TypeError) as error:
            told = "answers and labels" if labels is not None else "answers"
            raise DataError(f"{name} cannot read the {told} of every item ({error}): choose another metric") from error

    def _score(self, answers: Iterable[Answer], labels: Array | None) -> None:
        metric = self.metric
        itself, labelled, moved = metric.scorer(False), metric.scorer(True), metric.scorer(True)
        beside, before = metric.scorer(False), None  # each item beside the one before it
        for number, answer in enumerate(answers):
            said = metric.decode(answer)
            itself.add(said, said)
            if before is not None:
                with suppress(DataError, ValueError):  # the one before may have another size
                    beside.add(said, before)
            before = said
            if labels is not None:
                labelled.add(said, metric.read(np.asarray(labels[number]), answer))
                with suppress(DataError):  # the next item's may have another size
                    moved.add(said, metric.read(np.asarray(labels[(number + 1) % len(labels)]), answer))
        self._itself = itself.pool()
        self._refuse_blind(beside)
        self._labelled = labelled.pool() if labels is not None else None
        if self._labelled is not None:
            self._refuse_chance(self._labelled, moved)

    @property
    def value(self) -> float:
        """The metric by the labels; against itself 1."""
        return (self._labelled or self._itself).whole()

    @property
    def constant(self) -> float | None:
        """The metric of the best constant answer by the labels, where the metric knows it."""
        return self._labelled.constant if self._labelled is not None else None

    @property
    def told(self) -> str:
        """What the original's answers were taken for, and what else the metric tells of them."""
        details = self._labelled.details if self._labelled is not None else None
        return f"{self.metric.told}; {details}" if details else self.metric.told

    def trial(self) -> Trial:
        """For one candidate."""
        labelled = self._labelled is not None
        return Trial(self, self.metric.scorer(False), self.metric.scorer(True) if labelled else None)

    def verdict(self, agreement: Pool, labelled: Pool | None, alpha: float) -> Verdict:
        """What a candidate with these scores is worth."""
        lost = drop(self._itself, agreement, alpha)
        changed = clipped(lost) if lost is not None else None
        if labelled is None or self._labelled is None:
            return Verdict(agreement.whole(), changed, None, agreement.gone, agreement.details)
        return Verdict(
            labelled.whole(), drop(self._labelled, labelled, alpha), changed, agreement.gone, labelled.details
        )

    def _refuse_blind(self, beside: Scorer) -> None:
        """The metric must see that the original answers as itself, and that it answers other items otherwise."""
        itself = self._itself.whole()
        if not itself >= SAME:
            raise DataError(
                f"{self.name} of the original against itself is {itself:.4g}, expected 1: its answers are not {self.metric.told}, or hold NaN; "
                "choose another metric"
            )
        if self._itself.items < FEWEST:
            return
        try:
            others = beside.pool().whole()
        except (DataError, ValueError):
            return  # no item has the size of the one before
        if others >= SAME:
            raise DataError(
                f"by {self.name} the original answers the same to all {self._itself.items} items, as a candidate that never looks at its input "
                "would: such items prove nothing"
            )

    def _refuse_chance(self, labelled: Pool, moved: Scorer) -> None:
        if labelled.items < FEWEST:
            return
        value = labelled.whole()
        if labelled.constant is not None and not value > labelled.constant:
            raise DataError(
                f"the original's {self.name} is {value:.4g}, no better than the best constant answer ({labelled.constant:.4g}): such items "
                f"prove nothing. Its answers were taken for {self.metric.told}; check labels and items, or leave the labels out"
            )
        try:
            chance = moved.pool().whole()
        except (DataError, ValueError):
            return  # no item took another's label
        if not value > chance:
            raise DataError(
                f"the original's {self.name} is {value:.4g}, no better than with each label at the next item ({chance:.4g}): such items "
                f"prove nothing. Its answers were taken for {self.metric.told}; check labels and items, or leave the labels out"
            )


@dataclass(frozen=True)
class Trial:
    """One candidate's answers, scored beside the original's."""

    reference: TaskReference
    _agreement: Scorer
    _labelled: Scorer | None
    _decided: Decided = field(default_factory=Decided)

    def add(self, original: Answer, candidate: Answer, label: Array) -> None:
        """Score the answer to the next item. Raises DataError."""
        metric = self.reference.metric
        try:
            said, truth = metric.decode(candidate), metric.decode(original)
            self._agreement.add(said, truth)
            self._decided.add(metric.values(truth), metric.values(said))
            if self._labelled is not None:
                self._labelled.add(said, metric.read(label, original))
        except (ValueError, IndexError, TypeError) as error:
            message = f"{self.reference.name} cannot compare its answer with the original's ({error})"
            raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID) from error

    def verdict(self, alpha: float) -> Verdict:
        """When all items are in."""
        labelled = self._labelled.pool() if self._labelled is not None else None
        verdict = self.reference.verdict(self._agreement.pool(), labelled, alpha)
        return verdict if labelled is not None else replace(verdict, gone=verdict.gone or self._gone())

    def _gone(self) -> str | None:
        missing = self._decided.missing()
        if missing is None:
            return None
        value, items = missing
        return (
            f"it never finds {value!r}, which the original finds in {items} items: what is rare is lost without being missed in "
            f"{self.reference.name}; provide labels to judge what that costs"
        )
