"""The interface of an analysis metric: a function from the traffic of a window to a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fettle.api.modeldeployment import AnalysisSpec
from fettle.api.modeldeployment_status import MetricRecord, Verdict
from fettle.api.reasons import Reason
from fettle.api.text import significant
from fettle.plan.rollout.window_totals import Doubt, Traffic


@dataclass(frozen=True)
class MetricWindow:
    """The input of a metric. `stable`: None if no stable pod serves. `doubts`: why pods cannot compare their answers."""

    spec: AnalysisSpec
    canary: Traffic
    stable: Traffic | None
    doubts: tuple[Doubt, ...] = ()


@dataclass(frozen=True)
class MetricMeasurement:
    """The result of one metric: its verdict and message, with value, bound and sample count. Without `metric`, it is an event, such as a crash.

    `reason` is used if the verdict is inconclusive.
    """

    verdict: Verdict
    message: str
    reason: Reason = Reason.ANALYSIS_INCONCLUSIVE
    metric: str = ""
    value: float | None = None
    bound: float = 0.0
    samples: int = 0

    def record(self) -> MetricRecord:
        """The record for the status, with four significant digits."""
        value = significant(self.value) if self.value is not None else None
        bound = significant(self.bound)
        return MetricRecord(metric=self.metric, verdict=self.verdict, value=value, bound=bound, samples=self.samples)


AnalysisMetric = Callable[[MetricWindow], MetricMeasurement | None]
"""Returns None if the spec does not enable the metric, or if there is nothing to compare with."""
