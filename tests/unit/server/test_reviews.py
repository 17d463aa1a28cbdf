"""Tokens of Kubernetes: asked for once, kept for a while, bounded, and nobody is let in whom nobody can ask for."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import orjson
import pytest
from tests.unit.server.serving import BODY, Server
from tools.ports import free_port

from fettle.api.reasons import Reason
from fettle.errors import ClusterError
from fettle.server.access import Access
from fettle.server.request import Code, RequestError
from fettle.server.reviews import (
    BURST,
    MOST_KEPT,
    MOST_WAITING,
    PATH,
    REFUSED_SECONDS,
    Reviews,
    User,
    require_permission,
)
from fettle.server.settings import ServerSettings

AUDIENCE = "lookup.team.svc"
WEB = "system:serviceaccount:team:web"
GROUPS = ["system:serviceaccounts", "system:serviceaccounts:team", "system:authenticated"]


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Cluster:
    """An API server that knows TokenReviews and nothing else: `web` is a token of a ServiceAccount, for one audience."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.owners: list[str | None] = []  # the tokens of who asked
        self.answer: tuple[int, bytes] | None = None  # instead of a TokenReview
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                cluster.asked.append(told)
                cluster.owners.append(self.headers["Authorization"])
                code, body = cluster.answer or (201, orjson.dumps(told | {"status": cluster.status(told["spec"])}))
                self.send_response(code if self.path == PATH else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Nobody reads it."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def status(self, spec: dict[str, Any]) -> dict[str, Any]:
        if spec["token"] != "web" or AUDIENCE not in spec["audiences"]:
            return {"authenticated": False, "error": "[invalid bearer token]", "user": {}}
        return {"authenticated": True, "audiences": [AUDIENCE], "user": {"username": WEB, "groups": GROUPS}}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    yield started
    started.http.shutdown()
    started.http.server_close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settings(cluster: Cluster, folder: Path, **more: Any) -> ServerSettings:
    (folder / "token").write_text("the pod's own\n")
    told = {
        "token_review_folder": folder,
        "token_review_server": cluster.address,
        "token_review_audiences": (AUDIENCE,),
    }
    return ServerSettings(**told | more)


async def who(access: Access, token: str | None) -> str:
    """The name of who is let in with that token. Raises RequestError."""
    header = None if token is None else f"Bearer {token}"
    return await access.identify(header, "10.0.0.7")


async def refusal(access: Access, token: str | None) -> RequestError:
    with pytest.raises(RequestError) as raised:
        await who(access, token)
    return raised.value


async def test_a_token_is_asked_for_with_the_pods_own_and_the_answer_is_kept_for_a_while(
    cluster: Cluster, tmp_path: Path, clock: Clock
) -> None:
    access = Access(settings(cluster, tmp_path), clock)
    assert not access.open
    assert [await who(access, "web") for _ in range(3)] == [WEB] * 3
    assert cluster.asked == [
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": "web", "audiences": [AUDIENCE]},
        }
    ]
    assert cluster.owners == ["Bearer the pod's own"]
    clock.now += 61
    (tmp_path / "token").write_text("the pod's next")
    assert await who(access, "web") == WEB
    assert cluster.owners == ["Bearer the pod's own", "Bearer the pod's next"]


@pytest.mark.parametrize("token", [None, "", "other", "web2", "we", "w" * 20_000, "we\udce9b", "we b", "w\x7fb"])
async def test_no_other_token_lets_anybody_in(
    cluster: Cluster, tmp_path: Path, clock: Clock, token: str | None
) -> None:
    error = await refusal(Access(settings(cluster, tmp_path), clock), token)
    assert (error.code, error.unread) == (Code.UNAUTHENTICATED, True)
    assert "Authorization: Bearer" in error.message and "web" not in error.message
    assert len(cluster.asked) == (token in ("other", "web2", "we")), "what cannot be a token is not asked for"


async def test_a_token_that_is_no_good_is_not_asked_for_again_at_once(
    cluster: Cluster, tmp_path: Path, clock: Clock
) -> None:
    access = Access(settings(cluster, tmp_path), clock)
    for _ in range(3):
        assert (await refusal(access, "other")).code is Code.UNAUTHENTICATED
    assert len(cluster.asked) == 1
    clock.now += REFUSED_SECONDS
    await refusal(access, "other")
    assert len(cluster.asked) == 2


