"""A percentile of the canary's latency: against a bound, and against the stable revision's in the same window."""

from __future__ import annotations

from dataclasses import replace

from fettle.api.bounds import RUNS_NEEDED
from fettle.api.modeldeployment import LatencySpec
from fettle.api.modeldeployment_status import Verdict
from fettle.api.text import rounded
from fettle.plan.rollout.metrics.base import Finding, Seen
from fettle.plan.rollout.window_totals import Traffic


def metric(seen: Seen) -> Finding | None:
    """`analysis.latency.maxMilliseconds`."""
    spec = seen.spec.latency
    if spec is None or spec.max_milliseconds is None:
        return None
    bound = spec.max_milliseconds
    return latency(spec, bound, f"{bound:g} ms", seen.spec.min_requests, seen.canary)


def ratio_metric(seen: Seen) -> Finding | None:
    """`analysis.latency.maxRatioToStable`."""
    spec = seen.spec.latency
    if spec is None or spec.max_ratio_to_stable is None or seen.stable is None:
        return None
    return latency_ratio(spec, spec.max_ratio_to_stable, seen.spec.min_requests, seen.canary, seen.stable)


def latency(spec: LatencySpec, bound: float, name: str, min_requests: int, canary: Traffic) -> Finding:
    """The percentile against `bound` milliseconds, which `name` explains.

    Bad as soon as more requests are slower than the percentile allows in all that are needed: no later one could mend that.
    """
    needed = max(min_requests, RUNS_NEEDED[spec.percentile])
    count, slower = canary.answers, canary.slower(bound)
    metric = f"p{spec.percentile}Milliseconds"
    if count >= min_requests and slower > (100 - spec.percentile) / 100 * max(count, needed):
        value = canary.percentile(spec.percentile)
        text = f"p{spec.percentile} latency {rounded(value)} ms > {name} ({count} requests, {slower} slower)"
        return Finding(Verdict.BAD, text, metric=metric, value=value, bound=bound, samples=count)
    if count < needed:
        return Finding(Verdict.PENDING, f"{count} of {needed} requests, as p{spec.percentile} needs")
    value = canary.percentile(spec.percentile)
    text = f"p{spec.percentile} latency {rounded(value)} ms within {name} ({count} requests)"
    return Finding(Verdict.GOOD, text, metric=metric, value=value, bound=bound, samples=count)


def latency_ratio(spec: LatencySpec, ratio: float, min_requests: int, canary: Traffic, stable: Traffic) -> Finding:
    """The percentile against the stable revision's in the same window."""
    needed = max(min_requests, RUNS_NEEDED[spec.percentile])
    if stable.answers < needed:
        return Finding(
            Verdict.PENDING, f"the stable revision answered {stable.answers} of {needed} requests to compare with"
        )
    base = stable.percentile(spec.percentile)
    name = f"{ratio:g} x stable's {rounded(base)} ms, {stable.answers} requests"
    found = latency(spec, ratio * base, name, min_requests, canary)
    value = found.value / base if found.value is not None and base > 0 else None
    return replace(found, metric=f"p{spec.percentile}RatioToStable", value=value, bound=ratio)
