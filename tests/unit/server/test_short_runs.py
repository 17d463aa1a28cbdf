"""Runs that the event loop does itself, and who they may not overtake."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping

import numpy as np
import orjson
import pytest
from tests.unit.server.in_process import BODY, Sent, counted

from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array, Interrupt
from fettle.server import protocol
from fettle.server.pace import PATIENCE
from fettle.server.request import Code, RequestError
from fettle.server.service import InferenceService

ONE_ITEM = np.zeros((1, 4), np.float32).nbytes


class Noting:
    """y = x. Notes the first number of each run and its thread; items of two wait until they may go on."""

    def __init__(self) -> None:
        self.runs: list[tuple[float, str]] = []
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def infer(self, inputs: Mapping[str, Array], interrupt: Interrupt | None = None) -> dict[str, Array]:
        x = inputs["x"]
        self.runs.append((float(x[0, 0]), threading.current_thread().name.rstrip("_0123456789")))
        if len(x) == 2:
            self.begun.set()
            self.goes_on.wait()
        if x[0, 0] < 0:
            raise RuntimeFailure("a bad item")
        return {"y": x}

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def session(service: InferenceService) -> Iterator[Noting]:
    """The service's model, one item of which is known to be short."""
    made = Noting()
    service.model.session = made
    service.model.pace.measured(ONE_ITEM, 0.0)
    yield made
    made.goes_on.set()


def request(service: InferenceService, number: float, rows: int = 1) -> asyncio.Task[bytes]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": [number] * (4 * rows)}
    body = orjson.dumps({"inputs": [tensor]})
    return asyncio.create_task(service.infer(service.bodies.read(Sent(body), len(body)), protocol))


def in_one_turn(service: InferenceService, *numbers: float) -> list[asyncio.Task[bytes]]:
    """Requests whose bodies have arrived when the event loop turns next."""

    async def later(body: bytes) -> bytes | bytearray:
        await asyncio.sleep(0)
        return await service.bodies.read(Sent(body), len(body))

    def body(number: float) -> bytes:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [number] * 4}
        return orjson.dumps({"inputs": [tensor]})

    return [asyncio.create_task(service.infer(later(body(number)), protocol)) for number in numbers]


async def test_a_short_run_is_done_where_its_request_is(service: InferenceService, session: Noting) -> None:
    await asyncio.gather(request(service, 1), request(service, 2), request(service, 3))
    assert session.runs == [(1, "MainThread"), (2, "MainThread"), (3, "MainThread")]
    assert counted(service) == (3, 0, {200: 3})
    value = service.metrics.registry.get_sample_value
    labels = {"model": "lookup", "revision": "r"}
    assert value("fettle_server_run_seconds_count", labels) == 3
    assert value("fettle_server_queue_seconds_count", labels) == 0


async def test_short_requests_of_one_turn_share_a_run_and_each_gets_its_own_items(
    service: InferenceService, session: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.model.batcher, "items_here", 3)
    answers = await asyncio.gather(*in_one_turn(service, 1, 2, 3, 4, 5, 6))
    assert [number for number, _ in session.runs] == [1, 4], "three, and three"
    assert {thread for _, thread in session.runs} == {"MainThread"}
    assert [orjson.loads(answer)["outputs"][0]["data"] for answer in answers] == [[n] * 4 for n in range(1, 7)]
    value = service.metrics.registry.get_sample_value
    assert value("fettle_server_run_items_sum", {"model": "lookup", "revision": "r"}) == 6


async def test_a_short_request_that_fails_or_is_cancelled_disturbs_none_of_its_turn(
    service: InferenceService, session: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.model.batcher, "items_here", 8)
    tasks = in_one_turn(service, -1, 2, 3, 4)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(service.model.batcher._here) == len(tasks)
    tasks[2].cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [RequestError, bytes, asyncio.CancelledError, bytes]
    assert [orjson.loads(ends[at])["outputs"][0]["data"][0] for at in (1, 3)] == [2, 4]
    assert 3 not in [number for number, _ in session.runs]
    assert counted(service) == (3, 1, {500: 1, 200: 2, 499: 1})
    assert service.model.waiting == 0


async def test_a_short_run_takes_its_turn_behind_those_that_wait_for_the_model(
    service: InferenceService, session: Noting
) -> None:
    long = request(service, 1, rows=2)
    await asyncio.to_thread(session.begun.wait)
    others = [request(service, 2), request(service, 3)]
    await asyncio.sleep(0)
    assert session.runs == [(1, "infer")]
    session.goes_on.set()
    await asyncio.gather(long, *others)
    assert session.runs == [(1, "infer"), (2, "infer"), (3, "infer")]
    await request(service, 4)
    assert session.runs[-1] == (4, "MainThread")


async def test_a_short_run_that_fails_fails_as_any_other(service: InferenceService, session: Noting) -> None:
    with pytest.raises(RequestError, match="a bad item") as raised:
        await request(service, -1)
    assert raised.value.code is Code.FAILED
    assert counted(service) == (1, 1, {500: 1})
    assert service.model.waiting == 0


@pytest.mark.parametrize(("runs", "very_long"), [(2, 0.0), (PATIENCE, 3600.0)])
async def test_a_model_that_becomes_slow_leaves_the_event_loop(
    service: InferenceService, session: Noting, monkeypatch: pytest.MonkeyPatch, runs: int, very_long: float
) -> None:
    monkeypatch.setattr("fettle.server.pace.VERY_LONG_SECONDS", very_long)
    monkeypatch.setattr("fettle.server.pace.LONG_SECONDS", 0.0)
    for _ in range(runs + 1):
        await service.infer(service.bodies.read(Sent(BODY), len(BODY)), protocol)
    assert [thread for _, thread in session.runs] == ["MainThread"] * runs + ["infer"]
