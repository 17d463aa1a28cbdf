"""What a hostile, broken or slow client can do to a server, and what it cannot. Real processes, real sockets."""

from __future__ import annotations

import gzip
import json
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tests.unit.server.serving import BODY, Server, answers_with

from fettle.server.inference_pb2 import ModelInferRequest, ModelInferResponse

HEAD = b"POST /v2/models/lookup/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The head of a call, as far as gRPC's library looks at it: POST, http, a path, an authority, what it is and what it takes (RFC 7541, appendix A).
CALL = b"\x83\x86\x04\x02/x\x01\x01x\x0f\x10\x10application/grpc\x00\x02te\x08trailers"
BOUNDS = {"body_seconds": 1.5, "max_reading": 4, "max_bodies_bytes": 300_000, "max_body_bytes": 200_000}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"), **BOUNDS)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that waits an hour for a body, so that those which do not arrive are read until their clients hang up."""
    told = BOUNDS | {"body_seconds": 3600, "trusted_proxies": '["127.0.0.3"]'}
    started = Server(tmp_path_factory.mktemp("patient"), **told)
    yield started
    started.stop()


@pytest.fixture(scope="module", autouse=True)
def leaving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, socket.socket]]:
    """A server that is told to end while clients have sent half a body, half a head or nothing, and the first of them. It takes ten seconds,
    so it does while the other tests run."""
    server = Server(tmp_path_factory.mktemp("leaving"), drain_seconds=1, **BOUNDS)
    opened = [sent(server, data) for data in (HEAD % 100 + b"{", HEAD % 190_000, b"POST /v2/mod", b"")]
    opened.append(sent(server, b"GET /healthz", server.management))
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    yield server, opened[0]
    server.process.kill()
    server.process.wait()


def sent(server: Server, data: bytes, port: int | None = None, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port or server.port), timeout=30, source_address=(source, 0))
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts = []
    with closing(connection):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def ask(server: Server, spaces: int) -> httpx.Response:
    """A request with so many spaces behind it."""
    return httpx.post(f"{server.url}/infer", content=json.dumps(BODY).encode() + b" " * spaces, timeout=30)


def until_served(server: Server, spaces: int = 0) -> None:
    """Until nothing is in the way of a request: a server is told that a client hung up, which takes a while."""
    until = time.monotonic() + 60
    while (said := ask(server, spaces)).status_code != 200:
        assert time.monotonic() < until, said.text


def refused_beside(
    server: Server, halves: Callable[[], list[socket.socket]], spaces: int, *statuses: int
) -> tuple[list[socket.socket], httpx.Response]:
    """Bodies that stay unfinished, and how a request is refused beside them. They take a while to arrive, longer where the machine is busy; a
    request that comes before them might be what keeps them out."""
    for pause in (0.5, 2, 8, 32):
        opened = halves()
        time.sleep(pause)
        said = ask(server, spaces)
        if said.status_code in statuses:
            break
        for half in opened:
            half.close()
        until_served(server, spaces)
    assert said.status_code in statuses, said.text
    return opened, said


def serves(server: Server) -> bool:
    return httpx.post(f"{server.url}/infer", json=BODY, timeout=30).status_code == 200


