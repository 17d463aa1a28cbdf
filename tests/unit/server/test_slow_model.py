"""A model that takes seconds: what a probe hears before it is warm, who waits for whom, and how many inferences run at once."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tests.unit.server.serving import QUICK, SLOW, SlowServer, answers_with, metric

from fettle.api.recipe import RuntimeSettings
from fettle.api.vocabulary import RuntimeName
from fettle.server import inference_pb2 as pb

TOKEN = "a-secret-of-this-test"


class Watched(SlowServer):
    """Notes what the ports say until it is ready, and when."""

    def _wait_until_ready(self) -> None:
        self.said: list[tuple[float, int, str]] = []
        self.alive: set[int] = set()
        self.served_too_early = False
        until = time.monotonic() + 60
        while not self.said or self.said[-1][1] != 200:
            assert time.monotonic() < until and self.process.poll() is None
            serves = False
            with contextlib.suppress(httpx.TransportError):
                serves = httpx.get(f"http://127.0.0.1:{self.port}/v2/health/ready").status_code == 200
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.get(f"{self.admin}/readyz")
                self.said.append((time.monotonic(), answer.status_code, answer.text))
                self.served_too_early |= serves and answer.status_code != 200
                self.alive.add(httpx.get(f"{self.admin}/healthz").status_code)
            time.sleep(0.02)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


def timed(server: SlowServer, item: list[float]) -> tuple[float, float]:
    """When an item was asked for, and when it was answered."""
    begun = time.monotonic()
    server.ask(item)
    return begun, time.monotonic()


def until_it_runs(server: SlowServer, before: float) -> None:
    """Until the process has computed for a while since `before` (its CPU time then)."""
    until = time.monotonic() + 30
    while server.cpu_seconds() < before + 0.2:
        assert time.monotonic() < until, "the model does not run"
        time.sleep(0.01)


def test_it_is_not_ready_before_the_model_is_loaded_and_warmed_up(tmp_path: Path) -> None:
    server = Watched(tmp_path, {"warm": SLOW})
    try:
        assert {(status, text) for _, status, text in server.said} == {
            (503, "the model is loading\n"),
            (200, "ready\n"),
        }
        assert server.alive == {200}  # a model that loads is no reason to restart it
        assert not server.served_too_early
        begun = time.monotonic()
        server.ask(SLOW)
        took = time.monotonic() - begun
        assert server.said[-1][0] - server.said[0][0] > took / 2  # it answered the artifact's slow item first
    finally:
        server.stop()


class Loading(SlowServer):
    """A server whose model takes hours to be warmed up."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, {"warm": [1e7, 0.0, 0.0, 0.0]}, drain_seconds=60)

    def _wait_until_ready(self) -> None:
        until, said = time.monotonic() + 60, ""
        while said != "the model is loading\n":
            assert time.monotonic() < until and self.process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                said = httpx.get(f"{self.admin}/readyz").text


def test_a_server_that_is_told_to_end_while_its_model_loads_ends_at_once(tmp_path: Path) -> None:
    server = Loading(tmp_path)
    try:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    finally:
        server.process.kill()


STALLING = [3e6, 0.0, 0.0, 0.0]  # some seconds with a matrix of 1


def test_a_model_that_was_quick_and_stalls_does_not_stop_probes(tmp_path: Path) -> None:
    server = SlowServer(tmp_path, {"size": 1})  # quick enough for the event loop
    try:
        for _ in range(3):
            server.ask(QUICK)
        with ThreadPoolExecutor() as clients:
            before = server.cpu_seconds()
            stalling = clients.submit(timed, server, STALLING)
            until_it_runs(server, before)
            answers = [
                (probe, httpx.get(f"{server.admin}{probe}").status_code)
                for probe in ("/healthz", "/readyz", "/fettle/window?since=0", "/metrics")
            ]
            assert not stalling.done()
            assert {status for _, status in answers} == {200}
        stalling.result()
        server.ask(QUICK)
    finally:
        server.stop()


