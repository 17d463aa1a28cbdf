"""The server's log: its form, the request that a line belongs to, and its level at run time."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tests.unit.server.serving import Server

from fettle.server import inference_pb2 as pb
from fettle.server.logs import HEADERS, MOST_TOLD, JsonFormatter, TextFormatter
from fettle.server.management import Management
from fettle.server.settings import ServerSettings
from fettle.server.state import ProcessState

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = {"x-request-id": "mine-7", "traceparent": TRACE}
FAILS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 99]}]}
WORKS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 1]}]}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[Server]:
    with log.open("w") as stream:
        started = Server(tmp_path_factory.mktemp("server"), log=stream.fileno(), log_format="JSON")
        yield started
        started.stop()


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_failure_is_logged_with_the_request_that_it_belongs_to_and_the_client_gets_its_words_back(
    server: Server, log: Path
) -> None:
    answer = httpx.post(f"{server.url}/infer", json=FAILS, headers=OWN)
    assert answer.status_code == 500
    assert {name: answer.headers[name] for name in OWN} == OWN
    (line,) = [line for line in lines(log) if line.get("x-request-id") == "mine-7"]
    assert (line["level"], line["traceparent"]) == ("warning", TRACE)
    assert line["message"].startswith("the model failed: ")
    plain = httpx.post(f"{server.url}/infer", json=WORKS)
    assert not OWN.keys() & plain.headers.keys()


def test_a_call_over_grpc_is_told_by_its_metadata(server: Server, log: Path) -> None:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    raw = np.array([0, 0, 0, 1], np.float32).tobytes()
    request = pb.ModelInferRequest(model_name="lookup", inputs=[tensor], raw_input_contents=[raw]).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        _, call = infer.with_call(request, metadata=tuple(OWN.items()), timeout=60)
    assert dict(call.trailing_metadata()) == {**OWN, "fettle-revision": "abc123"}


def test_the_level_is_changed_at_run_time_and_debug_tells_of_every_request(server: Server, log: Path) -> None:
    def told(identity: str) -> list[dict[str, Any]]:
        httpx.post(f"{server.url}/infer", json=WORKS, headers={"x-request-id": identity}).raise_for_status()
        return [line for line in lines(log) if line.get("x-request-id") == identity]

    assert told("before") == []
    assert httpx.post(f"{server.admin}/fettle/log?level=debug").status_code == 200
    (line,) = told("meanwhile")
    assert line["message"].startswith("a request ended with OK after ")
    assert httpx.post(f"{server.admin}/fettle/log?level=INFO").status_code == 200
    assert told("afterwards") == []
    wrong = httpx.post(f"{server.admin}/fettle/log?level=chatty")
    assert (wrong.status_code, wrong.text) == (400, "expected level=debug|info|warning|error, found 'chatty'\n")
    assert httpx.get(f"{server.admin}/fettle/log?level=debug").status_code == 405


@pytest.mark.parametrize("client", ["10.0.0.7:5000", "[fd00::7]:5000", "[::ffff:10.0.0.7]:5000", "", "127.evil:80"])
async def test_the_level_is_nobodys_to_change_from_outside_of_the_pod(client: str) -> None:
    scope = SimpleNamespace(path="/fettle/log", method="POST", query_string="level=debug", client=client)
    status, _, body = await Management(ServerSettings(), ProcessState())._answer(scope)
    assert status == 403 and b"kubectl port-forward" in body


@pytest.mark.parametrize("client", ["127.0.0.1:5000", "[::1]:5000", "::1:5000", "[::ffff:127.0.0.1]:5000"])
async def test_the_level_is_for_who_is_in_the_pod_whatever_its_addresses_are(client: str) -> None:
    scope = SimpleNamespace(path="/fettle/log", method="POST", query_string="level=chatty", client=client)
    assert (await Management(ServerSettings(), ProcessState())._answer(scope))[0] == 400


def record(message: str, **more: Any) -> logging.LogRecord:
    return logging.LogRecord("fettle.x", logging.ERROR, __file__, 1, message, (), more.get("exc_info"))


def test_a_traceback_is_one_line_of_json() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        text = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    line = json.loads(text)
    assert "\n" not in text and line["exception"].startswith("Traceback") and "two\nlines" in line["exception"]


@pytest.mark.parametrize(
    ("given", "kept"), [("a\nERROR b", None), ("ünlesbar", None), ("x" * 1000, "x" * MOST_TOLD), ("7", "7"), ("", None)]
)
def test_what_a_client_calls_its_request_cannot_forge_a_line_and_is_bounded(given: str, kept: str | None) -> None:
    token = HEADERS.set({"x-request-id": given}.get)
    try:
        assert json.loads(JsonFormatter().format(record("said"))).get("x-request-id") == kept
        assert (
            TextFormatter().format(record("said")).endswith("said" if kept is None else f"said x-request-id={kept!r}")
        )
    finally:
        HEADERS.reset(token)
