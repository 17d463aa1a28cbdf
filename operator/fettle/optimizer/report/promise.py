"""The constraints and the winner's results: one row per constraint, judged at the unfavorable end of the interval."""

from __future__ import annotations

from dataclasses import dataclass

from fettle.api import metrics
from fettle.api.bounds import metric_of
from fettle.api.constraints import Constraints
from fettle.api.measured import Interval
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.vocabulary import Metric
from fettle.optimizer.report import text


@dataclass(frozen=True)
class Promise:
    """`kept` is None if nothing was measured that could decide it."""

    name: str
    bound: str
    value: str
    worst: str  # the unfavorable end of the interval; empty where there is none
    kept: bool | None


def promises(bounds: Constraints | None, row: CandidateStatus) -> tuple[Promise, ...]:
    """Every constraint in force, with the result of `row`."""
    if bounds is None:
        return ()
    listed: list[Promise] = []
    if bounds.accuracy is not None:
        metric = metric_of(row)
        listed.append(_accuracy(bounds.accuracy.max_drop, metric, row))
        if bounds.accuracy.max_changed is not None and row.changed is not None:
            default = bounds.accuracy.changes_by_default(metric)
            listed.append(_changed(bounds.accuracy.max_changed, row.changed, default))
    if bounds.latency is not None:
        listed.append(_latency(bounds.latency.percentile, bounds.latency.max_milliseconds, row))
    if bounds.speedup is not None:
        listed.append(_speedup(bounds.speedup.min, row.speedup))
    if bounds.size is not None:
        kept = row.bytes <= bounds.size.max_bytes if row.bytes is not None else None
        listed.append(Promise("size", f"≤ {text.size(bounds.size.max_bytes)}", text.size(row.bytes), "", kept))
    return tuple(listed)


def _accuracy(most: float, metric: Metric, row: CandidateStatus) -> Promise:
    share = metrics.entry(metric).percent
    bound = f"≤ {text.points(most)} points" if share else f"≤ {text.number(most)}"
    name = f"drop in {text.metric_name(metric, row.evidence)}"
    if row.exact:
        return Promise(name, bound, "none: exact", "", True)
    lost = row.accuracy_drop
    if lost is None:
        return Promise(name, bound, text.MISSING, "", None)
    worst = f"{text.points(lost.high)} points" if share else text.number(lost.high)
    return Promise(name, bound, text.drop(row), worst, lost.high <= most)


def _changed(most: float, changed: Interval, default: bool) -> Promise:
    value, worst = f"{text.points(changed.value)} %", f"{text.points(changed.high)} %"
    bound = f"≤ {text.points(most)} %" + (" (default)" if default else "")
    return Promise("changed answers", bound, value, worst, changed.high <= most)


def _latency(percentile: int, most: float, row: CandidateStatus) -> Promise:
    measured = text.first(row)
    value = getattr(measured.latency_milliseconds, f"p{percentile}") if measured is not None else None
    kept = value <= most if value is not None else None
    name, bound = f"p{percentile} latency", f"≤ {text.milliseconds(most)}"
    return Promise(name, bound, text.milliseconds(value), "", kept)


def _speedup(least: float, speedup: Interval | None) -> Promise:
    worst = f"{text.number(speedup.low)} ×" if speedup is not None else ""
    kept = speedup.low >= least if speedup is not None else None
    return Promise("speed-up", f"≥ {text.number(least)} ×", text.times(speedup), worst, kept)