@pytest.mark.parametrize(
    ("told", "let_in"),
    [
        ({"token_review_users": (WEB,)}, True),
        ({"token_review_groups": ("system:serviceaccounts:team",)}, True),
        ({"token_review_users": ("alice",), "token_review_groups": ("system:serviceaccounts:team",)}, True),
        ({"token_review_users": ("alice",)}, False),
        ({"token_review_groups": ("system:serviceaccounts:other",)}, False),
        ({"token_review_users": ("system:serviceaccounts:team",)}, False),
        ({"token_review_audiences": ("another",)}, False),
        ({"token_review_audiences": ("another", AUDIENCE)}, True),
    ],
)
async def test_only_the_users_and_groups_that_are_named_are_let_in(
    cluster: Cluster, tmp_path: Path, clock: Clock, told: dict[str, Any], let_in: bool
) -> None:
    access = Access(settings(cluster, tmp_path, **told), clock)
    if let_in:
        assert await who(access, "web") == WEB
    else:
        assert "whose user is not allowed" in (await refusal(access, "web")).message


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (403, b'{"kind": "Status", "reason": "Forbidden"}'),
        (401, b""),
        (500, b"etcd"),
        (201, b"no JSON"),
        (201, b"[]"),
        (201, b'{"status": null}'),
        (201, b'{"status": {"authenticated": true, "audiences": ["lookup.team.svc"]}}'),
    ],
)
async def test_where_the_api_server_does_not_say_whose_a_token_is_nobody_is_let_in_and_may_try_again(
    cluster: Cluster, tmp_path: Path, clock: Clock, code: int, body: bytes
) -> None:
    access = Access(settings(cluster, tmp_path), clock)
    cluster.answer = code, body
    error = await refusal(access, "web")
    assert (error.code, error.retry_after) == (Code.UNAVAILABLE, 1)
    assert "the Kubernetes API server does not answer as expected" in error.message
    cluster.answer = None
    assert await who(access, "web") == WEB


async def test_an_answer_for_no_audience_is_of_a_server_that_does_not_look_at_them(
    cluster: Cluster, tmp_path: Path, clock: Clock
) -> None:
    cluster.answer = 201, orjson.dumps({"status": {"authenticated": True, "user": {"username": WEB}}})
    assert (await refusal(Access(settings(cluster, tmp_path), clock), "web")).code is Code.UNAUTHENTICATED


async def test_without_an_api_server_known_tokens_are_good_until_their_time_is_over(
    cluster: Cluster, tmp_path: Path, clock: Clock
) -> None:
    access = Access(settings(cluster, tmp_path, token_review_cache_seconds=30), clock)
    assert await who(access, "web") == WEB
    cluster.http.shutdown()
    cluster.http.server_close()
    clock.now += 29
    assert await who(access, "web") == WEB
    clock.now += 1
    assert (await refusal(access, "web")).code is Code.UNAVAILABLE


async def test_a_pod_without_its_own_token_lets_nobody_in(cluster: Cluster, tmp_path: Path, clock: Clock) -> None:
    access = Access(settings(cluster, tmp_path), clock)
    (tmp_path / "token").unlink()
    assert (await refusal(access, "web")).code is Code.UNAVAILABLE


