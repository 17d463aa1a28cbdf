"""The gRPC port of a server process: real clients, streams, bounds, draining."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.unit.server.serving import SLOW, EchoServer, SlowServer, answers_with
from tools.serving import ServerProcess

from fettle.api.signature import DATA_TYPES
from fettle.server import inference_pb2 as pb
from fettle.server.request import Code
from fettle.server.rpc import STATUSES

OWN = (("grpc.use_local_subchannel_pool", 1),)  # a connection of its own
DTYPES = [row.v2 for row in DATA_TYPES if row.v2 != "BF16"]  # which onnxruntime does not run beside strings


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    started = EchoServer(tmp_path_factory.mktemp("server"), DTYPES, grpc_max_message_bytes=1 << 24)
    yield started
    started.stop()


def triton(server: EchoServer, dtypes: list[str]) -> dict[str, Any]:
    """What NVIDIA's client was told."""
    script = str(Path(__file__).with_name("triton_grpc_client.py"))
    command = [sys.executable, script, str(server.grpc), ",".join(dtypes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_nvidias_client_works_unmodified(server: EchoServer) -> None:
    told = triton(server, DTYPES)
    assert (told["live"], told["ready"], told["model"], told["id"]) == (True, True, True, "7")
    assert told["outputs"] == told["expected"]
    assert told["chosen"] == ["y_FP32"]
    assert told["server"]["name"] == "fettle"
    assert told["metadata"] == {"name": "x_FP32", "datatype": "FP32", "shape": ["-1", "-1"]}
    assert told["short"] == [
        "StatusCode.INVALID_ARGUMENT",
        "input x_FP32: shape [2, 2] of FP32 needs 16 bytes, found 12",
    ]
    assert told["unknown"][0] == "StatusCode.NOT_FOUND" and "this server serves the model 'echo'" in told["unknown"][1]
    assert told["large"][0] == "StatusCode.RESOURCE_EXHAUSTED"
    assert told["other"][0] == "StatusCode.UNIMPLEMENTED"
    first, second, third = told["stream"]
    assert (first, third) == ("s", "s") and "the model 'other'" in second


INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def request(value: float = 1.0, name: str = "slow", **more: Any) -> bytes:
    """A request for one item of the slow or of the look-up model."""
    item = np.array([[value, 0, 0, 0]], np.float32)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    made = pb.ModelInferRequest(model_name=name, inputs=[tensor], raw_input_contents=[item.tobytes()], **more)
    return bytes(made.SerializeToString())


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlowServer]:
    bounds = {"grpc_max_message_bytes": 4000, "max_bodies_bytes": 8000, "max_reading": 2}
    bounds |= {"body_seconds": 4, "grpc_max_streams": 4}
    proxies = '["127.0.0.0/8"]'  # one who tells of others
    started = SlowServer(tmp_path_factory.mktemp("slow"), trusted_proxies=proxies, **bounds)
    yield started
    started.stop()


@pytest.fixture
def channel(slow: SlowServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{slow.grpc}") as made:
        yield made


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def counts(server: ServerProcess, code: int, at_least: int) -> bool:
    """Whether so many come to be counted: a client may hear of its error before the server is done with it."""
    until = time.monotonic() + 60
    while answers_with(server, code) < at_least and time.monotonic() < until:
        time.sleep(0.05)
    return answers_with(server, code) >= at_least


def test_an_answer_tells_its_revision_and_counts_like_any_other(slow: SlowServer, channel: grpc.Channel) -> None:
    before = answers_with(slow, 200)
    answer, call = channel.unary_unary(INFER).with_call(request(id="7"))
    assert pb.ModelInferResponse.FromString(answer).id == "7"
    assert ("fettle-revision", "unknown") in call.trailing_metadata()
    assert answers_with(slow, 200) == before + 1
    told = httpx.get(f"{slow.admin}/metrics").text
    assert f'fettle_server_request_seconds_count{{model="slow",revision="unknown"}} {before + 1}.0' in told


@pytest.mark.parametrize(
    ("method", "content", "status", "code", "says"),
    [
        (INFER, b"\xff", grpc.StatusCode.INVALID_ARGUMENT, 400, "a number at byte 0 does not end"),
        (INFER, request(name="other"), grpc.StatusCode.NOT_FOUND, 404, "this server serves the model 'slow'"),
        (INFER, request(model_version="2"), grpc.StatusCode.NOT_FOUND, 404, "version '2'"),
        (INFER, bytes(4001), grpc.StatusCode.RESOURCE_EXHAUSTED, 413, "larger than max (4001 vs. 4000)"),
        (
            "/inference.GRPCInferenceService/ServerLive",
            b"\xff",
            grpc.StatusCode.INVALID_ARGUMENT,
            400,
            "not a valid ServerLiveRequest",
        ),
        ("/inference.GRPCInferenceService/ModelReady", b"", grpc.StatusCode.NOT_FOUND, 404, "the model ''"),
        ("/grpc.health.v1.Health/Check", b"\x0a\x01x", grpc.StatusCode.NOT_FOUND, 404, "no service 'x'"),
        ("/some.Service/Method", b"", grpc.StatusCode.UNIMPLEMENTED, 405, "inference.GRPCInferenceService"),
    ],
)
def test_an_error_has_grpcs_status_a_sentence_and_is_counted_once(
    slow: SlowServer, channel: grpc.Channel, method: str, content: bytes, status: grpc.StatusCode, code: int, says: str
) -> None:
    before = answers_with(slow, code)
    found, details = refused(lambda: channel.unary_unary(method)(content, timeout=30))
    assert (found, says in details) == (status, True), details
    assert counts(slow, code, before + 1)
    assert answers_with(slow, code) == before + 1
    assert channel.unary_unary(INFER)(request(), timeout=60)


def test_a_deadline_ends_a_request_and_counts_as_a_client_that_gave_up(slow: SlowServer, channel: grpc.Channel) -> None:
    before = answers_with(slow, 499)
    grpc.channel_ready_future(channel).result(timeout=60)  # a deadline is for the answer, not for the connection
    status, _ = refused(lambda: channel.unary_unary(INFER)(request(3 * SLOW[0]), timeout=1))
    assert status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert counts(slow, 499, before + 1)
    assert channel.unary_unary(INFER)(request(), timeout=60)


def test_messages_that_do_not_arrive_give_way_to_others_and_end(slow: SlowServer) -> None:
    """As many clients that say nothing after their head as are read at once."""
    with ExitStack() as opened:
        silent = []
        for _ in range(2):  # max_bodies_bytes / grpc_max_message_bytes
            channel = opened.enter_context(grpc.insecure_channel(f"127.0.0.1:{slow.grpc}", OWN))
            silent.append(channel.stream_unary(INFER).future(iter(Event().wait, None), timeout=120))
        time.sleep(0.5)
        late = opened.enter_context(grpc.insecure_channel(f"127.0.0.1:{slow.grpc}", OWN))
        assert late.unary_unary(INFER)(request(), timeout=60)
        for call in silent:
            assert refused(call.result)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            assert call.details() == "the message did not arrive within 4 s, or 1 s where others waited"


def test_each_way_in_which_a_request_can_end_has_a_status() -> None:
    assert set(STATUSES) == set(Code)


def test_streams_are_answered_in_order_and_bounded_in_number_of_all_and_of_a_client(
    slow: SlowServer, channel: grpc.Channel
) -> None:
    sent = [request(id="a"), request(name="other"), b"\xff", request(id="b")]
    answers = [pb.ModelStreamInferResponse.FromString(answer) for answer in channel.stream_stream(STREAM)(iter(sent))]
    assert [answer.infer_response.id for answer in answers] == ["a", "", "", "b"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
    limited, full = answers_with(slow, 429), answers_with(slow, 503)
    ends, other = Event(), (("x-forwarded-for", "192.0.2.7"),)

    def messages() -> Iterator[bytes]:
        yield request()
        ends.wait()

    def opened(**more: Any) -> Any:
        return channel.stream_stream(STREAM)(messages(), timeout=120, **more)

    open_ones = [opened() for _ in range(3)]
    for stream in open_ones:
        assert next(stream), "it is open"
    status, details = refused(lambda: list(opened()))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (
        details == "3 streams of this client are already open, and the rest is kept for other clients: try again later"
    )
    open_ones.append(opened(metadata=other))
    assert next(open_ones[-1])
    status, details = refused(lambda: list(opened(metadata=other)))
    assert (status, details) == (grpc.StatusCode.UNAVAILABLE, "4 streams are already open")
    assert counts(slow, 429, limited + 1) and counts(slow, 503, full + 1)
    ends.set()
    for stream in open_ones:
        assert list(stream) == []


def test_who_watches_health_takes_no_place_of_a_stream(slow: SlowServer, channel: grpc.Channel) -> None:
    """Each client that balances by itself watches, for as long as it is connected."""
    health = health_pb2_grpc.HealthStub(channel)
    watching = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(5)]
    for states in watching:
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
    (answer,) = channel.stream_stream(STREAM)(iter([request(id="a")]), timeout=60)
    assert pb.ModelStreamInferResponse.FromString(answer).infer_response.id == "a"
    for states in watching:
        states.cancel()


def test_checks_of_health_that_do_not_arrive_take_no_turn_of_a_request(slow: SlowServer, channel: grpc.Channel) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{slow.grpc}", OWN) as other:
        checks = [
            other.stream_unary("/grpc.health.v1.Health/Check").future(iter(Event().wait, None), timeout=60)
            for _ in range(4)
        ]
        time.sleep(0.5)
        assert channel.unary_unary(INFER)(request(), timeout=60)
        assert not any(check.done() for check in checks), "nobody waits for them"


def test_a_client_without_a_token_keeps_no_stream_open_and_hears_of_health(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "alice").write_text("secret-of-alice")
    server = SlowServer(tmp_path, tokens_folder=tokens, grpc_max_streams=1)
    mine = (("authorization", "Bearer secret-of-alice"),)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}", OWN) as channel:
            silent = channel.stream_stream(STREAM)(iter(Event().wait, None), timeout=60)
            assert refused(lambda: next(silent))[0] is grpc.StatusCode.UNAUTHENTICATED
            (answer,) = channel.stream_stream(STREAM)(iter([request(id="a")]), timeout=60, metadata=mine)
            assert pb.ModelStreamInferResponse.FromString(answer).infer_response.id == "a"
            for name, field in (("ServerLive", "live"), ("ServerReady", "ready")):
                told = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(b"", timeout=60)
                assert getattr(getattr(pb, f"{name}Response").FromString(told), field)
            metadata = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            assert refused(lambda: metadata(b"", timeout=60))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert answers_with(server, 401) == 2
    finally:
        server.stop()


def test_every_answer_tells_its_revision_and_what_its_client_calls_the_request(channel: grpc.Channel) -> None:
    own = (("x-request-id", "mine-7"),)
    expected = {"fettle-revision": "unknown", "x-request-id": "mine-7"}
    ready = "/inference.GRPCInferenceService/ServerReady"
    _, call = channel.unary_unary(ready).with_call(b"", metadata=own, timeout=60)
    stream = channel.stream_stream(STREAM)(iter([request()]), metadata=own, timeout=60)
    assert len(list(stream)) == 1
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(INFER)(b"\xff", metadata=own, timeout=60)
    for told in (call, stream, caught.value):
        assert dict(told.trailing_metadata()) == expected


def test_health_and_reflection_are_grpcs_own(slow: SlowServer, channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "inference.GRPCInferenceService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    first = next(health.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=30))
    assert first.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    described = ProtoReflectionDescriptorDatabase(channel)
    assert "inference.GRPCInferenceService" in described.get_services()
    service = DescriptorPool(described).FindServiceByName("inference.GRPCInferenceService")
    assert {method.name for method in service.methods} >= {"ModelInfer", "ModelStreamInfer", "ServerMetadata"}


@pytest.mark.parametrize(("told", "found"), [(None, "-event_engine_listener"), ("-call_tracer_in_transport",) * 2])
def test_the_library_is_told_how_to_read_connections_and_knows_what_it_is_told(told: str | None, found: str) -> None:
    """A later version that no longer knows a switch writes an error into each pod's log."""
    code = "import fettle.server.rpc, os, grpc; grpc.insecure_channel('x'); print(os.environ['GRPC_EXPERIMENTS'])"
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    environment |= {"GRPC_EXPERIMENTS": told} if told is not None else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found]
    assert "experiment" not in done.stderr


@pytest.mark.parametrize("setting", ["port", "grpc_port", "management_port"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_port_that_is_taken_ends_the_process_with_a_sentence(tmp_path: Path, setting: str, shared: bool) -> None:
    """Whether or not the one who has it would share it."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=shared) as taken:
        log = tmp_path / "log"
        port = taken.getsockname()[1]
        with log.open("w") as stream, pytest.raises(RuntimeError, match="exited with 1"):
            SlowServer(tmp_path, **{setting: port}, log=stream.fileno())
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in log.read_text()


class Service:
    """What kube-proxy is to clients: new connections go to the pod that is ready, old ones stay where they are."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            pod = socket.create_connection(("127.0.0.1", self.port))
            for left, right in ((client, pod), (pod, client)):
                Thread(target=self._copy, args=(left, right), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)


def test_draining_loses_no_request_of_clients_that_reach_the_pod_through_a_service(tmp_path: Path) -> None:
    leaving, staying = SlowServer(tmp_path / "leaving", drain_seconds=4), SlowServer(tmp_path / "staying")
    service = Service(leaving.grpc)
    failures, done, ended = [], [0] * 4, Event()

    def ask(index: int) -> None:
        with grpc.insecure_channel(service.address, OWN) as channel:
            infer = channel.unary_unary(INFER)
            while not ended.is_set():
                try:
                    infer(request(), timeout=60)
                    done[index] += 1
                except grpc.RpcError as error:
                    failures.append((error.code(), error.details()))

    with grpc.insecure_channel(f"127.0.0.1:{leaving.grpc}", OWN) as watching:
        states = health_pb2_grpc.HealthStub(watching).Watch(health_pb2.HealthCheckRequest())
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        asking = [Thread(target=ask, args=(index,)) for index in range(len(done))]
        for thread in asking:
            thread.start()
        time.sleep(0.5)
        leaving.process.send_signal(signal.SIGTERM)
        assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
        service.port = staying.grpc
        assert leaving.process.wait(30) == 0
        time.sleep(0.5)
        ended.set()
        for thread in asking:
            thread.join()
    answered = answers_with(staying, 200)
    staying.stop()
    assert failures == []
    assert all(done) and answered > 0


def test_a_silent_stream_does_not_hold_a_drain_open(tmp_path: Path) -> None:
    server = SlowServer(tmp_path)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}", OWN) as channel:
        stream = channel.stream_stream(STREAM)(chain([request()], iter(Event().wait, None)))
        assert next(stream), "it is open"
        server.process.send_signal(signal.SIGTERM)
        status, details = refused(lambda: list(stream))
        assert (status, details) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping: open the stream again")
        assert server.process.wait(30) == 0
