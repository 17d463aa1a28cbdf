"""The metrics of a canary's analysis: one module for each, one line here that registers it, and a field of AnalysisSpec that enables it."""

from __future__ import annotations

from fettle.plan.rollout.metrics import agreement, latency, success_rate
from fettle.plan.rollout.metrics.base import AnalysisMetric, MetricMeasurement, MetricWindow

METRICS: tuple[AnalysisMetric, ...] = (
    success_rate.metric,
    latency.metric,
    latency.ratio_metric,
    agreement.metric,
)


def measurements(window: MetricWindow) -> list[MetricMeasurement]:
    """The measurement of each enabled metric in a window."""
    return [measured for metric in METRICS if (measured := metric(window)) is not None]
