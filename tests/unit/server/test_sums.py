"""What the processes of a pod count separately, put together: the sum of the parts is what one process would have counted."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from tests.unit.server.test_drift import SIGNATURE, Clock, drawn, made

from fettle.api.window import Agreement, Window, WindowsHead, summed, written
from fettle.api.window import Drift as WindowDrift
from fettle.cluster import figures
from fettle.plan.rollout.window_totals import Observation, PodSamples, Second, Traffic, traffic
from fettle.server.drift import Drift
from fettle.server.metrics import Metrics, Sum
from fettle.server.request import Code
from fettle.server.windows import Windows
from fettle.store.comparison import Outcome

PROCESSES = 3
Told = tuple[WindowsHead, list[Window]]


def told(windows: Windows, since: float = 0) -> Told:
    head, seconds = windows.since(since)
    return head, [Window.model_validate_json(second) for second in seconds]


def as_read(head: WindowsHead, seconds: list[Window]) -> Traffic:
    """What the operator makes of a response."""
    read = figures.parse(written(head, (second.written() for second in seconds)))
    counted = [Second(w.second, w.requests, w.errors, w.latencies()) for piece in read.pieces() for w in piece]
    pod = PodSamples("pod", tuple(counted), read.head.bucket_base, read.head.bucket_ratio)
    return traffic(Observation((pod,)), datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(10_000, UTC))


EVENTS = st.tuples(
    st.integers(0, PROCESSES - 1), st.integers(0, 5), st.floats(0.01, 1e4), st.booleans(), st.sampled_from(Outcome)
)


@given(st.lists(EVENTS, max_size=60))
def test_the_sum_of_the_processes_windows_is_the_window_of_one_that_counts_all(
    events: list[tuple[int, int, float, bool, Outcome]],
) -> None:
    now = [1000.0]
    whole, *parts = (Windows(clock=lambda: now[0], ticks=lambda: now[0]) for _ in range(1 + PROCESSES))
    for number, second, milliseconds, error, outcome in sorted(events, key=lambda event: event[1]):
        now[0] = 1000.5 + second
        for windows in (whole, parts[number]):
            windows.record(milliseconds, error=error)
            windows.compare(outcome)
    now[0] = 1006.0
    head, seconds = summed([told(part) for part in parts])
    assert (head, list(seconds)) == told(whole)


def test_percentiles_are_those_of_all_answers_and_not_of_one_process() -> None:
    now, rng = [1000.0], random.Random(3)
    whole, quick, slow = (Windows(clock=lambda: now[0], ticks=lambda: now[0]) for _ in range(3))
    for part, mean, count in ((quick, 1.0, 900), (slow, 50.0, 100)):
        for _ in range(count):
            milliseconds = rng.expovariate(1 / mean)
            whole.record(milliseconds, error=False)
            part.record(milliseconds, error=False)
    now[0] = 1001.0
    head, seconds = summed([told(quick), told(slow)])
    found, expected = as_read(head, list(seconds)), as_read(*told(whole))
    assert found == expected
    assert [found.percentile(percent) for percent in (50, 95, 99)] == [expected.percentile(p) for p in (50, 95, 99)]
    assert found.percentile(95) > as_read(*told(quick)).percentile(99)


def head_of(start: float, kept: float, now: float, **more: object) -> WindowsHead:
    return WindowsHead(start=start, kept=kept, now=now, bucket_base=0.05, bucket_ratio=1.05).model_copy(update=more)


def test_a_second_is_told_once_every_process_has_told_all_of_it() -> None:
    """One answered before its second was over, and another one forgot what is older."""
    early = (head_of(100.5, 100.5, 105.9), [Window(second=at, requests=1) for at in range(101, 105)])
    late = (head_of(100.7, 103.0, 106.1), [Window(second=at, requests=1) for at in range(103, 106)])
    head, seconds = summed([early, late])
    assert (head.start, head.kept, head.now) == (100.7, 103.0, 105.9)
    assert [(second.second, second.requests) for second in seconds] == [(103, 2), (104, 2)]


def test_a_process_that_had_no_request_in_a_second_adds_nothing() -> None:
    _head, seconds = summed([(head_of(1, 1, 9), [Window(second=3, requests=2, errors=1)]), (head_of(1, 1, 9), [])])
    assert [second.to_json() for second in seconds] == [Window(second=3, requests=2, errors=1).to_json()]


def test_the_process_that_compares_says_with_whom() -> None:
    agreement = Agreement(stable="abc")
    parts = [(head_of(1, 1, 9), []), (head_of(1, 1, 9, agreement=agreement, drift=WindowDrift(items=3)), [])]
    head, _ = summed(parts)
    assert (head.agreement, head.drift) == (agreement, None)


def test_counts_of_different_seconds_are_not_summed() -> None:
    with pytest.raises(ValueError, match="expected counts of the second 3, found those of 4"):
        Window(second=3) + Window(second=4)


def test_the_sum_of_the_processes_metrics_is_what_one_would_tell() -> None:
    whole, *parts = (Metrics("m", "r") for _ in range(1 + PROCESSES))
    for number in range(200):
        for metrics in (whole, parts[number % PROCESSES]):
            metrics.count((Code.OK, Code.INVALID, Code.FAILED)[number % 7 % 3])
            metrics.latency.observe(2.0 ** -(number % 16))
            metrics.ran(1 + number % 8, 0.25)
            metrics.compare(Outcome.AGREED, 0.5)
            metrics.waiting.inc()
    found = Sum([part.families() for part in parts]).text().decode().splitlines()
    expected = generate_latest(whole.registry).decode().splitlines()
    created = [line for line in expected if "_created{" in line]
    assert sorted(line for line in found if "_created{" not in line) == sorted(set(expected) - set(created))
    assert len([line for line in found if "_created{" in line]) == len(created)


def test_the_certificate_that_expires_first_counts() -> None:
    parts = [Metrics("m", "r") for _ in range(2)]
    for part, expires in zip(parts, (2e9, 1e9), strict=True):
        part.certificate(lambda expires=expires: expires)
    assert 'timestamp_seconds{model="m",revision="r"} 1e+09' in Sum([part.families() for part in parts]).text().decode()


def test_drift_is_that_of_the_items_of_all_processes() -> None:
    clock = Clock()
    whole, *parts = (Drift(made(), SIGNATURE, ("m", "r"), clock) for _ in range(1 + PROCESSES))
    rng = np.random.default_rng(7)
    for number in range(330):
        item = drawn(rng, {"x": 2.0})
        for drift in (whole, parts[number % PROCESSES]):
            drift.count(*item)
    counted = parts[0].counted() + parts[1].counted() + parts[2].counted()
    assert parts[0].counted().told() == [], "too few items to say anything"
    assert (counted.items, counted.told()) == (whole.counted().items, whole.counted().told())
    assert counted.window() == whole.counted().window()
    assert [metric.samples for metric in counted.metrics()] == [metric.samples for metric in whole.collect()]
