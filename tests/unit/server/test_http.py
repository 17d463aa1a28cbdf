"""The HTTP front, on a connection that does as it is told: statuses, headers, and that every answer is counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from tests.unit.server.in_process import BODY, Scripted, Sent, counted

from fettle.errors import RuntimeFailure
from fettle.server import rsgi
from fettle.server.http import HttpFront
from fettle.server.service import InferenceService

INFER = "/v2/models/lookup/infer"


class Connection(Sent):
    """What granian hands to an application: the body, and where the answer goes."""

    def __init__(self, *parts: bytes, then: Exception | None = None) -> None:
        super().__init__(*parts, then=then)
        self.answers: list[tuple[int, list[tuple[str, str]], bytes]] = []

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.answers.append((status, headers, body))

    async def client_disconnect(self) -> None:
        await asyncio.Event().wait()


class Front(HttpFront):
    """A front, and the one event loop that it is used by."""

    def __init__(self, service: InferenceService, runner: asyncio.Runner) -> None:
        super().__init__(service)
        self.runner = runner


@pytest.fixture
def front(service: InferenceService) -> Iterator[Front]:
    with asyncio.Runner() as runner:
        yield Front(service, runner)


def send(front: Front, connection: Connection, path: str = INFER, method: str = "POST", **headers: str) -> None:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    scope = SimpleNamespace(proto="http", path=path, method=method, headers=told, client="a:1", query_string="")
    front.runner.run(front.__rsgi__(scope, connection))


def ask(front: Front, path: str = INFER, body: bytes = BODY, method: str = "POST") -> tuple[int, dict[str, Any]]:
    connection = Connection(body)
    send(front, connection, path, method, content_length=str(len(body)))
    ((status, _, said),) = connection.answers
    return status, orjson.loads(said)


@pytest.mark.parametrize(
    ("does", "expected"),
    [
        (RuntimeFailure("the model failed"), 500),
        (ValueError("all the input array dimensions must match"), 500),
        (MemoryError(), 503),
        (KeyError("y"), 500),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 500),
        ({}, 500),  # an output is missing
        ({"y": np.array(["a"], object)}, 500),  # of another type than the signature's
        ({"y": None}, 500),
    ],
)
def test_an_answer_that_the_model_failed_to_give_is_one_error_in_windows_and_metrics(
    front: Front, does: Mapping[str, Any] | BaseException, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    front.service.model.session = Scripted(does)  # type: ignore[assignment]
    status, said = ask(front)
    assert (status, list(said)) == (expected, ["error"])
    assert counted(front.service) == (1, 1, {expected: 1})
    assert caplog.records
    assert front.service.in_flight == 0 and front.service.bodies.held == 0


def test_an_item_that_cannot_be_kept_for_canaries_is_answered_all_the_same(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    front.service.model.session = Scripted({"y": np.zeros((0, 4), np.float32)})  # type: ignore[assignment]
    status, said = ask(front)  # an answer without items, of which none can be taken
    assert (status, said["outputs"][0]["shape"]) == (200, [0, 4])
    assert counted(front.service) == (1, 0, {200: 1})
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize(
    ("path", "method", "body", "status"),
    [
        (INFER, "POST", b"{", 400),
        (INFER, "GET", b"", 405),
        ("/v2/models/other", "GET", b"", 404),
        ("/v2", "POST", b"", 405),
        ("/v2", "GET", b"", 200),
    ],
)
def test_what_is_not_the_models_doing_counts_in_metrics_only(
    front: Front, path: str, method: str, body: bytes, status: int
) -> None:
    assert ask(front, path, body, method)[0] == status
    assert counted(front.service) == (0, 0, {status: 1})


def test_large_bodies_and_answers_come_out_as_small_ones_do(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ask(front)
    monkeypatch.setattr("fettle.server.service.SMALL_BODY", 0)
    monkeypatch.setattr("fettle.server.service.SMALL_ANSWER", 0)
    assert ask(front) == small
    assert ask(front, body=b"[")[0] == 400


def test_a_full_queue_is_a_503_that_counts(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front.service.model, "waiting", 8)
    assert ask(front)[0] == 503
    assert counted(front.service) == (1, 1, {503: 1})


@pytest.mark.parametrize(
    ("path", "method", "sent", "status", "header"),
    [
        (INFER, "GET", {}, 405, ("Allow", "POST")),
        ("/v2", "POST", {}, 405, ("Allow", "GET, HEAD")),
        (INFER, "POST", {"content_encoding": "gzip"}, 415, ("connection", "close")),
        (INFER, "POST", {"content_length": "1001"}, 413, ("connection", "close")),
        (INFER, "POST", {"content_length": "9999"}, 413, ("connection", "close")),
        (INFER, "POST", {"content_length": "999"}, 400, ("connection", "close")),
    ],
)
def test_an_error_says_what_is_taken_instead_and_ends_a_connection_whose_body_was_not_read(
    front: Front, path: str, method: str, sent: dict[str, str], status: int, header: tuple[str, str]
) -> None:
    connection = Connection(BODY)
    send(front, connection, path, method, **sent)
    ((answered, headers, _),) = connection.answers
    assert answered == status
    assert header in headers
    assert counted(front.service) == (0, 0, {status: 1})


def test_a_client_that_hung_up_counts_as_499_and_hears_why_if_it_closed_its_half_only(front: Front) -> None:
    connection = Connection(b"{", then=rsgi.ProtocolClosed())
    send(front, connection)
    ((status, headers, said),) = connection.answers
    assert (status, ("connection", "close") in headers) == (400, True)
    assert b"before its request was complete" in said
    assert counted(front.service) == (0, 0, {499: 1})


def test_while_draining_every_answer_ends_its_connection_and_the_server_is_not_ready(front: Front) -> None:
    front.service.draining = True
    for path, method, status in ((INFER, "POST", 200), ("/v2/health/ready", "GET", 503), ("/v2", "GET", 200)):
        connection = Connection(BODY)
        send(front, connection, path, method)
        ((answered, headers, _),) = connection.answers
        assert (answered, ("connection", "close") in headers) == (status, True)
    assert counted(front.service) == (1, 0, {200: 2, 503: 1})
