"""The server's pieces without a process: windows, connections, the protocol's tensors."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import orjson
import pytest

from fettle.api.modeldeployment import AnalysisSpec
from fettle.api.signature import Signature, Tensor
from fettle.api.window import BUCKET_BASE, BUCKET_RATIO
from fettle.cluster.windows import CLOCK_SLACK_SECONDS
from fettle.plan.rollout.analysis import PATIENCE
from fettle.server.connections import Connections
from fettle.server.protocol import decode, encode
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.windows import KEEP_SECONDS, Windows, bucket


class Clock:
    """Time that moves when told: the machine's clock is `now + ahead`, its ticks are `now`."""

    def __init__(self, now: float) -> None:
        self.now, self.ahead = now, 0.0

    def __call__(self) -> float:
        return self.now + self.ahead

    def ticks(self) -> float:
        return self.now


def windows_at(clock: Clock, **more: int) -> Windows:
    return Windows(clock=clock, ticks=clock.ticks, **more)


def told(windows: Windows, since: float = 0) -> list[dict[str, Any]]:
    return [orjson.loads(second) for second in windows.since(since)[1]]


def test_a_second_is_told_only_when_it_is_over() -> None:
    clock = Clock(100.2)
    windows = windows_at(clock)
    windows.record(3, error=False)
    assert told(windows) == []
    clock.now = 101.0
    windows.record(3, error=True)
    assert [(w["second"], w["requests"], w["errors"]) for w in told(windows)] == [(100, 1, 0)]
    assert told(windows, since=101) == []


def test_seconds_too_old_are_forgotten_and_it_says_from_when_on_all_are_known() -> None:
    clock = Clock(100.5)
    windows = windows_at(clock, keep=3)
    assert windows.since(0)[0].kept == 100.5  # when the process began
    for second in range(100, 106):
        clock.now = second + 0.5
        windows.record(1, error=False)
    clock.now = 106
    assert [w["second"] for w in told(windows)] == [103, 104, 105]
    assert windows.since(0)[0].kept == 103


def test_a_quiet_pod_knows_every_second_since_it_began() -> None:
    clock = Clock(100)
    windows = windows_at(clock)
    windows.record(1, error=False)
    clock.now = 100 + KEEP_SECONDS - 1
    head, _ = windows.since(0)
    assert (head.start, head.kept, head.now) == (100, 100, clock.now)
    assert [w["second"] for w in told(windows)] == [100]


def test_what_is_kept_and_told_is_bounded_in_bytes_and_it_says_from_when_on_all_are_known() -> None:
    clock = Clock(1000)
    windows = windows_at(clock, most_bytes=10_000)
    for second in range(1000, 1500):
        clock.now = second
        for milliseconds in range(1, 40):
            windows.record(milliseconds * 1.1, error=False)
    clock.now = 1500
    head, seconds = windows.since(0)
    kept = [w["second"] for w in told(windows)]
    assert sum(map(len, seconds)) <= 10_000
    assert head.kept is not None
    assert kept == list(range(int(head.kept), 1500)) and kept[0] > 1000


def test_as_long_is_kept_as_an_analysis_may_ask() -> None:
    longest = AnalysisSpec.model_fields["interval_seconds"].metadata
    seconds = next(limit.le for limit in longest if hasattr(limit, "le"))
    assert PATIENCE * seconds + CLOCK_SLACK_SECONDS <= KEEP_SECONDS


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_clock_that_is_set_is_a_new_beginning(step: float) -> None:
    clock = Clock(10_000)
    windows = windows_at(clock)
    windows.record(1, error=False)
    clock.now, clock.ahead = 10_005, step
    windows.record(1, error=True)
    clock.now = 10_006
    head, _ = windows.since(0)
    assert (head.kept, head.now) == (10_005 + step, 10_006 + step)
    assert [(w["second"], w["errors"]) for w in told(windows)] == [(10_005 + step, 1)]


