"""Windows -> verdicts."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fettle.api.modeldeployment import AnalysisSpec
from fettle.api.modeldeployment_status import AnalysisStatus, Verdict
from fettle.api.reasons import Reason
from fettle.plan import timestamps
from fettle.plan.rollout.analysis import begin, judge, next_look
from fettle.plan.rollout.metrics import measurements
from fettle.plan.rollout.metrics.base import MetricWindow
from fettle.plan.rollout.window_totals import Crash, Lost, Observation, PodSamples, Second, traffic

START = datetime(2026, 1, 1, tzinfo=UTC)
BASE, RATIO = 1.0, 1.05
SPEC = {"intervalSeconds": 10, "minRequests": 50, "failureLimit": 2, "successRate": {"min": 0.99}}


def spec(**changes: Any) -> AnalysisSpec:
    return AnalysisSpec.model_validate({**SPEC, **changes})


def bucket(milliseconds: float) -> int:
    index = 0
    while BASE * RATIO**index < milliseconds:
        index += 1
    return index


def pod(
    name: str, per_second: int, *, errors: int = 0, ms: float = 5.0, seconds: int = 10, slow: int = 0
) -> PodSamples:
    """A pod that answered `per_second` requests each second; `slow` of them took 100 ms."""
    latencies = {bucket(ms): per_second - slow, bucket(100): slow}
    counted = tuple(
        Second(START.timestamp() + second, per_second, errors, {k: v for k, v in latencies.items() if v})
        for second in range(seconds)
    )
    return PodSamples(name, counted, BASE, RATIO)


def failing(name: str, per_second: int) -> PodSamples:
    """A pod that fails each request at once: none has a time."""
    counted = tuple(Second(START.timestamp() + second, per_second, per_second, {}) for second in range(10))
    return PodSamples(name, counted, BASE, RATIO)


def seen(*pods: PodSamples, **more: Any) -> Observation:
    return Observation(tuple(pods), **more)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def look(wanted: AnalysisSpec, canary: Observation, stable: Observation | None = None, seconds: float = 11.0) -> Any:
    return judge(wanted, begin(START), canary, stable, at(seconds))


@pytest.mark.parametrize(
    ("name", "changes", "canary", "verdict", "says"),
    [
        ("all answered", {}, pod("b", 10), Verdict.GOOD, "success rate 1.0000 >= 0.99 (100 requests"),
        ("too many errors", {}, pod("b", 10, errors=1), Verdict.BAD, "success rate 0.9000 < 0.99 (100 requests, 10"),
        ("too few requests", {}, pod("b", 4), Verdict.PENDING, "40 of 50 requests needed for the success rate"),
        (
            "each metric that waits is named",
            {"latency": {"percentile": 50, "maxMilliseconds": 20}},
            pod("b", 4),
            Verdict.PENDING,
            "40 of 50 requests needed for the success rate; 40 of 50 answered requests needed for p50 latency",
        ),
        (
            "median within the bound",
            {"latency": {"percentile": 50, "maxMilliseconds": 20}},
            pod("b", 10),
            Verdict.GOOD,
            "within 20 ms",
        ),
        (
            "median too slow",
            {"latency": {"percentile": 50, "maxMilliseconds": 20}},
            pod("b", 10, ms=50),
            Verdict.BAD,
            "> 20 ms (100 requests, 100 slower)",
        ),
        (
            "a 99th percentile is not known from 100 requests",
            {"latency": {"percentile": 99, "maxMilliseconds": 20}},
            pod("b", 10),
            Verdict.PENDING,
            "100 of 367 answered requests needed for p99",
        ),
        (
            "but when all are slow no later request mends it",
            {"latency": {"percentile": 99, "maxMilliseconds": 20}},
            pod("b", 10, ms=50),
            Verdict.BAD,
            "p99 latency",
        ),
        (
            "three slow ones of 100 prove nothing about p99",
            {"latency": {"percentile": 99, "maxMilliseconds": 20}},
            PodSamples("b", (Second(START.timestamp(), 100, 0, {bucket(5): 97, bucket(100): 3}),), BASE, RATIO),
            Verdict.PENDING,
            "100 of 367",
        ),
        (
            "enough requests for p99",
            {"latency": {"percentile": 99, "maxMilliseconds": 20}},
            pod("b", 40),
            Verdict.GOOD,
            "p99 latency",
        ),
        (
            "a canary that fails fast is not good because it is fast",
            {"successRate": {}, "latency": {"percentile": 50, "maxMilliseconds": 20}},
            failing("b", 10),
            Verdict.BAD,
            "success rate 0.0000 < 0.99 (100 requests, 100 failed)",
        ),
        (
            "who wants no success rate says so",
            {"successRate": {"min": 0}},
            failing("b", 10),
            Verdict.GOOD,
            "success rate 0.0000 >= 0",
        ),
    ],
)
def test_a_window(name: str, changes: Any, canary: PodSamples, verdict: Verdict, says: str) -> None:
    judged = look(spec(**changes), seen(canary)).status
    assert judged.verdict is verdict, name
    assert says in judged.message


def test_two_bounds_on_a_latency_wait_in_one_sentence() -> None:
    both = {"percentile": 50, "maxMilliseconds": 20, "maxRatioToStable": 2}
    waiting = look(spec(latency=both), seen(pod("b", 4)), seen(pod("a", 10))).status
    assert waiting.message.count("40 of 50 answered requests needed for p50 latency") == 1


@pytest.mark.parametrize(
    ("canary_ms", "stable", "verdict"),
    [
        (5.0, pod("a", 10), Verdict.GOOD),
        (7.0, pod("a", 10), Verdict.GOOD),
        (12.0, pod("a", 10), Verdict.BAD),
        (12.0, pod("a", 2), Verdict.PENDING),  # too few of the stable revision to compare with
    ],
)
def test_latency_against_the_stable_revision_in_the_same_window(
    canary_ms: float, stable: PodSamples, verdict: Verdict
) -> None:
    wanted = spec(latency={"percentile": 50, "maxRatioToStable": 1.5})
    assert look(wanted, seen(pod("b", 10, ms=canary_ms)), seen(stable)).status.verdict is verdict


def test_without_stable_pods_nothing_is_compared() -> None:
    wanted = spec(latency={"percentile": 50, "maxRatioToStable": 1.5})
    assert look(wanted, seen(pod("b", 10, ms=500)), None).status.verdict is Verdict.GOOD


def test_one_bad_metric_is_enough() -> None:
    wanted = spec(latency={"percentile": 50, "maxMilliseconds": 20})
    judged = look(wanted, seen(pod("b", 10, ms=50))).status
    assert judged.verdict is Verdict.BAD
    assert "success rate" not in judged.message


def test_pods_of_a_revision_are_summed() -> None:
    judged = look(spec(), seen(pod("b-0", 3), pod("b-1", 3, errors=3)))
    assert (judged.status.requests, judged.status.failures) == (60, 30)


def test_only_bad_windows_in_a_row_count() -> None:
    good, bad = seen(pod("b", 10, seconds=60)), seen(pod("b", 10, errors=5, seconds=60))
    status = begin(START)
    consecutive = []
    for index, window in enumerate((bad, good, bad, bad)):
        status = judge(spec(), status, window, None, at(11 + 10 * index)).status
        consecutive.append(status.consecutive)
    assert consecutive == [1, 0, 1, 2]
    assert status.window_start == timestamps.write(at(40))


def test_a_window_extends_until_it_has_enough_requests() -> None:
    canary = seen(pod("b", 2, seconds=40))
    first = judge(spec(), begin(START), canary, None, at(11)).status
    assert (first.verdict, first.window_start, first.requests) == (Verdict.PENDING, timestamps.write(START), 20)
    third = judge(spec(), first, canary, None, at(31)).status
    assert (third.verdict, third.requests) == (Verdict.GOOD, 60)


def test_before_the_interval_is_over_nothing_changes() -> None:
    before = begin(START)
    assert judge(spec(), before, seen(pod("b", 100, errors=100)), None, at(10.5)).status is before


def test_within_an_interval_every_look_says_the_same() -> None:
    canary = seen(pod("b", 2, seconds=30))
    looks = {judge(spec(), begin(START), canary, None, at(11 + tenth / 10)).status for tenth in range(100)}
    assert len(looks) == 1


def test_a_window_that_cannot_be_judged_for_long_is_inconclusive_and_not_bad() -> None:
    judged = look(spec(), seen(pod("b", 1, seconds=20)), seconds=61)
    assert (judged.status.verdict, judged.reason) == (Verdict.INCONCLUSIVE, Reason.ANALYSIS_INCONCLUSIVE)
    assert judged.status.consecutive == 0


def test_a_canary_without_traffic_beside_a_busy_stable_revision_is_told_apart() -> None:
    judged = look(spec(), seen(), seen(pod("a", 10, seconds=60)), seconds=61)
    assert "check that its pods get traffic" in judged.status.message


def test_pods_that_do_not_answer_make_it_inconclusive() -> None:
    judged = look(spec(), seen(pod("b-0", 10), silent=("b-1",)))
    assert (judged.status.verdict, judged.reason) == (Verdict.INCONCLUSIVE, Reason.ANALYSIS_UNREACHABLE)
    assert "b-1" in judged.status.message


def test_what_the_other_pods_counted_may_still_be_bad() -> None:
    assert look(spec(), seen(pod("b-0", 10, errors=9), silent=("b-1",))).status.verdict is Verdict.BAD


@pytest.mark.parametrize(("seconds", "verdict"), [(-1, Verdict.GOOD), (3, Verdict.BAD), (12, Verdict.GOOD)])
def test_a_crash_inside_the_window_is_bad(seconds: int, verdict: Verdict) -> None:
    canary = seen(pod("b", 10), crashes=(Crash("b", at(seconds), "exit code 139"),))
    assert look(spec(), canary).status.verdict is verdict


def test_a_percentile_is_off_by_at_most_one_bucket() -> None:
    counted = traffic(seen(pod("b", 100, ms=10.0, slow=2)), START, at(10))
    assert 10.0 <= counted.percentile(50) <= 10.5
    assert 100.0 <= counted.percentile(99) <= 105.0
    assert counted.slower(50) == 20


def test_the_next_look_is_when_the_window_may_be_over() -> None:
    assert next_look(spec(), begin(START), at(3)) == at(11)
    assert next_look(spec(), begin(START), at(11)) == at(21)


def test_bad_windows_are_remembered_over_a_new_step() -> None:
    before = AnalysisStatus(window_start=timestamps.write(START), consecutive=1, verdict=Verdict.BAD)
    fresh = begin(at(5), before)
    assert (fresh.consecutive, fresh.verdict) == (1, Verdict.PENDING)


@pytest.mark.parametrize("bounds", [{"latency": {"maxMilliseconds": 20}}, {"agreement": {"min": 0.9}}, {}])
def test_every_analysis_asks_a_success_rate(bounds: Any) -> None:
    wanted = AnalysisSpec.model_validate(bounds)
    assert wanted.success_rate.min == 0.99
    said = measurements(MetricWindow(wanted, traffic(seen(failing("b", 10)), START, at(10)), None))
    assert [(one.metric, one.verdict) for one in said if one.metric == "successRate"] == [("successRate", Verdict.BAD)]


BOUNDS = {
    "latency": {"percentile": 99, "maxMilliseconds": 20, "maxRatioToStable": 1.5},
    "agreement": {"min": 0.9},
}


@pytest.mark.parametrize("requests", [0, 7])
def test_a_metric_that_is_pending_has_its_bound_and_what_there_is_so_far(requests: int) -> None:
    counted = traffic(seen(pod("b", requests, seconds=1)), START, at(10))
    said = measurements(MetricWindow(spec(**BOUNDS), counted, counted))
    assert {one.metric: one.bound for one in said} == {
        "successRate": 0.99, "p99Milliseconds": 20, "p99RatioToStable": 1.5, "agreement": 0.9,
    }  # fmt: skip
    assert all(one.verdict is Verdict.PENDING for one in said)
    by_name = {one.metric: one for one in said}
    assert (by_name["successRate"].value, by_name["successRate"].samples) == (1.0 if requests else None, requests)
    assert (by_name["p99Milliseconds"].value is None) == (requests == 0)


def test_a_window_that_one_metric_ends_keeps_those_that_were_pending() -> None:
    judged = look(spec(**BOUNDS), seen(failing("b", 10)), seen(pod("a", 10)))
    (window,) = judged.status.windows
    verdicts = {record.metric: record.verdict for record in window.metrics}
    assert verdicts["successRate"] is Verdict.BAD
    assert {verdicts[name] for name in ("p99Milliseconds", "p99RatioToStable", "agreement")} == {Verdict.PENDING}


def test_a_comparison_with_stable_says_whose_requests_were_counted() -> None:
    wanted = spec(latency={"percentile": 50, "maxRatioToStable": 2})
    slow = look(wanted, seen(pod("b", 10, ms=50)), seen(pod("a", 20))).status.message or ""
    assert re.search(r"> 2 x stable's [\d.]+ ms \(canary 100 requests, 100 slower; stable 200 requests\)", slow), slow
    good = look(wanted, seen(pod("b", 10)), seen(pod("a", 20))).status.message or ""
    assert re.search(r"within 2 x stable's [\d.]+ ms \(canary 100 requests; stable 200 requests\)", good), good


def gone(until: float, **more: Any) -> Any:
    return seen(
        pod("b", 10, seconds=70), lost=(Lost(at(until).timestamp(), "the counts of pod b-1 were lost with it", **more),)
    )


@pytest.mark.parametrize(
    ("until", "seconds", "verdict", "start"),
    [
        (-5, 11, Verdict.GOOD, 0),  # before the window
        (4, 11, Verdict.PENDING, None),
        (4, 21, Verdict.GOOD, 4),  # the whole interval after it is known
        (4.2, 21, Verdict.GOOD, 5),
        (12, 21, Verdict.PENDING, None),
        (58, 61, Verdict.INCONCLUSIVE, None),
    ],
)
def test_seconds_that_nobody_can_tell_are_in_no_good_window(
    until: float, seconds: float, verdict: Verdict, start: int | None
) -> None:
    judged = look(spec(), gone(until), seconds=seconds)
    assert judged.status.verdict is verdict
    if start is not None:
        (window,) = judged.status.windows
        assert window.start == timestamps.write(at(start))
    else:
        assert judged.status.message == "part of the window is unknown: the counts of pod b-1 were lost with it"
        assert judged.status.consecutive == 0


def test_a_window_longer_than_a_pod_keeps_can_never_be_known_and_says_so_at_once() -> None:
    lost = Lost(at(2700).timestamp(), "pod b keeps 900 s", keeps=900)
    hour = spec(intervalSeconds=3600)
    canary = seen(pod("b", 1, seconds=3600), lost=(lost,))
    judged = judge(hour, begin(START), canary, None, at(3602))
    assert (judged.status.verdict, judged.reason) == (Verdict.INCONCLUSIVE, Reason.ANALYSIS_INCONCLUSIVE)
    assert "a window of 3600 s can never be complete: lower analysis.intervalSeconds" in (judged.status.message or "")


def test_an_unknown_part_hides_neither_what_is_bad_before_it_nor_after_it() -> None:
    lost = (Lost(at(9).timestamp(), "gone"),)
    early = (Second(START.timestamp() + 1, 100, 50, {}),)
    assert look(spec(), seen(PodSamples("b", early, BASE, RATIO), lost=lost)).status.verdict is Verdict.BAD
    quiet = [Second(START.timestamp() + second, 1000, 0, {}) for second in range(8)]
    late = [Second(START.timestamp() + second, 10, 5, {}) for second in range(10, 20)]
    judged = look(spec(), seen(PodSamples("b", (*quiet, *late), BASE, RATIO), lost=lost), seconds=21)
    assert judged.status.verdict is Verdict.BAD


def test_a_good_window_before_an_unknown_one_is_not_taken_for_it() -> None:
    before = AnalysisStatus(window_start=timestamps.write(START), verdict=Verdict.GOOD, message="success rate 1")
    judged = judge(spec(), before, gone(4), None, at(11)).status
    assert judged.verdict is Verdict.PENDING


def test_an_unknown_part_is_told_alike_at_any_time_within_an_interval() -> None:
    looks = {judge(spec(), begin(START), gone(7 + tenth / 10), None, at(11 + tenth / 10)).status for tenth in range(90)}
    assert len(looks) == 1