def compared(server: SlowServer) -> tuple[float, float]:
    """Seconds of replays, and items compared."""
    return metric(server, "fettle_server_replay_seconds_total"), metric(server, "fettle_server_compared_items_total")


def test_a_request_in_the_middle_of_a_replay_ends_it_and_the_item_is_tried_again(tmp_path: Path, token: Path) -> None:
    stable = SlowServer(tmp_path / "stable", {"size": 1}, revision="stable", samples_token=token)
    address = f"127.0.0.1:{stable.management}"
    canary = SlowServer(
        tmp_path / "canary", revision="canary", samples_token=token, stable=address, replay_share=1, samples=0
    )
    try:
        before = canary.cpu_seconds()
        stable.ask(SLOW)
        until_it_runs(canary, before)
        assert compared(canary) == (0, 0)  # the replay is under way
        begun = time.monotonic()
        canary.ask(QUICK)
        waited = time.monotonic() - begun
        part = wait_for(lambda: compared(canary)[0])
        assert wait_for(lambda: compared(canary)[1]) == 1
        whole = compared(canary)[0] - part
        assert part < whole and waited < whole / 2
    finally:
        canary.stop()
        stable.stop()


def wait_for(value: Any) -> float:
    """Until it is more than 0."""
    until = time.monotonic() + 60
    while not (found := float(value())):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("runtime", [RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO])
@pytest.mark.parametrize("streams", [1, 2])
def test_as_many_inferences_run_at_once_as_the_winner_had_streams(
    tmp_path: Path, streams: int, runtime: RuntimeName
) -> None:
    server = SlowServer(tmp_path, {"runtime": runtime, "settings": RuntimeSettings(threads=1, streams=streams)})
    try:
        with ThreadPoolExecutor() as clients:
            before = server.cpu_seconds()
            slow = clients.submit(timed, server, SLOW)
            until_it_runs(server, before)
            asked, answered = timed(server, QUICK)
        # One after the other the quick one waits, and both are over at once; side by side it waits for nobody.
        assert (slow.result()[1] - answered > answered - asked) is (streams == 2)
    finally:
        server.stop()


LONG = [900.0, 0.0, 0.0, 0.0]  # several seconds


def hangs_up(server: SlowServer) -> None:
    """A client over HTTP that asks and leaves."""
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": QUICK}]})
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{head}{body}".encode())
        wait_for(lambda: metric(server, "fettle_server_waiting") == 2)


def deadline_passes(server: SlowServer) -> None:
    """A client over gRPC that gives its request half a second."""
    ask_by_rpc(server, timeout=0.5)


def cancels(server: SlowServer) -> None:
    """A client over gRPC that asks and cancels."""
    ask_by_rpc(server, timeout=None)


def ask_by_rpc(server: SlowServer, timeout: float | None) -> None:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    raw = np.array(QUICK, np.float32).tobytes()
    request = pb.ModelInferRequest(model_name="slow", inputs=[tensor], raw_input_contents=[raw])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        grpc.channel_ready_future(channel).result(timeout=30)  # a deadline is for the answer, not for the connection
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call = infer.future(request.SerializeToString(), timeout=timeout)
        if timeout is None:
            wait_for(lambda: metric(server, "fettle_server_waiting") == 2)
            call.cancel()
        else:
            assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("give_up", [hangs_up, deadline_passes, cancels])
def test_a_request_whose_client_gives_up_while_it_waits_is_let_go_and_never_runs(
    tmp_path: Path, give_up: Callable[[SlowServer], None]
) -> None:
    server = SlowServer(tmp_path)
    try:
        with ThreadPoolExecutor() as clients:
            before = server.cpu_seconds()
            slow = clients.submit(server.ask, LONG)
            until_it_runs(server, before)
            give_up(server)
            wait_for(lambda: answers_with(server, 499))
            assert not slow.done(), "nobody waited for the model to be free"
            slow.result()
        server.ask(QUICK)
        assert metric(server, "fettle_server_run_seconds_count") == 2
        assert metric(server, "fettle_server_waiting") == 0
    finally:
        server.stop()