def test_a_body_that_does_not_arrive_is_a_408_that_ends_the_connection(server: Server) -> None:
    for head in (HEAD % 100, HEAD % 190_000, HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")):
        said = answer(sent(server, head + b"3\r\n{  \r\n"))
        assert said.startswith(b"HTTP/1.1 408") and b"did not arrive within 1.5 s" in said
        assert b"connection: close" in said
    assert serves(server)


def test_bodies_being_read_are_bounded_in_number(patient: Server) -> None:
    sources = ["127.0.0.1"] * 3 + ["127.0.0.2"]
    assert len(sources) == BOUNDS["max_reading"]
    halves, refused = refused_beside(
        patient, lambda: [sent(patient, HEAD % 100 + b"{", source=source) for source in sources], 0, 503
    )
    assert refused.headers["retry-after"] == "1"
    for half in halves:
        half.close()
    until_served(patient)


def test_bodies_being_read_are_bounded_in_bytes_that_arrived_not_in_bytes_announced(patient: Server) -> None:
    sizes = {"127.0.0.1": 140_000, "127.0.0.2": 110_000}

    def arrived() -> list[socket.socket]:
        announced = [sent(patient, HEAD % 190_000, source=source) for source in sizes]
        assert serves(patient)
        for half, size in zip(announced, sizes.values(), strict=True):
            half.sendall(b" " * size)
        return announced

    halves, refused = refused_beside(patient, arrived, 50_000, 503)
    assert refused.headers["retry-after"] == "1"
    for half in halves:
        half.close()
    until_served(patient, 50_000)  # what was held for those who hung up is given back


def test_a_client_that_sends_its_bodies_slowly_keeps_nobody_else_from_being_answered(patient: Server) -> None:
    halves, refused = refused_beside(patient, lambda: [sent(patient, HEAD % 100 + b"{") for _ in range(3)], 0, 429)
    assert refused.headers["retry-after"] == "1"
    assert "3 request bodies of this client are already being read" in refused.json()["error"]
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as other:
        assert other.post(f"{patient.url}/infer", json=BODY).status_code == 200
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.3")) as proxy:
        for client, status in (("127.0.0.1", 429), ("192.0.2.7", 200)):
            headers = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", client)]
            assert proxy.post(f"{patient.url}/infer", json=BODY, headers=headers).status_code == status
    for half in halves:
        half.close()
    until_served(patient)


def test_a_client_with_large_bodies_leaves_room_for_those_of_others(patient: Server) -> None:
    # 503 only for a client that is alone, and others may have asked in the seconds before.
    mine, third = refused_beside(
        patient, lambda: [sent(patient, HEAD % 190_000 + b" " * 112_000) for _ in range(2)], 70_000, 429, 503
    )
    assert "the rest is kept for other clients" in third.json()["error"]
    large = json.dumps(BODY).encode() + b" " * 50_000
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as other:
        assert other.post(f"{patient.url}/infer", content=large).status_code == 200
    for half in mine:
        half.close()
    until_served(patient, 70_000)


def test_a_body_of_a_gigabyte_is_refused_before_it_is_sent(server: Server) -> None:
    said = answer(sent(server, HEAD % 1_000_000_000))
    assert said.startswith(b"HTTP/1.1 413") and b"connection: close" in said
    assert serves(server)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many file descriptors as two thousand connections take, of this process and of none that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
def test_two_thousand_connections_that_send_nothing_or_half_a_head_keep_nobody_from_being_answered(
    server: Server,
) -> None:
    with ExitStack() as opened:
        for number in range(2000):
            data, port = (b"", b"POST /v2/mod")[number % 2], (server.port, server.management)[number % 4 == 3]
            opened.enter_context(closing(sent(server, data, port)))
        assert serves(server)
        assert httpx.get(f"{server.admin}/readyz").status_code == 200


def test_a_client_that_hangs_up_is_nobodys_failure(server: Server) -> None:
    time.sleep(1.2)  # a second is told once it is over: what was refused in this one belongs to before
    before = httpx.get(f"{server.admin}/fettle/window?since=0").json()

    def ended() -> int:
        """Requests of which not all came: a body may just end, which counts as one that is too short."""
        return answers_with(server, 499) + answers_with(server, 400)

    hung_up = ended()
    sent(server, HEAD % 100 + b"{").close()
    sent(server, HEAD % 190_000 + b"{").close()
    until = time.monotonic() + 60
    while ended() < hung_up + 2:
        assert time.monotonic() < until
    time.sleep(1.2)
    after = httpx.get(f"{server.admin}/fettle/window?since=0").json()
    errors = [sum(window["errors"] for window in told["windows"]) for told in (before, after)]
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    ("headers", "content", "status", "says"),
    [
        ({"content-encoding": "gzip"}, gzip.compress(json.dumps(BODY).encode(), mtime=0), 415, "Content-Encoding"),
        ({"inference-header-content-length": "2"}, b"{}" + bytes(8), 400, 'an object with a list \\"inputs\\"'),
        ({"inference-header-content-length": "99"}, b"{}" + bytes(8), 400, "is 99, but the body has 10 bytes"),
        ({"inference-header-content-length": "0"}, b"{}", 400, "must be the number of bytes of JSON, found '0'"),
        ({"inference-header-content-length": "-1"}, b"{}", 400, "must be the number of bytes of JSON, found '-1'"),
        ({"inference-header-content-length": "9" * 5000}, b"{}", 400, "must be the number of bytes of JSON"),
        ({}, b"", 400, "not valid JSON"),
        ({}, b" " * 200_001, 413, "larger than 200000 bytes"),
        ({}, b"[" * 100_000, 400, "not valid JSON"),
        ({}, b'{"inputs": [{"name": "\xff"}]}', 400, "not valid JSON"),
        ({"x-long": "x" * 300_000}, b"{}", 431, ""),
    ],
)
def test_a_request_in_a_form_that_is_not_taken_gets_a_sentence(
    server: Server, headers: dict[str, str], content: bytes, status: int, says: str
) -> None:
    found = httpx.post(f"{server.url}/infer", content=content, headers=headers)
    assert found.status_code == status
    assert says in found.text
    assert serves(server)


