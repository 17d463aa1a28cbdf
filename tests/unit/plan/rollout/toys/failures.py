"""A toy metric: so many requests at most may fail in a window."""

from __future__ import annotations

from fettle.api.modeldeployment_status import Verdict
from fettle.plan.rollout.metrics.base import MetricMeasurement, MetricWindow


def metric(window: MetricWindow) -> MetricMeasurement | None:
    most = window.spec.max_failures  # type: ignore[attr-defined]  # a field that the test enters
    if most is None:
        return None
    failures = window.canary.errors
    good = failures <= most
    text = f"{failures} failures, {most} at most"
    verdict = Verdict.GOOD if good else Verdict.BAD
    return MetricMeasurement(
        verdict, text, metric="failures", value=failures, bound=most, samples=window.canary.requests
    )
