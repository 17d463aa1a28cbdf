"""The analysis: from the pods' counts in a window to a verdict: good, bad, pending or inconclusive. Pure.

A window lasts `intervalSeconds`, and is extended by whole intervals until it can be judged. A false alarm is worse than a slow one: a
percentile is called good or bad only on enough requests to know it, or when no further request could change it; agreement is
called bad only when its interval is below the bound. A window in which traffic is unknown is never good: the whole interval after
the loss decides. It can still be bad, by what is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fettle.api.modeldeployment import AnalysisSpec
from fettle.api.modeldeployment_status import AnalysisStatus, AnalysisWindow, Verdict
from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.plan import timestamps
from fettle.plan.rollout.metrics import measurements
from fettle.plan.rollout.metrics.base import MetricMeasurement, MetricWindow
from fettle.plan.rollout.window_totals import Lost, Observation, Traffic, traffic

PATIENCE = 6  # intervals after which a window that still cannot be judged is called inconclusive
KEPT_WINDOWS = 20  # of those that were judged (AnalysisStatus.windows)
SINCE = "since then "  # begins what is said of an open window behind one that was judged
SLACK_SECONDS = 1.0  # the pods' current second is not over yet


@dataclass(frozen=True)
class AnalysisResult:
    """The analysis after one pass. `reason` says why a window is inconclusive."""

    status: AnalysisStatus
    reason: Reason | None = None


def begin(now: datetime, before: AnalysisStatus | None = None) -> AnalysisStatus:
    """A new window that starts at `now`. The number of consecutive bad windows is kept."""
    if before is None:
        return AnalysisStatus(window_start=timestamps.write(now))
    return AnalysisStatus(window_start=timestamps.write(now), consecutive=before.consecutive, windows=before.windows)


@dataclass(frozen=True)
class TimeRange:
    """From `start` up to, not including, `end`: whole seconds."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.start).total_seconds()


def next_look(spec: AnalysisSpec, status: AnalysisStatus, now: datetime) -> datetime:
    """The next time at which the window may be judged."""
    start = timestamps.read(status.window_start) or now
    return start + timedelta(seconds=(_intervals(spec, start, now) + 1) * spec.interval_seconds + SLACK_SECONDS)


def due(spec: AnalysisSpec, status: AnalysisStatus, now: datetime) -> TimeRange | None:
    """The time range to judge, once the window is over and the pods have to be read; None before that."""
    start = timestamps.read(status.window_start)
    intervals = _intervals(spec, start, now) if start is not None else 0
    return (
        TimeRange(start, start + timedelta(seconds=intervals * spec.interval_seconds)) if start and intervals else None
    )


