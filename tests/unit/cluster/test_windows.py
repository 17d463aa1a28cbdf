"""Asking pods for their windows, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from fettle.api.reasons import Reason
from fettle.cluster import windows
from fettle.cluster.kinds import Object
from fettle.cluster.serving import MANAGEMENT_PORT
from fettle.plan.analysis import Comparisons

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
Serve = Callable[[str, Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[Object]]


def body(now: float) -> dict[str, Any]:
    second = {"second": int(now) - 5, "requests": 7, "errors": 1, "buckets": {"3": 7}}
    return {"start": now - 60, "now": now, "windows": [second], "bucketBase": 0.05, "bucketRatio": 1.05}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Runs a management port on a loopback address; gives back the pod that has it."""
    runners = []

    async def start(address: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Object:
        app = web.Application()
        app.add_routes([web.get("/fettle/window", handler)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, address, MANAGEMENT_PORT).start()
        runners.append(runner)
        return pod(address)

    yield start
    for runner in runners:
        await runner.cleanup()


def pod(address: str, *, ready: bool = True) -> Object:
    conditions = [{"type": "Ready", "status": str(ready)}]
    metadata = {"name": f"pod-{address}", "labels": {"fettle.dev/traffic": "on"}}
    return {"metadata": metadata, "status": {"podIP": address, "conditions": conditions}}


async def test_pods_are_asked_since_the_windows_begin_and_answer_for_their_revision(serve: Serve) -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(float(request.query["since"]))
        return web.json_response(body(NOW.timestamp()))

    first, second = await serve("127.78.0.1", answer), await serve("127.78.0.2", answer)
    since = NOW - timedelta(seconds=10)
    seen = await windows.observe({"a": [first], "b": [second, pod("127.78.0.9", ready=False)]}, since, lambda: NOW, 2.0)
    assert [sample.pod for sample in seen["a"].pods] == ["pod-127.78.0.1"]
    assert [sample.pod for sample in seen["b"].pods] == ["pod-127.78.0.2"]
    assert seen["b"].silent == ()  # who is not ready is not asked
    assert all(value <= since.timestamp() for value in asked)


async def test_a_pod_that_refuses_hangs_or_talks_nonsense_is_silent(serve: Serve) -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def nonsense(request: web.Request) -> web.Response:
        return web.json_response({"hello": "world"})

    async def loading(request: web.Request) -> web.Response:
        return web.Response(status=503)

    pods = [
        await serve("127.78.1.1", hang),
        await serve("127.78.1.2", nonsense),
        await serve("127.78.1.3", loading),
        pod("127.78.1.4"),  # nobody listens
        pod(""),
    ]
    seen = await windows.observe({"a": pods}, NOW, lambda: NOW, 0.5)
    assert seen["a"].pods == ()
    assert len(seen["a"].silent) == 5


@pytest.mark.parametrize(
    ("agreement", "reason", "says"),
    [
        ({"stable": "a", "problem": None}, None, ""),
        (None, Reason.ANALYSIS_INCONCLUSIVE, "pod p: it does not compare answers"),
        (
            {"stable": None, "problem": {"reason": "AnalysisUnreachable", "message": "x has no address"}},
            Reason.ANALYSIS_UNREACHABLE,
            "pod p: x has no address",
        ),
    ],
)
def test_what_a_pod_compared_and_why_it_did_not(agreement: Any, reason: Reason | None, says: str) -> None:
    text = body(NOW.timestamp()) | {"agreement": agreement}
    text["windows"][0]["outcomes"] = {"agreed": 7, "disagreed": 2}
    samples = windows.samples_of("p", json.dumps(text).encode(), NOW)
    assert samples.seconds[0].comparisons == Comparisons(7, 2, 0)
    found = samples.incomparable
    assert (found.reason if found else None) == reason
    assert says in (found.message if found else "")


def test_a_pods_clock_is_set_right() -> None:
    behind = NOW.timestamp() - 30
    samples = windows.samples_of("p", json.dumps(body(behind)).encode(), NOW)
    assert [second.at for second in samples.seconds] == [NOW.timestamp() - 5]
    assert samples.seconds[0].latencies == {3: 7}


@pytest.mark.parametrize("text", [b"", b"{}", b'{"start": 1, "now": 2, "bucketBase": 0, "bucketRatio": 1}'])
def test_an_answer_without_its_buckets_measure_is_none(text: bytes) -> None:
    with pytest.raises(ValidationError):
        windows.samples_of("p", text, NOW)
