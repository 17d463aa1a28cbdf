"""The analysis: what the pods counted in a window -> good, bad, or not to be told. Pure over samples.

A window is as long as `intervalSeconds`, and longer, by whole intervals, until it can be judged. A false alarm is worse than a
slow one: a percentile is only called good or bad on requests enough to know it, or when no further request could change it;
agreement is only called bad when its interval lies below the bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fettle.api.interval import items_needed, tango
from fettle.api.modeldeployment import AnalysisSpec, LatencySpec
from fettle.api.modeldeployment_status import AnalysisStatus, AnalysisWindow, MetricFinding, Verdict
from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.plan import moment

PERCENTILE_NEEDS = {50: 30, 90: 36, 95: 72, 99: 367}  # requests below which a percentile is not claimed
PATIENCE = 6  # intervals after which a window that still cannot be judged is called inconclusive
AGREEMENT = "agreement"
FEWEST_COMPARED = 20  # items that may call a canary wrong; a busy pod compares less than one a second
KEPT_WINDOWS = 20  # of those that were judged (AnalysisStatus.windows)
SLACK_SECONDS = 1.0  # the pods' current second is not over yet


@dataclass(frozen=True)
class Comparisons:
    """Items on which a canary was compared with the stable revision. `unsure` ones, which stable itself was not sure of, tell nothing."""

    agreed: int = 0
    disagreed: int = 0
    unsure: int = 0

    @property
    def compared(self) -> int:
        """Items that tell something."""
        return self.agreed + self.disagreed

    def __add__(self, other: Comparisons) -> Comparisons:
        return Comparisons(self.agreed + other.agreed, self.disagreed + other.disagreed, self.unsure + other.unsure)


@dataclass(frozen=True)
class Second:
    """What a pod counted in one second. `at` is Unix time on the operator's clock; latencies: bucket index -> answers."""

    at: float
    requests: int
    errors: int
    latencies: Mapping[int, int]
    comparisons: Comparisons = Comparisons()


@dataclass(frozen=True)
class Doubt:
    """Why something cannot be judged, and will not be by waiting."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class PodSamples:
    """What one pod counted. Bucket i holds answers of at most `bucket_base * bucket_ratio**i` milliseconds.

    `incomparable` says why it cannot compare its answers with the stable revision's.
    """

    pod: str
    seconds: tuple[Second, ...]
    bucket_base: float
    bucket_ratio: float
    incomparable: Doubt | None = None


@dataclass(frozen=True)
class Crash:
    """A container that ended by its own fault: not evicted, not preempted, not out of its node's memory."""

    pod: str
    at: datetime
    message: str


@dataclass(frozen=True)
class Observation:
    """What is known of a revision's traffic. `silent` are ready pods that did not answer the question."""

    pods: tuple[PodSamples, ...] = ()
    silent: tuple[str, ...] = ()
    crashes: tuple[Crash, ...] = ()


NOTHING = Observation()


@dataclass(frozen=True)
class Traffic:
    """A revision's requests in a window. `latencies`: (from, to] milliseconds -> answers, ascending."""

    requests: int
    errors: int
    latencies: tuple[tuple[float, float, int], ...]
    comparisons: Comparisons = Comparisons()

    @property
    def answers(self) -> int:
        """Requests whose time is known."""
        return sum(count for _, _, count in self.latencies)

    def slower(self, milliseconds: float) -> int:
        """Requests that surely took longer."""
        return sum(count for low, _, count in self.latencies if low >= milliseconds)

    def percentile(self, percent: int) -> float:
        """Upper edge of the bucket that holds it, in milliseconds. Needs at least one answer."""
        missing = self.answers * percent / 100
        for _, high, count in self.latencies:
            missing -= count
            if missing <= 0:
                return high
        return self.latencies[-1][1]