def _intervals(spec: AnalysisSpec, start: datetime, now: datetime) -> int:
    return max(int(((now - start).total_seconds() - SLACK_SECONDS) // spec.interval_seconds), 0)


def judge(
    spec: AnalysisSpec,
    before: AnalysisStatus,
    canary: Observation,
    stable: Observation | None,
    now: datetime,
    *,
    weight: int = 0,
) -> AnalysisResult:
    """Judge the window of `before`, if it is over. The result is the same at any time within an interval, so frequent passes
    write nothing. `stable` is None if no stable pod serves; `weight` is recorded with the window."""
    if timestamps.read(before.window_start) is None:
        return AnalysisResult(begin(now, before))
    span = due(spec, before, now)
    if span is None:
        return AnalysisResult(before)
    look = _look(spec, canary, stable, span)
    if look.says(Verdict.BAD):
        return AnalysisResult(_closed(before, look, weight, Verdict.BAD))
    if canary.silent:
        text = f"no response from the management port of {', '.join(sorted(canary.silent)[:3])}"
        return AnalysisResult(_extended(before, look, Verdict.INCONCLUSIVE, text), Reason.ANALYSIS_UNREACHABLE)
    lost = max((lost for lost in canary.lost if lost.until > span.start.timestamp()), key=_until, default=None)
    if lost is None:
        return _judged(spec, before, span, look, weight)
    known = TimeRange(datetime.fromtimestamp(math.ceil(lost.until), UTC), span.end)
    if known.seconds < spec.interval_seconds:
        return _unknown(spec, before, look, lost)
    return _judged(spec, before, span, _look(spec, canary, stable, known), weight)


def _until(lost: Lost) -> float:
    return lost.until


@dataclass(frozen=True)
class _Look:
    """The measurements of all metrics over a time range."""

    span: TimeRange
    mine: Traffic
    theirs: Traffic | None
    said: tuple[MetricMeasurement, ...]

    def says(self, verdict: Verdict) -> bool:
        return any(measured.verdict is verdict for measured in self.said)

    def text(self, verdict: Verdict) -> str:
        texts = [measured.message for measured in self.said if measured.verdict is verdict]
        return "; ".join(dict.fromkeys(texts))  # both bounds of a latency wait for the same requests


def _look(spec: AnalysisSpec, canary: Observation, stable: Observation | None, span: TimeRange) -> _Look:
    mine = traffic(canary, span.start, span.end)
    theirs = traffic(stable, span.start, span.end) if stable is not None else None
    crashed = [crash for crash in canary.crashes if span.start <= crash.at < span.end]
    doubts = tuple(pod.incomparable for pod in canary.pods if pod.incomparable)
    said = (
        *(MetricMeasurement(Verdict.BAD, f"pod {c.pod} crashed: {c.message}") for c in crashed),
        *measurements(MetricWindow(spec, mine, theirs, doubts)),
    )
    return _Look(span, mine, theirs, said)


def _judged(spec: AnalysisSpec, before: AnalysisStatus, span: TimeRange, look: _Look, weight: int) -> AnalysisResult:
    """The result for known traffic. `span` is the whole window, including the part before a loss."""
    if look.says(Verdict.BAD):
        return AnalysisResult(_closed(before, look, weight, Verdict.BAD))
    doubtful = next((measured for measured in look.said if measured.verdict is Verdict.INCONCLUSIVE), None)
    if doubtful is not None:
        return AnalysisResult(_extended(before, look, Verdict.INCONCLUSIVE, doubtful.message), doubtful.reason)
    if not look.says(Verdict.PENDING):
        return AnalysisResult(_closed(before, look, weight, Verdict.GOOD))
    text = look.text(Verdict.PENDING)
    if span.seconds < PATIENCE * spec.interval_seconds:
        verdict = Verdict.PENDING if before.verdict is Verdict.INCONCLUSIVE else before.verdict
        judged = verdict in (Verdict.GOOD, Verdict.BAD)  # that of the window before; this one has none yet
        return AnalysisResult(_extended(before, look, verdict, f"{SINCE}{text}" if judged else text))
    if not look.mine.requests and look.theirs is not None and look.theirs.requests:
        text = "the canary got no requests while the stable revision did: check that its pods get traffic"
    return AnalysisResult(_extended(before, look, Verdict.INCONCLUSIVE, text), Reason.ANALYSIS_INCONCLUSIVE)


def _unknown(spec: AnalysisSpec, before: AnalysisStatus, look: _Look, lost: Lost) -> AnalysisResult:
    """The result if part of the window is lost: the previous verdict no longer holds until a whole interval is known."""
    text = f"part of the window is unknown: {lost.message}"
    hopeless = lost.keeps is not None and lost.keeps < spec.interval_seconds
    if hopeless:
        text += f"; a window of {spec.interval_seconds} s can never be complete: lower analysis.intervalSeconds"
    if hopeless or look.span.seconds >= PATIENCE * spec.interval_seconds:
        return AnalysisResult(_extended(before, look, Verdict.INCONCLUSIVE, text), Reason.ANALYSIS_INCONCLUSIVE)
    return AnalysisResult(_extended(before, look, Verdict.PENDING, text))


def _closed(before: AnalysisStatus, look: _Look, weight: int, verdict: Verdict) -> AnalysisStatus:
    end = timestamps.write(look.span.end)
    window = AnalysisWindow(
        start=timestamps.write(look.span.start),
        end=end,
        weight=weight,
        requests=look.mine.requests,
        failures=look.mine.errors,
        verdict=verdict,
        metrics=tuple(measured.record() for measured in look.said if measured.metric)[:8],
    )
    return AnalysisStatus(
        window_start=end,
        **_counts(look.mine),
        consecutive=before.consecutive + 1 if verdict is Verdict.BAD else 0,
        verdict=verdict,
        message=clip(look.text(verdict), 512),
        windows=(*before.windows, window)[-KEPT_WINDOWS:],
    )


def _extended(before: AnalysisStatus, look: _Look, verdict: Verdict, text: str) -> AnalysisStatus:
    return before.model_copy(update={**_counts(look.mine), "verdict": verdict, "message": clip(text, 512)})


def _counts(mine: Traffic) -> dict[str, int]:
    comparisons = mine.comparisons
    return {
        "requests": mine.requests,
        "failures": mine.errors,
        "compared": comparisons.compared,
        "agreed": comparisons.agreed,
        "unsure": comparisons.unsure,
    }
