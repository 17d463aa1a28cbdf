"""Every answer is counted once, whatever made it: the data port's application on a session and a connection that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from tests.unit.server.serving import publish

from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array, Interrupt
from fettle.server.application import Application
from fettle.server.model import ServedModel, load
from fettle.server.settings import ServerSettings
from fettle.store.manifest import fetch_artifact
from fettle.store.uris import Mounts

BODY = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
INFER = "/v2/models/lookup/infer"


class Scripted:
    """A session that answers with what it is given, or raises it."""

    def __init__(self, does: Mapping[str, Any] | BaseException) -> None:
        self.does = does

    def infer(self, inputs: Mapping[str, Array], interrupt: Interrupt | None = None) -> dict[str, Any]:
        if isinstance(self.does, BaseException):
            raise self.does
        return dict(self.does)

    def close(self) -> None:
        """Nothing to free."""


class Connection:
    """What granian hands to an application: the body, and where the answer goes."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.answers: list[tuple[int, list[tuple[str, str]], bytes]] = []

    async def __call__(self) -> bytes:
        return self.body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.answers.append((status, headers, body))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    root = tmp_path_factory.mktemp("application")
    sha256 = publish(root)
    mounts = Mounts({"store": root / "store"})
    fetch_artifact(f"pvc://store/artifacts/{sha256}", sha256, root / "model", mounts)
    loaded = load(root / "model", sha256, None, 8)
    yield loaded
    loaded.close()


@pytest.fixture
def application(model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    monkeypatch.setattr(model, "session", model.session)  # put back afterwards
    made = Application(ServerSettings(model="lookup", revision="r", folder=tmp_path), model)
    yield made
    made.close()


def ask(
    application: Application, path: str = INFER, body: bytes = BODY, method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    connection = Connection(body)
    headers = {"content-length": str(len(body))}
    scope = SimpleNamespace(proto="http", path=path, method=method, headers=headers, client="a:1", query_string="")
    asyncio.run(application.__rsgi__(scope, connection))
    ((status, _, said),) = connection.answers
    return status, orjson.loads(said)


def counted(application: Application) -> tuple[int, int, dict[int, float]]:
    """Requests and errors of the windows, and answers by code of the metrics."""
    window = application.windows._current
    codes = {code: counter._value.get() for code, counter in application.metrics._codes.items()}
    return (window.requests, window.errors, codes) if window is not None else (0, 0, codes)


@pytest.mark.parametrize(
    "does",
    [
        RuntimeFailure("the model failed"),
        ValueError("all the input array dimensions must match"),
        MemoryError(),
        KeyError("y"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        {},  # an output is missing
        {"y": np.array(["a"], object)},  # of another type than the signature's
        {"y": None},
    ],
)
def test_an_answer_that_the_model_failed_to_give_is_one_500_in_windows_and_metrics(
    application: Application, does: Mapping[str, Any] | BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    application.model.session = Scripted(does)  # type: ignore[assignment]
    status, said = ask(application)
    assert (status, list(said)) == (500, ["error"])
    assert counted(application) == (1, 1, {500: 1})
    assert caplog.records
    assert application.in_flight == 0 and application.bodies.held == 0


def test_an_item_that_cannot_be_kept_for_canaries_is_answered_all_the_same(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    application.model.session = Scripted({"y": np.zeros((0, 4), np.float32)})  # type: ignore[assignment]
    status, said = ask(application)  # an answer without items, of which none can be taken
    assert (status, said["outputs"][0]["shape"]) == (200, [0, 4])
    assert counted(application) == (1, 0, {200: 1})
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
    application: Application, path: str, method: str, body: bytes, status: int
) -> None:
    assert ask(application, path, body, method)[0] == status
    assert counted(application) == (0, 0, {status: 1})


def test_large_bodies_and_answers_come_out_as_small_ones_do(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ask(application)
    monkeypatch.setattr("fettle.server.application.SMALL_BODY", 0)
    monkeypatch.setattr("fettle.server.application.SMALL_ANSWER", 0)
    assert ask(application) == small
    assert ask(application, body=b"[")[0] == 400


def test_a_full_queue_is_a_503_that_counts(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application.model, "waiting", 8)
    assert ask(application)[0] == 503
    assert counted(application) == (1, 1, {503: 1})