def traffic(observation: Observation, start: datetime, end: datetime) -> Traffic:
    """All pods of a revision, summed over start <= second < end."""
    requests = errors = 0
    comparisons = Comparisons()
    latencies: dict[tuple[float, float], int] = {}
    for pod in observation.pods:
        for second in pod.seconds:
            if not start.timestamp() <= second.at < end.timestamp():
                continue
            requests += second.requests
            errors += second.errors
            comparisons += second.comparisons
            for index, count in second.latencies.items():
                high = pod.bucket_base * pod.bucket_ratio**index
                edges = (high / pod.bucket_ratio if index > 0 else 0.0, high)
                latencies[edges] = latencies.get(edges, 0) + count
    buckets = tuple((low, high, count) for (low, high), count in sorted(latencies.items()))
    return Traffic(requests, errors, buckets, comparisons)


@dataclass(frozen=True)
class Finding:
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

    def record(self) -> MetricFinding:
        """As status keeps it, four significant digits."""
        value = float(f"{self.value:.4g}") if self.value is not None else None
        bound = float(f"{self.bound:.4g}")
        return MetricFinding(metric=self.metric, verdict=self.verdict, value=value, bound=bound, samples=self.samples)


def success_rate(minimum: float, min_requests: int, canary: Traffic) -> Finding:
    """The share of requests that the model answered."""
    if canary.requests < min_requests:
        return Finding(Verdict.PENDING, f"{canary.requests} of {min_requests} requests")
    rate = 1 - canary.errors / canary.requests
    good = rate >= minimum
    sign = ">=" if good else "<"
    text = f"success rate {rate:.4f} {sign} {minimum:g} ({canary.requests} requests, {canary.errors} failed)"
    told = Finding(Verdict.GOOD if good else Verdict.BAD, text)
    return replace(told, metric="successRate", value=rate, bound=minimum, samples=canary.requests)


def latency(spec: LatencySpec, bound: float, name: str, min_requests: int, canary: Traffic) -> Finding:
    """The percentile against `bound` milliseconds, which `name` explains.

    Bad as soon as more requests are slower than the percentile allows in all that are needed: no later one could mend that.
    """
    needed = max(min_requests, PERCENTILE_NEEDS[spec.percentile])
    count, slower = canary.answers, canary.slower(bound)
    metric = f"p{spec.percentile}Milliseconds"
    if count >= min_requests and slower > (100 - spec.percentile) / 100 * max(count, needed):
        value = canary.percentile(spec.percentile)
        text = f"p{spec.percentile} latency {value:.3g} ms > {name} ({count} requests, {slower} slower)"
        return Finding(Verdict.BAD, text, metric=metric, value=value, bound=bound, samples=count)
    if count < needed:
        return Finding(Verdict.PENDING, f"{count} of {needed} requests, as p{spec.percentile} needs")
    value = canary.percentile(spec.percentile)
    text = f"p{spec.percentile} latency {value:.3g} ms within {name} ({count} requests)"
    return Finding(Verdict.GOOD, text, metric=metric, value=value, bound=bound, samples=count)


def latency_ratio(spec: LatencySpec, ratio: float, min_requests: int, canary: Traffic, stable: Traffic) -> Finding:
    """The percentile against the stable revision's in the same window."""
    needed = max(min_requests, PERCENTILE_NEEDS[spec.percentile])
    if stable.answers < needed:
        return Finding(
            Verdict.PENDING, f"the stable revision answered {stable.answers} of {needed} requests to compare with"
        )
    base = stable.percentile(spec.percentile)
    name = f"{ratio:g} x stable's {base:.3g} ms, {stable.answers} requests"
    found = latency(spec, ratio * base, name, min_requests, canary)
    value = found.value / base if found.value is not None and base > 0 else None
    return replace(found, metric=f"p{spec.percentile}RatioToStable", value=value, bound=ratio)


