"""What an analysis metric is: a function from the traffic of a window to a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fettle.api.modeldeployment import AnalysisSpec
from fettle.api.modeldeployment_status import MetricRecord, Verdict
from fettle.api.reasons import Reason
from fettle.plan.rollout.window_totals import Doubt, Traffic


@dataclass(frozen=True)
class MetricWindow:
    """A window as a metric reads it. `stable`: None where no stable pod serves. `doubts`: why pods cannot compare their answers."""

    spec: AnalysisSpec
    canary: Traffic
    stable: Traffic | None
    doubts: tuple[Doubt, ...] = ()


@dataclass(frozen=True)
class MetricMeasurement:
    """What one metric says: verdict and why, with value, bound and sample count; without `metric` it is no figure.

    `reason` is that of an inconclusive one.
    """

    verdict: Verdict
    message: str
    reason: Reason = Reason.ANALYSIS_INCONCLUSIVE
    metric: str = ""
    value: float | None = None
    bound: float = 0.0
    samples: int = 0

    def record(self) -> MetricRecord:
        """As status keeps it, four significant digits."""
        value = float(f"{self.value:.4g}") if self.value is not None else None
        bound = float(f"{self.bound:.4g}")
        return MetricRecord(metric=self.metric, verdict=self.verdict, value=value, bound=bound, samples=self.samples)


AnalysisMetric = Callable[[MetricWindow], MetricMeasurement | None]
"""None: the spec does not ask for it, or there is nothing to compare with."""