@pytest.mark.parametrize("milliseconds", [0.001, 0.05, 0.051, 1, 7.3, 250, 60_000])
def test_a_bucket_is_at_most_five_percent_wide(milliseconds: float) -> None:
    upper = BUCKET_BASE * BUCKET_RATIO ** bucket(milliseconds)
    assert upper >= milliseconds * (1 - 1e-9)
    assert upper <= max(BUCKET_BASE, milliseconds * BUCKET_RATIO * (1 + 1e-9))


def test_a_connection_ends_after_its_requests_or_its_time_and_starts_anew() -> None:
    clock = Clock(0)
    connections = Connections(10, 60, clock, random.Random(1))
    answers = [connections.should_close("a:1") for _ in range(40)]
    ends = [index for index, closing in enumerate(answers) if closing]
    assert all(7 <= b - a <= 13 for a, b in zip([-1, *ends], ends, strict=False))
    assert connections.should_close("b:1") is False
    clock.now = 76
    assert connections.should_close("b:1") is True


def test_who_comes_from_the_address_of_a_connection_that_hung_up_long_ago_has_a_new_one() -> None:
    clock = Clock(0)
    connections = Connections(1000, 10, clock)
    assert connections.should_close("a:1") is False
    clock.now = 20
    assert connections.should_close("a:1") is False


def test_connections_that_hung_up_are_forgotten() -> None:
    clock = Clock(0)
    connections = Connections(1000, 10, clock)
    for port in range(500):
        connections.should_close(f"a:{port}")
    clock.now = 100
    connections.should_close("b:1")
    assert len(connections._open) == 1


SIGNATURE = Signature(
    inputs=(
        Tensor(name="ids", dtype="INT64", shape=(-1, 3), batch_axis=0),
        Tensor(name="text", dtype="BYTES", shape=(-1, 1), batch_axis=0),
        Tensor(name="flag", dtype="BOOL", shape=(-1, 1), batch_axis=0),
    ),
    outputs=(Tensor(name="p", dtype="FP32", shape=(-1, 2), batch_axis=0),),
)


def request(**changes: object) -> bytes:
    entries = {
        "ids": {"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]},
        "text": {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["ä"]},
        "flag": {"name": "flag", "datatype": "BOOL", "shape": [1, 1], "data": [True]},
    }
    for name, change in changes.items():
        entries[name] |= change  # type: ignore[operator]
    return json.dumps({"inputs": list(entries.values())}).encode()


def test_every_input_becomes_an_array_of_its_type() -> None:
    decoded = decode(request(), SIGNATURE, 10)
    assert decoded.rows == 1
    assert decoded.inputs["ids"].dtype == np.int64
    assert decoded.inputs["text"].tolist() == [["ä"]]
    assert decoded.inputs["flag"].dtype == np.bool_


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": {"data": [1.5, 2, 3]}}, "do not fit INT64"),
        ({"ids": {"data": [True, False, True]}}, "do not fit INT64"),
        ({"ids": {"data": [1, 2, 2**70]}}, "INT64"),
        ({"text": {"data": [1]}}, "do not fit BYTES"),
        ({"flag": {"data": [1]}}, "do not fit BOOL"),
        ({"ids": {"shape": [2, 3], "data": [1] * 6}}, "different numbers of items"),
        ({"ids": {"shape": [-1, 3]}}, '"shape" must be a list of non-negative integers'),
        ({"ids": {"shape": [True, 3]}}, '"shape" must be a list of non-negative integers'),
    ],
)
def test_values_that_do_not_fit_are_refused_not_bent(change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        decode(request(**change), SIGNATURE, 10)
    assert caught.value.code is Code.INVALID


def test_nan_and_infinity_are_null_in_the_answer() -> None:
    outputs = {"p": np.array([[np.nan, np.inf]], np.float32)}
    body = encode("m", "1", InferRequest({}, 1, None, None), SIGNATURE, outputs)
    assert orjson.loads(body)["outputs"][0]["data"] == [None, None]


def test_metadata_shows_the_batch_as_free_though_the_file_is_static() -> None:
    assert Tensor(name="x", dtype="FP32", shape=(1, 4), batch_axis=0).free_shape == [-1, 4]