async def test_a_pods_own_token_that_is_none_is_not_shown_in_the_log(
    cluster: Cluster, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(settings(cluster, tmp_path), clock)
    (tmp_path / "token").write_text("precious\nline")
    assert (await refusal(access, "web")).code is Code.UNAVAILABLE
    assert "is not a token" in caplog.text and "precious" not in caplog.text


async def test_a_pod_that_can_start_no_thread_lets_nobody_in(clock: Clock) -> None:
    def ask(token: str) -> User | None:
        raise RuntimeError("can't start new thread")

    with pytest.raises(RequestError) as raised:
        await reviews(ask, clock).name("good")
    assert raised.value.code is Code.UNAVAILABLE


async def test_a_token_whose_time_is_over_is_asked_for_again_and_not_refused(clock: Clock) -> None:
    api = Known("good")
    asked = reviews(api, clock)
    for moment, asks in ((0, 1), (59, 1), (1, 2)):
        clock.now += moment
        assert (await asked.name("good"), len(api.asked)) == ("good", asks)


async def test_tokens_of_a_secret_are_good_beside_those_of_kubernetes_and_are_not_shown_to_it(
    cluster: Cluster, tmp_path: Path, clock: Clock
) -> None:
    tokens, own = tmp_path / "tokens", tmp_path / "own"
    tokens.mkdir()
    own.mkdir()
    (tokens / "alice").write_text("red")
    access = Access(settings(cluster, own, tokens_folder=tokens), clock)
    assert await who(access, "red") == "alice"
    assert cluster.asked == []
    assert await who(access, "web") == WEB


class Known:
    """Knows these tokens, and remembers which it was asked for."""

    def __init__(self, *valid: str) -> None:
        self.valid, self.asked = set(valid), list[str]()

    def __call__(self, token: str) -> User | None:
        self.asked.append(token)
        return User(token) if token in self.valid else None


class Slow:
    """Answers when it may."""

    def __init__(self) -> None:
        self.may, self.asked = threading.Event(), 0

    def __call__(self, token: str) -> User | None:
        self.asked += 1
        self.may.wait(60)
        return User(token) if token.startswith("good") else None


def reviews(ask: Any, clock: Clock, **more: Any) -> Reviews:
    return Reviews(ServerSettings(**more), ask, clock)


async def test_requests_with_the_same_token_wait_for_one_answer_and_who_hangs_up_ends_nothing(clock: Clock) -> None:
    slow = Slow()
    asked = reviews(slow, clock)
    looks = [asyncio.create_task(asked.name("good")) for _ in range(20)]
    await asyncio.sleep(0)
    looks[0].cancel()
    slow.may.set()
    gone, *others = await asyncio.gather(*looks, return_exceptions=True)
    assert isinstance(gone, asyncio.CancelledError)
    assert (slow.asked, others) == (1, ["good"] * 19)


async def test_many_different_tokens_take_bounded_memory_and_good_ones_are_not_forgotten_for_them(clock: Clock) -> None:
    api = Known("good")
    asked = reviews(api, clock)
    await asked.name("good")
    for number in range(MOST_KEPT + 100):
        clock.now += 0.02  # as fast as is taken
        await asked.name(f"bad {number}".replace(" ", "-"))
    assert len(asked._others) == MOST_KEPT
    clock.now = 100.0
    assert (await asked.name("good"), api.asked.count("good")) == ("good", 1)


async def test_strangers_are_asked_for_so_often_and_no_more_and_take_no_turn_of_who_was_good(clock: Clock) -> None:
    api = Known("good")
    asked = reviews(api, clock)
    await asked.name("good")
    clock.now += 61
    for number in range(int(BURST)):
        await asked.name(f"bad-{number}")
    with pytest.raises(RequestError, match="too many tokens are being checked") as raised:
        await asked.name("bad")
    assert raised.value.code is Code.UNAVAILABLE
    assert api.asked.count("good") == 1
    assert (await asked.name("good"), api.asked.count("good")) == ("good", 2), "its time is over"


async def test_no_more_strangers_wait_than_are_bounded_and_who_was_good_does_not_wait_behind_them(clock: Clock) -> None:
    slow, api = Slow(), Known("good")
    asked = reviews(lambda token: api(token) if token == "good" else slow(token), clock)
    await asked.name("good")
    strangers = [asyncio.create_task(asked.name(f"bad-{number}")) for number in range(MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(RequestError, match="too many tokens are being checked"):
        await asked.name("bad")
    clock.now += 61
    assert (await asked.name("good"), len(api.asked)) == ("good", 2)
    assert not any(one.done() for one in strangers)
    slow.may.set()
    assert await asyncio.gather(*strangers) == [None] * MOST_WAITING
    assert asked._asking == {} and asked._strangers == 0


async def test_a_token_that_was_good_and_is_withdrawn_is_refused_when_its_time_is_over(clock: Clock) -> None:
    api = Known("good")
    asked = reviews(api, clock)
    await asked.name("good")
    api.valid.clear()
    clock.now += 59
    assert await asked.name("good") == "good"
    clock.now += 1
    assert await asked.name("good") is None


async def test_a_pod_that_may_not_ask_whose_a_token_is_says_so_before_the_first_request(
    cluster: Cluster, tmp_path: Path
) -> None:
    told = settings(cluster, tmp_path)
    await require_permission(told)
    assert [cluster.status(asked["spec"])["authenticated"] for asked in cluster.asked] == [False]
    cluster.answer = 403, b'{"kind": "Status", "reason": "Forbidden"}'
    with pytest.raises(ClusterError, match=r"may create tokenreviews; .* rbac\.tokenReviewers") as raised:
        await require_permission(told)
    assert raised.value.reason is Reason.FORBIDDEN


@pytest.mark.parametrize("answer", [(500, b"etcd"), (401, b""), (429, b""), (201, b"no JSON"), None])
async def test_an_api_server_that_does_not_answer_at_the_start_keeps_no_pod_from_serving(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: tuple[int, bytes] | None
) -> None:
    cluster.answer = answer
    if answer is None:
        cluster.http.shutdown()
        cluster.http.server_close()
    await require_permission(settings(cluster, tmp_path))
    assert "tokens of Kubernetes cannot be checked yet: " in caplog.text


def test_a_server_that_may_not_ask_whose_a_token_is_ends_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    own, log = tmp_path / "own", tmp_path / "log"
    own.mkdir()
    (own / "token").write_text("the pod's own")
    cluster.answer = 403, b""
    with log.open("w") as stream, pytest.raises(RuntimeError, match="exited with 1 before it was ready"):
        Server(tmp_path, log=stream.fileno(), token_review_folder=own, token_review_server=cluster.address)
    assert "\nForbidden: server.auth.tokenReview: " in log.read_text()


def test_a_server_that_may_not_ask_says_so_whatever_becomes_of_its_model(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the pod's own")
    cluster.answer = 403, b""
    told: dict[str, object] = {"folder": tmp_path / "nothing", "sha256": "0" * 64, "management_port": free_port()}
    told |= {"token_review_folder": tmp_path, "token_review_server": cluster.address}
    environment = os.environ | {f"FETTLE_SERVER_{key.upper()}": str(value) for key, value in told.items()}
    command = [sys.executable, "-m", "fettle.server", "serve"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Forbidden: server.auth.tokenReview: ")


def test_a_server_asks_for_tokens_of_both_protocols_and_an_outage_is_no_failure_of_the_model(
    cluster: Cluster, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "token").write_text("the pod's own")
    server = Server(
        tmp_path, token_review_folder=own, token_review_server=cluster.address, token_review_audiences=f'["{AUDIENCE}"]'
    )

    def ask(token: str | None) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.post(f"{server.url}/infer", json=BODY, headers=headers)

    try:
        assert [ask(token).status_code for token in ("web", "web", "other", None)] == [200, 200, 401, 401]
        at_start, *tokens = [asked["spec"]["token"] for asked in cluster.asked]
        assert (at_start not in tokens, tokens) == (True, ["web", "other"])
        assert httpx.get(server.url.partition("/v2")[0] + "/v2/health/ready").json() == {"ready": True}
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            assert call(b"", timeout=60, metadata=(("authorization", "Bearer web"),))
            with pytest.raises(grpc.RpcError) as raised:
                call(b"", timeout=60, metadata=(("authorization", "Bearer other"),))
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        cluster.answer = 500, b"etcd"
        refused = ask("another")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "cannot be checked" in refused.json()["error"]
        assert ask("web").status_code == 200
        metrics = httpx.get(f"{server.admin}/metrics").text
        assert 'fettle_server_requests_total{code="503",model="lookup",revision="abc123"} 1.0' in metrics
        assert 'fettle_server_requests_total{code="401",model="lookup",revision="abc123"} 3.0' in metrics
        window = httpx.get(f"{server.admin}/fettle/window", params={"since": 0}).json()
        assert sum(second["errors"] for second in window["windows"]) == 0
    finally:
        server.stop()
