"""A percentile of the canary's latency, compared with a bound and with the stable revision's in the same window."""

from __future__ import annotations

from dataclasses import replace

from fettle.api.bounds import RUNS_NEEDED
from fettle.api.modeldeployment import LatencySpec
from fettle.api.modeldeployment_status import Verdict
from fettle.api.text import counted, rounded
from fettle.plan.rollout.metrics.base import MetricMeasurement, MetricWindow
from fettle.plan.rollout.window_totals import Traffic


def metric(window: MetricWindow) -> MetricMeasurement | None:
    """`analysis.latency.maxMilliseconds`."""
    spec = window.spec.latency
    if spec is None or spec.max_milliseconds is None:
        return None
    bound = spec.max_milliseconds
    return latency(spec, bound, f"{bound:g} ms", window.spec.min_requests, window.canary)


def ratio_metric(window: MetricWindow) -> MetricMeasurement | None:
    """`analysis.latency.maxRatioToStable`."""
    spec = window.spec.latency
    if spec is None or spec.max_ratio_to_stable is None or window.stable is None:
        return None
    return latency_ratio(spec, spec.max_ratio_to_stable, window.spec.min_requests, window.canary, window.stable)


def latency(
    spec: LatencySpec, bound: float, name: str, min_requests: int, canary: Traffic, stable: Traffic | None = None
) -> MetricMeasurement:
    """The percentile, compared with `bound` milliseconds, which `name` describes; `stable`: the traffic that the bound is from, if any.

    The verdict is bad as soon as more requests are slower than the percentile allows in a full sample: no later request could change that.
    """
    needed = max(min_requests, RUNS_NEEDED[spec.percentile])
    count, slower = canary.answers, canary.slower(bound)
    bad = count >= min_requests and slower > (100 - spec.percentile) / 100 * max(count, needed)
    if not bad and count < needed:
        verdict, text = Verdict.PENDING, f"{count} of {needed} answered requests needed for p{spec.percentile} latency"
    else:
        counts = counted(count, "request") + (f", {slower} slower" if bad else "")
        if stable is not None:
            counts = f"canary {counts}; stable {counted(stable.answers, 'request')}"
        verdict, sign = (Verdict.BAD, ">") if bad else (Verdict.GOOD, "within")
        text = f"p{spec.percentile} latency {rounded(canary.percentile(spec.percentile))} ms {sign} {name} ({counts})"
    value = canary.percentile(spec.percentile) if count else None
    return MetricMeasurement(
        verdict, text, metric=f"p{spec.percentile}Milliseconds", value=value, bound=bound, samples=count
    )


def latency_ratio(
    spec: LatencySpec, ratio: float, min_requests: int, canary: Traffic, stable: Traffic
) -> MetricMeasurement:
    """The percentile, compared with the stable revision's in the same window."""
    needed = max(min_requests, RUNS_NEEDED[spec.percentile])
    metric = f"p{spec.percentile}RatioToStable"
    if stable.answers < needed:
        text = f"the stable revision answered {stable.answers} of {needed} requests needed for the comparison"
        return MetricMeasurement(Verdict.PENDING, text, metric=metric, bound=ratio, samples=canary.answers)
    base = stable.percentile(spec.percentile)
    name = f"{ratio:g} x stable's {rounded(base)} ms"
    measured = latency(spec, ratio * base, name, min_requests, canary, stable)
    value = measured.value / base if measured.value is not None and base > 0 else None
    return replace(measured, metric=metric, value=value, bound=ratio)