def agreement(minimum: float, min_requests: int, found: Comparisons, doubts: tuple[Doubt, ...]) -> Finding:
    """The share of items that the canary answers as stable did, of those that stable was sure of. `doubts`: the pods'.

    Bad as soon as the whole 95 % interval lies below `minimum`, on few items too: the interval knows how many they are.
    Good when the share is not below it, on as many items as prove `minimum` where none disagrees. What lies between waits
    for more items.
    """
    needed = max(min_requests, items_needed(1 - minimum) or 0)
    count = found.compared
    text = f"{count} items compared, {found.disagreed} disagreed, {found.unsure} that stable is unsure of left out"
    if count:
        share = found.agreed / count
        highest = 1 - tango(found.disagreed, 0, count).low
        if count >= min(min_requests, FEWEST_COMPARED) and highest < minimum:
            said = f"agreement {share:.4f} < {minimum:g} (at most {highest:.4f} by its interval; {text})"
            return Finding(Verdict.BAD, said, metric=AGREEMENT, value=share, bound=minimum, samples=count)
        if count >= needed and share >= minimum:
            said = f"agreement {share:.4f} >= {minimum:g} ({text})"
            return Finding(Verdict.GOOD, said, metric=AGREEMENT, value=share, bound=minimum, samples=count)
    if doubts:
        return Finding(Verdict.INCONCLUSIVE, f"agreement: {doubts[0].message}", doubts[0].reason)
    if count >= needed:
        return Finding(
            Verdict.PENDING, f"agreement {found.agreed / count:.4f} is not surely below {minimum:g} ({text})"
        )
    return Finding(Verdict.PENDING, f"{count} of {needed} items compared, as agreement {minimum:g} needs ({text})")


def findings(
    spec: AnalysisSpec, canary: Traffic, stable: Traffic | None, doubts: tuple[Doubt, ...] = ()
) -> list[Finding]:
    """What each metric of `spec` says. Without stable pods (`stable` None) nothing is compared with them."""
    said: list[Finding] = []
    if spec.success_rate is not None:
        said.append(success_rate(spec.success_rate.min, spec.min_requests, canary))
    if spec.latency is not None and spec.latency.max_milliseconds is not None:
        bound = spec.latency.max_milliseconds
        said.append(latency(spec.latency, bound, f"{bound:g} ms", spec.min_requests, canary))
    if spec.latency is not None and spec.latency.max_ratio_to_stable is not None and stable is not None:
        said.append(latency_ratio(spec.latency, spec.latency.max_ratio_to_stable, spec.min_requests, canary, stable))
    if spec.agreement is not None and stable is not None:
        said.append(agreement(spec.agreement.min, spec.min_requests, canary.comparisons, doubts))
    if not said:
        enough = canary.requests >= spec.min_requests
        text = f"{canary.requests} of {spec.min_requests} requests"
        said.append(Finding(Verdict.GOOD if enough else Verdict.PENDING, text))
    return said


@dataclass(frozen=True)
class Judgement:
    """The analysis after a look. `reason` says why a window is inconclusive."""

    status: AnalysisStatus
    reason: Reason | None = None


def begin(now: datetime, before: AnalysisStatus | None = None) -> AnalysisStatus:
    """A fresh window from `now` on. Bad windows in a row are remembered."""
    if before is None:
        return AnalysisStatus(window_start=moment.write(now))
    return AnalysisStatus(window_start=moment.write(now), consecutive=before.consecutive, windows=before.windows)


def next_look(spec: AnalysisSpec, status: AnalysisStatus, now: datetime) -> datetime:
    """When the window can be judged, or the next time that it may be."""
    start = moment.read(status.window_start) or now
    return start + timedelta(seconds=(_intervals(spec, start, now) + 1) * spec.interval_seconds + SLACK_SECONDS)


