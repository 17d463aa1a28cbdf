"""The server as a process: a real artifact, real HTTP."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tests.unit.server.serving import ROWS, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.stop()


def body(rows: list[list[float]] | None = None, **changes: Any) -> dict[str, Any]:
    values = ROWS.tolist() if rows is None else rows
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values), 4], "data": values} | changes
    return {"id": "7", "inputs": [tensor]}


def test_it_answers_an_infer_request_with_the_models_outputs_and_its_revision(server: Server) -> None:
    answer = httpx.post(f"{server.url}/infer", json=body([[1, 2, 3, 4]]))
    assert answer.status_code == 200
    assert answer.headers["fettle-revision"] == "abc123"
    assert answer.json() == {
        "model_name": "lookup",
        "model_version": "abc123",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}],
    }


def test_it_tells_its_metadata_and_health(server: Server) -> None:
    assert httpx.get(server.url).json()["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    base = f"http://127.0.0.1:{server.port}/v2"
    assert httpx.get(f"{base}/health/live").json() == {"live": True}
    assert httpx.get(f"{base}/health/ready").json() == {"ready": True}
    assert httpx.get(f"{server.url}/versions/abc123/ready").json() == {"name": "lookup", "ready": True}
    assert httpx.get(base).json()["name"] == "fettle"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_all_ports_listen_on_an_address_of_ipv6(tmp_path: Path) -> None:
    server = Server(tmp_path, host="::")
    try:
        for host in ("127.0.0.1", "[::1]"):
            for port in (server.port, server.management):
                path = "v2/health/ready" if port == server.port else "readyz"
                assert httpx.get(f"http://{host}:{port}/{path}").status_code == 200
            with grpc.insecure_channel(f"{host}:{server.grpc}") as channel:
                assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30) == b"\x08\x01", "SERVING"
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datatype": "INT64"}, "input x: expected datatype FP32, found INT64"),
        ({"shape": [2, 5]}, "input x: expected shape [-1, 4] (-1 = any size), found [2, 5]"),
        ({"shape": [3, 4]}, "input x: the nesting of data does not match its shape [3, 4]"),
        ({"shape": [3, 4], "data": [0] * 8}, "input x: shape [3, 4] needs 12 elements, found 8"),
        ({"name": "z"}, "expected the inputs ['x'], found ['z']"),
        ({"data": [[1, 2], [3]]}, "input x: the nesting of data does not match its shape [2, 4]"),
        ({"data": [[1, 2, 3, 4], [5, 6, 7]]}, "input x: the nesting of data does not match its shape [2, 4]"),
        ({"data": ["a"] * 8}, "input x: the elements of data do not fit FP32"),
        ({"shape": [0, 4], "data": []}, "expected 1 to 1024 items in a request, found 0"),
        ({"shape": "2x4"}, 'input x: "shape" must be a list of non-negative integers'),
    ],
)
def test_bad_input_is_a_400_that_says_what_was_expected(server: Server, change: dict[str, Any], message: str) -> None:
    answer = httpx.post(f"{server.url}/infer", json=body(**change))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"inputs": 3}', b'{"inputs": [3]}', b"[" * 5000])
def test_a_body_that_is_no_request_is_a_400(server: Server, content: bytes) -> None:
    assert httpx.post(f"{server.url}/infer", content=content).status_code == 400


def test_an_unknown_model_path_or_method_is_named(server: Server) -> None:
    assert httpx.get(f"http://127.0.0.1:{server.port}/v2/models/other").status_code == 404
    assert httpx.get(f"{server.url}/infer").status_code == 405
    assert httpx.post(server.url, json={}).status_code == 405


def test_a_model_that_fails_is_a_500_and_an_error_in_its_window(server: Server) -> None:
    before = httpx.get(f"{server.admin}/fettle/window?since=0").json()
    answer = httpx.post(f"{server.url}/infer", json=body([[0, 0, 0, 99]]))
    assert answer.status_code == 500
    assert "error" in answer.json()
    time.sleep(1.1)  # a window is told when its second is over
    after = httpx.get(f"{server.admin}/fettle/window?since=0").json()
    assert sum(w["errors"] for w in after["windows"]) == sum(w["errors"] for w in before["windows"]) + 1
    assert httpx.post(f"{server.url}/infer", json=body()).status_code == 200


def test_windows_count_every_answer_once_and_metrics_count_codes(server: Server) -> None:
    since = int(time.time()) + 1
    time.sleep(since - time.time())
    for _ in range(5):
        httpx.post(f"{server.url}/infer", json=body())
    time.sleep(1.1)
    told = httpx.get(f"{server.admin}/fettle/window?since={since}").json()
    assert sum(window["requests"] for window in told["windows"]) == 5
    assert sum(count for window in told["windows"] for count in window["buckets"].values()) == 5
    assert 'fettle_server_requests_total{code="200"' in httpx.get(f"{server.admin}/metrics").text
    assert httpx.get(f"{server.admin}/fettle/window?since=x").status_code == 400


def test_a_connection_ends_after_its_requests(tmp_path: Path) -> None:
    server = Server(tmp_path, connection_max_requests=4, max_body_bytes=2000)
    try:
        with httpx.Client() as client:
            closed = [
                client.post(f"{server.url}/infer", json=body()).headers.get("connection") == "close" for _ in range(12)
            ]
        assert 2 <= sum(closed) <= 4
        large = httpx.post(f"{server.url}/infer", content=b" " * 3000)
        assert (large.status_code, large.json()["error"]) == (413, "the body is larger than 2000 bytes")
    finally:
        server.stop()


def test_draining_answers_every_request_and_ends_their_connections(tmp_path: Path) -> None:
    server = Server(tmp_path, drain_seconds=3600)
    try:
        with httpx.Client() as client:
            assert client.post(f"{server.url}/infer", json=body()).status_code == 200
            server.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + 60
            while httpx.get(f"{server.admin}/readyz").status_code != 503:
                assert time.monotonic() < until, "still ready"
            answer = client.post(f"{server.url}/infer", json=body())
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    finally:
        server.process.kill()


def test_a_changed_artifact_is_not_served(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.stop()
    assert server.run("fetch").returncode == 0
    for blob in (tmp_path / "store" / "blobs").iterdir():
        blob.chmod(0o644)
        blob.write_bytes(b"x" + blob.read_bytes()[1:])
    for path in sorted((tmp_path / "model").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    done = server.run("fetch")
    assert done.returncode == 1
    assert "ArtifactTampered" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_answers_the_v1_protocol_of_tensorflow_serving_as_well(server: Server) -> None:
    base = f"http://127.0.0.1:{server.port}/v1/models/lookup"
    for path in (base, f"{base}/versions/abc123"):
        assert httpx.post(f"{path}:predict", json={"instances": ROWS.tolist()}).json() == {"predictions": ROWS.tolist()}
        assert httpx.post(f"{path}:predict", json={"inputs": ROWS.tolist()}).json() == {"outputs": ROWS.tolist()}
        (version,) = httpx.get(path).json()["model_version_status"]
        assert (version["version"], version["state"]) == ("abc123", "AVAILABLE")
    assert httpx.post(f"{base}:predict", json={"instances": [[1]]}).status_code == 400
    assert httpx.get(f"{base}:predict").status_code == 405


def test_metadata_says_which_artifact_it_is_and_how_it_was_made(server: Server) -> None:
    for path in (server.url, f"{server.url}/versions/abc123"):
        told = httpx.get(path).json()
        assert (told["name"], told["versions"], told["platform"]) == ("lookup", ["abc123"], "onnx_onnxruntime")
        parameters = told["parameters"]
        assert len(parameters["sha256"]) == 64
        assert "pvc://" not in str(parameters)  # where the store is concerns no client
        assert parameters["recipe"]["name"] == "portable"
        assert parameters["settings"]["threads"] == 1
