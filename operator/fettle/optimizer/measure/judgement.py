"""How a candidate's answers are judged: the figures that its row in status is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from fettle.api.measured import AgreementStatus, Flips, Interval, MetricValue
from fettle.api.vocabulary import Evidence
from fettle.optimizer.statistics import MINIMUM_GROUPS


@dataclass(frozen=True)
class Judgement:
    """The evaluation of a candidate's answers. `drop` is None if there are too few items (`too_few` says how many are needed).

    `gone`: which information of the original's answers is missing, as text, if nothing proves that this is acceptable. `details`: additional
    figures of the metric.
    """

    samples: int
    evidence: Evidence
    exact: bool
    accuracy: MetricValue
    drop: Interval | None
    agreement: AgreementStatus
    flips: Flips | None
    changed: Interval | None  # None without labels: the drop is that share then
    max_absolute_difference: float
    margins: dict[str, float] = field(default_factory=dict)  # by output: the margin above which a decision is confident
    no_evidence: str | None = None  # why these items prove nothing about a candidate whose answers may differ, as text
    gone: str | None = None
    informative: int | None = None  # number of samples that count for a task metric; None if all do
    details: str | None = None

    @property
    def too_few(self) -> str | None:
        """Why there is no interval, as text; None if there is one."""
        if self.drop is not None:
            return None
        what, found = "items", f"{self.samples}"
        if self.informative is not None:
            what, found = "items that contain something to find", f"{self.informative} of {self.samples}"
        return f"{self.accuracy.metric} needs at least {MINIMUM_GROUPS} {what} for an interval, found {found}"