def due(spec: AnalysisSpec, status: AnalysisStatus, now: datetime) -> bool:
    """Whether the window is over, so that the pods have to be asked."""
    start = moment.read(status.window_start)
    return start is not None and _intervals(spec, start, now) >= 1


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
) -> Judgement:
    """Judge the window of `before`, if it is over. The answer is the same at any time within an interval, so looking
    often writes nothing. `stable` is None where no stable pod serves; `weight` is noted beside what is found."""
    start = moment.read(before.window_start)
    if start is None:
        return Judgement(begin(now, before))
    intervals = _intervals(spec, start, now)
    if intervals < 1:
        return Judgement(before)
    end = start + timedelta(seconds=intervals * spec.interval_seconds)
    mine = traffic(canary, start, end)
    theirs = traffic(stable, start, end) if stable is not None else None
    crashed = [crash for crash in canary.crashes if start <= crash.at < end]
    said = [
        *(Finding(Verdict.BAD, f"pod {c.pod} crashed: {c.message}") for c in crashed),
        *findings(spec, mine, theirs, tuple(pod.incomparable for pod in canary.pods if pod.incomparable)),
    ]
    if any(finding.verdict is Verdict.BAD for finding in said):
        return Judgement(_closed(before, end, weight, mine, Verdict.BAD, said))
    if canary.silent:
        text = f"no answer from the management port of {', '.join(sorted(canary.silent)[:3])}"
        return Judgement(_extended(before, mine, Verdict.INCONCLUSIVE, text), Reason.ANALYSIS_UNREACHABLE)
    if (doubtful := next((one for one in said if one.verdict is Verdict.INCONCLUSIVE), None)) is not None:
        return Judgement(_extended(before, mine, Verdict.INCONCLUSIVE, doubtful.message), doubtful.reason)
    if any(finding.verdict is Verdict.PENDING for finding in said):
        return _undecided(before, intervals, mine, theirs, _text(said, Verdict.PENDING))
    return Judgement(_closed(before, end, weight, mine, Verdict.GOOD, said))


def _undecided(before: AnalysisStatus, intervals: int, mine: Traffic, theirs: Traffic | None, text: str) -> Judgement:
    if intervals < PATIENCE:
        verdict = Verdict.PENDING if before.verdict is Verdict.INCONCLUSIVE else before.verdict
        judged = verdict in (Verdict.GOOD, Verdict.BAD)  # that of the window before; this one has none yet
        return Judgement(_extended(before, mine, verdict, f"since then {text}" if judged else text))
    if not mine.requests and theirs is not None and theirs.requests:
        text = "the canary got no request while the stable revision did; is its traffic routed?"
    return Judgement(_extended(before, mine, Verdict.INCONCLUSIVE, text), Reason.ANALYSIS_INCONCLUSIVE)


def _closed(
    before: AnalysisStatus, end: datetime, weight: int, mine: Traffic, verdict: Verdict, said: Sequence[Finding]
) -> AnalysisStatus:
    window = AnalysisWindow(
        start=before.window_start,
        end=moment.write(end),
        weight=weight,
        requests=mine.requests,
        failures=mine.errors,
        verdict=verdict,
        metrics=tuple(finding.record() for finding in said if finding.metric)[:8],
    )
    return AnalysisStatus(
        window_start=moment.write(end),
        **_counts(mine),
        consecutive=before.consecutive + 1 if verdict is Verdict.BAD else 0,
        verdict=verdict,
        message=clip(_text(said, verdict), 512),
        windows=(*before.windows, window)[-KEPT_WINDOWS:],
    )


def _extended(before: AnalysisStatus, mine: Traffic, verdict: Verdict, text: str) -> AnalysisStatus:
    return before.model_copy(update={**_counts(mine), "verdict": verdict, "message": clip(text, 512)})


def _counts(mine: Traffic) -> dict[str, int]:
    found = mine.comparisons
    return {
        "requests": mine.requests,
        "failures": mine.errors,
        "compared": found.compared,
        "agreed": found.agreed,
        "unsure": found.unsure,
    }


def _text(said: Iterable[Finding], verdict: Verdict) -> str:
    texts = [finding.message for finding in said if finding.verdict is verdict]
    return "; ".join(one for one in texts if not any(other != one and other.startswith(one) for other in texts))
