"""Asking pods for their windows, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.unit.cluster.test_serving import OWNER, SETTINGS, revision
from tests.unit.server.certificates import Authority

from fettle.api.reasons import Reason
from fettle.cluster import figures, serving, windows
from fettle.cluster.kinds import Object
from fettle.cluster.serving import MANAGEMENT_PORT
from fettle.cluster.trials import TrialRecord
from fettle.plan.rollout.analysis import TimeRange
from fettle.plan.rollout.window_totals import Comparisons, Observation, traffic
from fettle.server.tls import Certificate

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
Serve = Callable[..., Awaitable[Object]]  # address, handler and the folder of a certificate


def body(now: float) -> dict[str, Any]:
    second = {"second": int(now) - 5, "requests": 7, "errors": 1, "buckets": {"3": 7}}
    return {"start": now - 60, "now": now, "windows": [second], "bucketBase": 0.05, "bucketRatio": 1.05}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Runs a management port on a loopback address; gives back the pod that has it."""
    runners = []

    async def start(
        address: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], tls: Path | None = None
    ) -> Object:
        app = web.Application()
        app.add_routes([web.get("/fettle/window", handler)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        context = Certificate(tls).context() if tls is not None else None
        await web.TCPSite(runner, address, MANAGEMENT_PORT, ssl_context=context).start()
        runners.append(runner)
        return pod(address)

    yield start
    for runner in runners:
        await runner.cleanup()


def pod(address: str, *, ready: bool = True, restarts: int = 0) -> Object:
    conditions = [{"type": "Ready", "status": str(ready)}]
    metadata = {"name": f"pod-{address}", "uid": f"uid-{address}", "labels": {"fettle.dev/traffic": "on"}}
    containers = [{"name": "server", "restartCount": restarts}]
    return {
        "metadata": metadata,
        "status": {"podIP": address, "conditions": conditions, "containerStatuses": containers},
    }


SPAN = TimeRange(NOW - timedelta(seconds=10), NOW - timedelta(seconds=1))


async def look(
    pods: dict[str, list[Object]], span: TimeRange = SPAN, patience: float = 60.0, trial: TrialRecord | None = None
) -> Any:
    return await windows.observe(pods, span, lambda: NOW, patience, trial or TrialRecord())


def read(text: dict[str, Any], *, now: datetime = NOW, span: TimeRange = SPAN, restarts: int = 0) -> Any:
    answer = figures.parse(json.dumps(text).encode())
    return windows.samples_of(pod("p", restarts=restarts), answer, span, now, TrialRecord())


async def test_pods_are_asked_since_the_windows_begin_and_answer_for_their_revision(serve: Serve) -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(float(request.query["since"]))
        return web.json_response(body(NOW.timestamp()))

    first, second = await serve("127.78.0.1", answer), await serve("127.78.0.2", answer)
    seen = await look({"a": [first], "b": [second, pod("127.78.0.9", ready=False)]})
    assert [sample.pod for sample in seen["a"].pods] == ["pod-127.78.0.1"]
    assert [sample.pod for sample in seen["b"].pods] == ["pod-127.78.0.2"]
    assert seen["b"].silent == ()  # who is not ready is not asked
    assert all(value <= SPAN.start.timestamp() for value in asked)


async def test_a_pod_whose_probes_are_told_to_use_tls_is_asked_over_tls(serve: Serve, tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(body(NOW.timestamp()))

    secret = Authority().issue(tmp_path / "tls")
    encrypted, plain = await serve("127.78.5.1", answer, secret), await serve("127.78.5.2", answer)
    mute = await serve("127.78.5.3", answer, secret)
    template = serving.pod_template(OWNER, revision(server={"tls": {"secretName": "digits-tls"}}), SETTINGS)
    encrypted["spec"] = template["spec"]
    seen = await look({"a": [encrypted, plain, mute]})
    assert [sample.pod for sample in seen["a"].pods] == ["pod-127.78.5.1", "pod-127.78.5.2"]
    assert len(seen["a"].silent) == 1 and seen["a"].silent[0].startswith("pod-127.78.5.3")


async def test_a_pod_that_refuses_or_hangs_is_silent_and_says_why(serve: Serve) -> None:
    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def loading(request: web.Request) -> web.Response:
        return web.Response(status=503)

    hangs = (await look({"a": [await serve("127.78.1.1", hang)]}, patience=0.1))["a"]
    assert hangs.silent == ("pod-127.78.1.1 (no complete response within 0.1 s)",)
    pods = [await serve("127.78.1.3", loading), pod("127.78.1.4"), pod("")]  # nobody listens on the second
    seen = (await look({"a": pods}))["a"]
    assert seen.pods == ()
    assert len(seen.silent) == 3
    assert [silent for silent in seen.silent if "HTTP status 503" in silent] == ["pod-127.78.1.3 (HTTP status 503)"]


GOOD = body(NOW.timestamp())
ONE = GOOD["windows"][0]
NONSENSE = [
    (b"", "Invalid JSON"),
    (b"[]", "object"),
    (b"{}", "start"),
    (GOOD | {"now": math.nan}, "now"),
    (GOOD | {"now": math.inf}, "now"),
    (GOOD | {"now": 1e300}, "now"),
    (GOOD | {"now": True}, "now"),
    (GOOD | {"start": "noon"}, "start"),
    (GOOD | {"kept": -1}, "kept"),
    (GOOD | {"bucketBase": 0}, "bucketBase"),
    (GOOD | {"bucketRatio": 1}, "bucketRatio"),
    (GOOD | {"bucketRatio": 1e9}, "bucketRatio"),
    (GOOD | {"bucketBase": math.inf}, "bucketBase"),
    (GOOD | {"windows": 7}, "windows"),
    (GOOD | {"windows": [ONE | {"buckets": {"100000": 1}}]}, "windows.0.buckets"),
    (GOOD | {"windows": [ONE | {"buckets": {"-1": 1}}]}, "windows.0.buckets"),
    (GOOD | {"windows": [ONE | {"buckets": {"1": True}}]}, "windows.0.buckets"),
    (GOOD | {"windows": [ONE | {"buckets": {"1": 8}}]}, "more errors, or more answers"),
    (GOOD | {"windows": [ONE | {"requests": True}]}, "windows.0.requests"),
    (GOOD | {"windows": [ONE | {"requests": -1}]}, "windows.0.requests"),
    (GOOD | {"windows": [ONE | {"requests": 10**30}]}, "windows.0.requests"),
    (GOOD | {"windows": [ONE | {"errors": 8}]}, "more errors"),
    (GOOD | {"windows": [ONE | {"second": 10**300}]}, "windows.0.second"),
    (GOOD | {"windows": [ONE | {"second": 1.5}]}, "windows.0.second"),
    (GOOD | {"windows": [ONE, ONE]}, "are not in ascending order"),
    (GOOD | {"windows": [ONE | {"outcomes": {"agreed": -3}}]}, "windows.0.outcomes.agreed"),
    (json.dumps(GOOD).split("]")[0].encode(), "is not closed"),
    (json.dumps(GOOD).replace('"windows": [', '"windows": [[').encode(), "JSON"),
    (GOOD | {"windows": [ONE, ONE | {"second": ONE["second"] + 1, "what": " " * (2 << 20)}]}, "is larger than"),
    (GOOD | {"what": " " * (2 << 20)}, "beside its windows"),
    (GOOD | {"windows": "[" * 1000}, "windows"),
    (GOOD | {"agreement": {"problem": {"reason": "Whatever", "message": "x"}}}, "agreement.problem.reason"),
]


@pytest.mark.parametrize(("answer", "says"), NONSENSE, ids=range(len(NONSENSE)))
async def test_a_pod_that_talks_nonsense_is_named_with_what_was_wrong_and_the_others_count_on(
    serve: Serve, answer: Any, says: str
) -> None:
    async def nonsense(request: web.Request) -> web.Response:
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return web.Response(body=text, content_type="application/json")

    async def sense(request: web.Request) -> web.Response:
        return web.json_response(GOOD)

    seen = (await look({"a": [await serve("127.78.2.1", nonsense), await serve("127.78.2.2", sense)]}))["a"]
    (silent,) = seen.silent
    assert silent.startswith("pod-127.78.2.1 (invalid response: ") and says in silent, silent
    assert [sample.pod for sample in seen.pods] == ["pod-127.78.2.2"]


async def test_an_answer_without_an_end_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST_BYTES", 1 << 20)
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 64 << 20:
            await response.write(b" " * (1 << 16))
            sent += 1 << 16
        return response

    (silent,) = (await look({"a": [await serve("127.78.3.1", endless)]}, patience=30.0))["a"].silent
    assert silent == "pod-127.78.3.1 (its response is larger than 1 MiB)"
    assert sent < 32 << 20


@pytest.mark.parametrize(
    ("agreement", "reason", "says"),
    [
        ({"stable": "a", "problem": None}, None, ""),
        (None, Reason.ANALYSIS_INCONCLUSIVE, "pod pod-p: it does not compare answers"),
        (
            {"stable": None, "problem": {"reason": "AnalysisUnreachable", "message": "x has no IP address"}},
            Reason.ANALYSIS_UNREACHABLE,
            "pod pod-p: x has no IP address",
        ),
    ],
)
def test_what_a_pod_compared_and_why_it_did_not(agreement: Any, reason: Reason | None, says: str) -> None:
    text = body(NOW.timestamp()) | {"agreement": agreement}
    text["windows"][0]["outcomes"] = {"agreed": 7, "disagreed": 2}
    samples = read(text).samples
    assert samples.seconds[0].comparisons == Comparisons(7, 2, 0)
    found = samples.incomparable
    assert (found.reason if found else None) == reason
    assert says in (found.message if found else "")


@pytest.mark.parametrize("skew", [-86_400, -30, -0.49, 0, 0.51, 30, 86_400])
async def test_a_pods_clock_is_set_right_however_far_it_is_off(serve: Serve, skew: float) -> None:
    async def answer(request: web.Request) -> web.Response:
        there = body(NOW.timestamp() + skew)
        shown = [one for one in there["windows"] if one["second"] >= float(request.query["since"])]
        return web.json_response(there | {"windows": shown})

    (samples,) = (await look({"a": [await serve("127.78.4.1", answer)]}))["a"].pods
    assert [second.requests for second in samples.seconds] == [7]
    assert abs(samples.seconds[0].at - (NOW.timestamp() - 5)) <= 1
    assert samples.seconds[0].latencies == {3: 6}, "the failure is not among them"


@pytest.mark.parametrize(
    ("buckets", "latencies"),
    [({"3": 4, "9": 2}, {3: 4, 9: 2}), ({"3": 4, "9": 3}, {3: 3, 9: 3}), ({"0": 1, "9": 6}, {9: 6}), ({}, {})],
)
def test_failures_have_no_time_even_if_a_server_gives_them_one(buckets: Any, latencies: Any) -> None:
    (second,) = read(GOOD | {"windows": [ONE | {"buckets": buckets}]}).samples.seconds
    assert (second.requests, second.errors, second.latencies) == (7, 1, latencies)


MOMENT = NOW.timestamp()


@pytest.mark.parametrize(
    ("name", "answer", "restarts", "until", "keeps"),
    [
        ("an older server, young", {"start": MOMENT - 60}, 0, None, None),
        ("an older server, older than its ring", {"start": MOMENT - 5000}, 0, MOMENT - 899, 900),
        ("all since it began", {"start": MOMENT - 5000.5, "kept": MOMENT - 5000}, 0, None, None),
        ("its last hour", {"start": MOMENT - 5000, "kept": MOMENT - 3600}, 0, MOMENT - 3600, None),
        ("its clock was set just now", {"start": MOMENT - 5000, "kept": MOMENT - 3}, 0, MOMENT - 3, None),
        ("it began in the window: there was nothing before", {"start": MOMENT - 4, "kept": MOMENT - 4}, 0, None, None),
        ("its container was restarted", {"start": MOMENT - 4, "kept": MOMENT - 4}, 2, MOMENT - 4, None),
    ],
)
def test_what_a_pod_does_not_know_any_more(
    name: str, answer: Any, restarts: int, until: float | None, keeps: float | None
) -> None:
    lost = read(GOOD | answer, restarts=restarts).lost
    assert (lost.until if lost else None, lost.keeps if lost else None) == (until, keeps), name


async def test_a_pod_that_had_traffic_is_asked_although_it_is_not_ready_now(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(GOOD)

    there, away = await serve("127.78.5.1", answer), pod("127.78.5.2")
    trial = TrialRecord("u", "b")
    trial.see([there, away], NOW)
    pods = [{**one, "status": {**one["status"], "conditions": []}} for one in (there, away)]
    trial.see(pods, NOW)
    seen: Observation = (await look({"b": pods}, trial=trial))["b"]
    assert [sample.pod for sample in seen.pods] == ["pod-127.78.5.1"]
    assert seen.silent == ()
    assert [lost.message for lost in seen.lost] == ["pod pod-127.78.5.2 is not ready and does not answer"]


async def test_the_end_of_a_container_is_told_on_its_nodes_clock(serve: Serve) -> None:
    async def behind(request: web.Request) -> web.Response:
        return web.json_response(body(NOW.timestamp() - 30))

    crashed = await serve("127.78.6.1", behind)
    finished = (NOW - timedelta(seconds=35)).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": 139, "reason": "Error", "finishedAt": finished}
    crashed["status"]["containerStatuses"][0] |= {"lastState": {"terminated": ended}}
    (crash,) = (await look({"b": [crashed]}))["b"].crashes
    assert crash.at == NOW - timedelta(seconds=5)


def test_hours_of_seconds_are_summed_on_their_way_in() -> None:
    seconds = range(int(MOMENT) - 21_600, int(MOMENT))
    told = [{"second": second, "requests": 3, "errors": 1, "buckets": {"4": 1, "7": 1}} for second in seconds]
    span = TimeRange(NOW - timedelta(seconds=21_600), NOW)
    samples = read(GOOD | {"start": MOMENT - 90_000, "kept": MOMENT - 30_000, "windows": told}, span=span).samples
    assert len(samples.seconds) <= windows.MOST_BLOCKS
    whole = traffic(Observation((samples,)), span.start, span.end)
    assert (whole.requests, whole.errors, whole.answers) == (3 * 21_600, 21_600, 2 * 21_600)


def hours(padding: int = 0) -> dict[str, Any]:
    told = {"requests": 3, "errors": 1, "buckets": {"4": 1, "7": 1}, "padding": "x" * padding}
    seconds = [{"second": int(MOMENT) - 21_600 + index, **told} for index in range(21_600)]
    return GOOD | {"start": MOMENT - 90_000, "kept": MOMENT - 30_000, "windows": seconds}


def test_hours_of_seconds_are_read_some_at_a_time_and_none_twice() -> None:
    body = json.dumps(hours()).encode()
    pieces = list(figures.parse(body).pieces())
    assert len(pieces) > len(body) // figures.PIECE - 1
    assert [one.second for piece in pieces for one in piece] == [one["second"] for one in hours()["windows"]]


async def test_of_large_answers_few_are_held_at_a_time_and_no_pod_is_silent_for_that(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "LARGE_AT_ONCE", 1)
    body, waiting, first, go = json.dumps(hours(700)).encode(), 0, asyncio.Event(), asyncio.Event()
    assert 16 << 20 < len(body) < windows.MOST_BYTES  # more than goes into a connection's buffers

    async def large(request: web.Request) -> web.StreamResponse:
        nonlocal waiting
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(0, len(body) - 1, 1 << 18):
            await response.write(body[at : min(at + (1 << 18), len(body) - 1)])
        waiting += 1
        first.set()
        await go.wait()
        await response.write(body[-1:])
        return response

    pods = [await serve(f"127.78.9.{index}", large) for index in range(1, 4)]
    looking = asyncio.create_task(look({"a": pods}, patience=60.0))
    await first.wait()
    await asyncio.sleep(0.5)
    assert waiting == 1
    go.set()
    seen = (await looking)["a"]
    assert len(seen.pods) == 3 and seen.silent == ()
