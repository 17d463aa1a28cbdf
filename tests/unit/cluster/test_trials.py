"""What the operator saw of a canary: whose traffic is lost, and that each second of a pod is counted once."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fettle.api.modeldeployment_status import AnalysisStatus, CanaryStatus
from fettle.cluster import figures, windows
from fettle.cluster.kinds import Object
from fettle.cluster.trials import TrialRecord, Trials
from fettle.plan import timestamps
from fettle.plan.rollout.analysis import TimeRange

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def pod(name: str, *, ready: bool = True, gone: bool = False, out: bool = False, **more: Any) -> Object:
    born = at(more.pop("born", -60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata: Object = {"name": name, "uid": f"uid-{name}", "creationTimestamp": born}
    metadata |= {"labels": {"fettle.dev/traffic": "off" if out else "on"}}
    metadata |= {"deletionTimestamp": "now"} if gone else {}
    status = {"conditions": [{"type": "Ready", "status": str(ready)}], **more}
    return {"metadata": metadata, "status": status}


def lost_until(trial: TrialRecord) -> float | None:
    return trial.lost[0].until - NOW.timestamp() if trial.lost else None


@pytest.mark.parametrize(
    ("name", "then", "until"),
    [
        ("it goes on", [pod("a")], None),
        ("another one came", [pod("a"), pod("b")], None),
        ("it is not ready for a while", [pod("a", ready=False)], None),
        ("it is going", [pod("a", gone=True)], 9),
        ("it is gone", [], 9),
        ("it was evicted", [pod("a", phase="Failed"), pod("b")], 9),
        ("it was replaced", [pod("b")], 9),
        ("a person took it out", [pod("a", out=True)], 9),
    ],
)
def test_what_a_pod_counted_goes_with_it(name: str, then: list[Object], until: float | None) -> None:
    trial = TrialRecord()
    trial.see([pod("a")], at(0))
    trial.see(then, at(9))
    assert lost_until(trial) == until, name


def test_who_never_had_traffic_takes_none_along() -> None:
    trial = TrialRecord()
    trial.see([pod("a", ready=False)], at(0))
    trial.see([], at(9))
    assert trial.lost == ()


def test_a_pod_that_goes_is_lost_until_it_is_gone_and_no_longer() -> None:
    trial = TrialRecord()
    for second, seen in enumerate(([pod("a")], [pod("a", gone=True)], [pod("a", gone=True)], [], [], [])):
        trial.see(seen, at(second))
    assert lost_until(trial) == 3


def test_what_a_pod_does_while_a_person_looks_at_it_is_unknown_until_it_is_back() -> None:
    trial = TrialRecord()
    for second, seen in enumerate((pod("a"), pod("a", out=True), pod("a", out=True), pod("a"), pod("a"))):
        trial.see([seen], at(second))
    assert lost_until(trial) == 3


def canary(revision: str = "b", start: float | None = -30, replicas: int = 2) -> CanaryStatus:
    watched = AnalysisStatus(window_start=timestamps.write(at(start))) if start is not None else None
    return CanaryStatus(revision=revision, artifact="pvc://s/a", replicas=replicas, analysis=watched)


@pytest.mark.parametrize(
    ("name", "start", "born", "until"),
    [
        ("no window yet", None, [-60, -60], None),
        ("as many as are wanted are older", -30, [-60, -60], None),
        ("one is younger: it may stand for one that is gone", -30, [-60, -5], 0),
        ("one is missing", -30, [-60], 0),
    ],
)
def test_an_operator_that_starts_in_the_middle_of_a_window_knows_what_it_can(
    name: str, start: float | None, born: list[float], until: float | None
) -> None:
    pods = [pod(f"p{index}", born=seconds) for index, seconds in enumerate(born)]
    obj = {"metadata": {"namespace": "n", "name": "digits", "uid": "u"}}
    assert lost_until(Trials().of(obj, canary(start=start), pods, NOW)) == until, name


def test_a_trial_is_remembered_until_it_is_over_or_another_takes_its_place() -> None:
    trials, obj = Trials(), {"metadata": {"namespace": "n", "name": "digits", "uid": "u"}}
    first = trials.of(obj, canary(), [], NOW)
    assert trials.of(obj, canary(), [], NOW) is first
    assert trials.of(obj, canary("c"), [], NOW) is not first
    second = trials.of(obj, canary(), [], NOW)
    trials.over("n", "digits")
    assert trials.of(obj, canary(), [], NOW) is not second


STEPS = st.tuples(
    st.integers(1, 20),  # length of a window, in seconds
    st.integers(0, 2),  # how often it is extended
    st.floats(0, 3),  # how late a look is
    st.floats(0, 0.9),  # how long the answer is on its way back
)


@given(
    skew=st.floats(-1e6, 1e6) | st.sampled_from([-0.5, -0.49, 0.49, 0.5, 0.51]),
    drift=st.floats(-0.01, 0.01),
    steps=st.lists(STEPS, min_size=2, max_size=12),
)
def test_each_second_of_a_pod_is_counted_once_whatever_its_clock_does(
    skew: float, drift: float, steps: list[tuple[int, int, float, float]]
) -> None:
    now, start, trial, counted = 0.0, 0, TrialRecord(), list[int]()  # seconds since NOW on the operator's clock

    def theirs(ours: float) -> float:
        return NOW.timestamp() + skew + ours * (1 + drift)

    def answer(ours: float) -> bytes:
        """As many requests in each second as its number: each is known by them."""
        born = int(theirs(-5))
        seconds = [{"second": born + number, "requests": number} for number in range(int(theirs(ours)) - born)]
        told = {"start": theirs(-5), "now": theirs(ours), "bucketBase": 0.05, "bucketRatio": 1.05, "windows": seconds}
        return json.dumps(told).encode()

    for length, extensions, late, back in steps:
        for intervals in range(1, extensions + 2):
            end = start + length * intervals
            now = max(now, end + 1 + late)
            told, now = figures.parse(answer(now)), now + back
            span = TimeRange(at(start), at(end))
            seconds = windows.samples_of(pod("p"), told, span, at(now), trial).samples.seconds
            assert all(span.start.timestamp() <= one.at < span.end.timestamp() for one in seconds)
        counted += [one.requests for one in seconds]
        start = end
    assert counted == list(range(counted[0], counted[0] + len(counted)))
    assert abs(counted[0] - 5) <= 2, "the first window began when it should"
    assert abs(len(counted) - start * (1 + drift)) <= 2, "and the last one ended so"
