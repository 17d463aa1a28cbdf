"""The share of requests that the model answered. Every analysis checks it."""

from __future__ import annotations

from dataclasses import replace

from fettle.api.modeldeployment_status import Verdict
from fettle.api.text import counted
from fettle.plan.rollout.metrics.base import MetricMeasurement, MetricWindow
from fettle.plan.rollout.window_totals import Traffic


def metric(window: MetricWindow) -> MetricMeasurement:
    """`analysis.successRate`."""
    return success_rate(window.spec.success_rate.min, window.spec.min_requests, window.canary)


def success_rate(minimum: float, min_requests: int, canary: Traffic) -> MetricMeasurement:
    """The share of requests that the model answered."""
    rate = 1 - canary.errors / canary.requests if canary.requests else None
    if rate is None or canary.requests < min_requests:
        measured = MetricMeasurement(
            Verdict.PENDING, f"{canary.requests} of {min_requests} requests needed for the success rate"
        )
    else:
        good = rate >= minimum
        text = f"success rate {rate:.4f} {'>=' if good else '<'} {minimum:g} ({counted(canary.requests, 'request')}, {canary.errors} failed)"
        measured = MetricMeasurement(Verdict.GOOD if good else Verdict.BAD, text)
    return replace(measured, metric="successRate", value=rate, bound=minimum, samples=canary.requests)