@pytest.mark.parametrize(
    "path", ["/v2/models/%ff%00", "/v2/models/" + "x" * 5000, "//", "/v2/models/lookup/versions/9/infer"]
)
def test_an_odd_path_is_a_short_404(server: Server, path: str) -> None:
    said = answer(sent(server, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode()))
    assert said.startswith(b"HTTP/1.1 404")
    assert len(said) < 2000


@pytest.mark.parametrize("since", ["nan", "inf", "-inf", "x", "1e999"])
def test_a_window_is_asked_for_by_a_finite_number(server: Server, since: str) -> None:
    assert httpx.get(f"{server.admin}/fettle/window?since={since}").status_code == 400


def test_a_window_says_from_when_on_every_second_is_known(server: Server) -> None:
    told: dict[str, Any] = httpx.get(f"{server.admin}/fettle/window?since=0").json()
    assert told["start"] <= told["kept"] <= told["now"]
    assert abs(told["now"] - time.time()) < 5


@pytest.mark.parametrize("authorization", [b"Bearer \xff\xfe", b"Bearer ", b"", b"Bearer " + b"x" * 10_000])
def test_samples_are_for_those_who_show_the_token(tmp_path: Path, server: Server, authorization: bytes) -> None:
    head = b"POST /fettle/samples HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: %b\r\n\r\n" % authorization
    said = answer(sent(server, head, server.management))
    assert said.startswith(b"HTTP/1.1 503") and b"no token in" in said  # this server was given none


def test_a_client_that_closes_its_half_of_the_connection_too_early_has_hung_up(server: Server) -> None:
    """With its request unfinished it hears so; behind a whole one granian's HTTP takes it for gone, as RFC 9112, 9.6, allows."""
    before = answers_with(server, 499)
    half = sent(server, HEAD % 100 + b"{")
    half.shutdown(socket.SHUT_WR)
    assert answer(half).startswith(b"HTTP/1.1 400")
    assert answers_with(server, 499) == before + 1
    body = json.dumps(BODY).encode()
    whole = sent(server, HEAD % len(body) + body)
    whole.shutdown(socket.SHUT_WR)
    assert answer(whole)[:12] in (b"", b"HTTP/1.1 200")
    assert serves(server)


@pytest.mark.parametrize(
    ("json_size", "content", "says"),
    [
        (b"", b"", "must be the number of bytes of JSON"),
        (b"1 1", b"", "must be the number of bytes of JSON"),
        (b"10", b"[" * 10, "not valid JSON"),
        (b"100", b'{"inputs":' + b"[" * 90, "not valid JSON"),
        (b"12", b'{"inputs":[]', "not valid JSON"),
    ],
)
def test_a_form_of_binary_request_that_is_none_is_a_400(
    server: Server, json_size: bytes, content: bytes, says: str
) -> None:
    head = HEAD.replace(b"Host: x", b"Host: x\r\nConnection: close\r\nInference-Header-Content-Length: " + json_size)
    said = answer(sent(server, head % len(content) + content))
    assert said.startswith(b"HTTP/1.1 400") and says.encode() in said
    assert serves(server)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01" + b"\x00" * 500,
        PREFACE[:10],
        PREFACE + b"\xff" * 1000,
        PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" * 1000,
        PREFACE + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" * 2000 + bytes(8),
        PREFACE + frame(4, 0, 0) + b"".join(frame(1, 4, n, CALL) + frame(3, 0, n, bytes(4)) for n in range(1, 8001, 2)),
        PREFACE + frame(4, 0, 0) + frame(1, 0, 1, CALL) + frame(9, 0, 1, b"\x00\x01x\x01y" * 2000) * 100,
        PREFACE + frame(4, 0, 0) + b"".join(frame(1, 4, number, CALL) for number in range(1, 2001, 2)),
    ],
    ids=["HTTP/1.1", "TLS", "half a preface", "garbage", "settings", "pings", "resets", "continuations", "calls"],
)
def test_what_is_no_grpc_ends_its_own_connection_only(server: Server, data: bytes) -> None:
    connection = sent(server, data, server.grpc)
    connection.settimeout(2)
    with suppress(OSError), closing(connection):
        while connection.recv(1 << 16):
            pass
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        item = np.array([[1, 2, 3, 4]], np.float32)
        tensor = ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
        request = ModelInferRequest(model_name="lookup", inputs=[tensor], raw_input_contents=[item.tobytes()])
        answered = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(
            request.SerializeToString(), timeout=30
        )
    assert ModelInferResponse.FromString(answered).raw_output_contents[0] == item.tobytes()
    assert serves(server)


def test_a_drain_ends_though_clients_send_half_a_body_half_a_head_or_nothing(
    leaving: tuple[Server, socket.socket],
) -> None:
    server, half = leaving
    assert server.process.wait(60) == 0
    assert answer(half).startswith(b"HTTP/1.1 408")
