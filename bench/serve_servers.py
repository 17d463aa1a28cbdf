"""Servers that `bench/serve.py` compares, each of one model on ports of its own: Fettle as a pod runs it, its peers, and the upper line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
from bench.peers.environments import ROOT, EnvironmentFailure, python
from bench.serve_load import Request
from bench.serve_models import ServedCase
from tools.cluster.shell import last_line
from tools.ports import free_port
from tools.serving import ServerProcess, open_store, publish

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import BY_V2
from fettle.api.vocabulary import RuntimeName
from fettle.runtimes import base
from fettle.server.inference_pb2 import ModelInferRequest
from fettle.store.manifest import put_reference

READY_SECONDS = 180
SETTLE_SECONDS, LOOK_SECONDS, QUIET_SHARE = 60.0, 0.5, 0.1  # of a CPU: what a server that idles may take
JSON, BINARY, GRPC = PROTOCOLS = ("REST JSON", "REST binary", "gRPC")
FETTLE, ALONE = "fettle", "the runtime alone"
METHOD = "inference.GRPCInferenceService.ModelInfer"
PROTO = ROOT / "operator" / "fettle" / "server" / "inference.proto"


class ServerFailure(Exception):
    """A server, or a protocol of it, cannot be had; the message says why."""


@dataclass(frozen=True)
class ServerKind:
    """`module`: of `bench/peers/serve`. `environment`: the name of its requirements; the locked environment where there is none.
    `path`: where it takes requests in JSON. `protocols`: what else it speaks of what is compared. `processes`: that share its ports, of Fettle."""

    name: str
    module: str = ""
    environment: str = ""
    path: str = "/v2/models/{name}/infer"
    protocols: tuple[str, ...] = (JSON,)
    processes: int = 1


KINDS = (
    ServerKind(FETTLE, protocols=PROTOCOLS),
    ServerKind("ten lines of granian", "ten_lines"),
    ServerKind("triton", "triton_server", "serve_triton", protocols=PROTOCOLS),
    ServerKind("mosec", "mosec_server", "serve_mosec", "/inference"),
    ServerKind("kserve", "kserve_server", "serve_kserve", protocols=(JSON, GRPC)),
    ServerKind("mlserver", "mlserver_server", "serve_mlserver", protocols=(JSON, GRPC)),
    ServerKind("litserve", "litserve_server", "serve_litserve", "/predict"),
    ServerKind("bentoml", "bentoml_server", "serve_bentoml", "/infer"),
)
BY_NAME = {kind.name: kind for kind in KINDS}


class RunningServer:
    """A server that answers. `cpus`: what it may run on."""

    def __init__(
        self, kind: ServerKind, case: ServedCase, model: Path, folder: Path, threads: int, cpus: Sequence[int]
    ) -> None:
        """Raises ServerFailure."""
        self.kind, self.case, self.folder = kind, case, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.grpc_port = free_port(), free_port()
        self.log = folder / "log"
        with self.log.open("w") as log, _pinned(cpus):
            self.process = (
                self._fettle(model, threads, log.fileno())
                if not kind.module
                else self._peer(model, threads, log.fileno())
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def request(self, protocol: str) -> Request:
        """One item in that protocol. Raises ServerFailure where the server does not speak it."""
        if protocol not in self.kind.protocols:
            raise ServerFailure("it does not speak this protocol, or not as the others do")
        url = f"http://127.0.0.1:{self.port}{self.kind.path.format(name=self.case.name)}"
        if protocol == JSON:
            return Request(url, self.case.json_body())
        if protocol == BINARY:
            self._require_binary()
            body, head = self.case.binary_body()
            told = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(head)}
            return Request(url, body, told)
        return grpc_request(self.case, self.grpc_port)

    def memory_bytes(self) -> int:
        """What the process and those that it started take, pages that they share counted once."""
        return sum(process.memory_full_info().pss for process in self._family())

    def cpu_seconds(self) -> float:
        """The CPU time that they have used."""
        return sum(used.user + used.system for used in (process.cpu_times() for process in self._family()))

    def settle(self) -> None:
        """Wait until it computes no more: a server may go on with requests whose clients are gone, on the CPUs of the next one's turn."""
        for _ in range(round(SETTLE_SECONDS / LOOK_SECONDS)):
            before = self.cpu_seconds()
            time.sleep(LOOK_SECONDS)
            if self.cpu_seconds() - before < QUIET_SHARE * LOOK_SECONDS:
                return

    def _family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def stop(self) -> None:
        """End the process and what it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = self._family()[::-1]
            self.process.send_signal(signal.SIGTERM)
            psutil.wait_procs(family, timeout=10)
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(30)

    def _fettle(self, model: Path, threads: int, log: int) -> subprocess.Popen[bytes]:
        store, signature = open_store(self.folder / "store"), self.case.signature
        settings = RuntimeSettings(threads=threads)
        items = {"x": self.case.items(8)}
        session = base.get(RuntimeName.ONNXRUNTIME).load(model, settings, signature)
        reference = put_reference(store, items, session.infer(items))
        session.close()
        sha256 = publish(store, model, signature, settings=settings, reference=reference)
        told: dict[str, object] = {"model": self.case.name, "revision": "bench", "processes": self.kind.processes}
        told["grpc_port"] = self.grpc_port
        server = ServerProcess(self.folder / "store", sha256, self.folder / "artifact", log=log, **told)
        self.port = server.port
        return server.process

    def _peer(self, model: Path, threads: int, log: int) -> subprocess.Popen[bytes]:
        try:
            interpreter = python(self.kind.environment)
        except EnvironmentFailure as failure:
            raise ServerFailure(str(failure)) from failure
        environment = write_job(self.case, model, self.folder, threads, self.port, self.grpc_port)
        command = [str(interpreter), "-m", f"bench.peers.serve.{self.kind.module}"]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)

    def _wait(self) -> None:
        request, until = self.request(JSON), time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise ServerFailure(f"it ended with {self.process.returncode}: {self._last_words()}")
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(
                    request.url, content=request.body, headers={"Content-Type": "application/json"}, timeout=60
                )
                if answer.status_code == 200:
                    return
            time.sleep(0.2)
        raise ServerFailure(f"it did not answer within {READY_SECONDS} s: {self._last_words()}")

    def _last_words(self) -> str:
        return last_line(self.log) or "its log is empty"

    def _require_binary(self) -> None:
        """Ask the server whether it has the extension, as the protocol says."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/v2", timeout=10)
        extensions = answer.json().get("extensions", ()) if answer.status_code == 200 else ()
        if not {"binary_tensor_data", "binary_data"} & set(extensions):
            raise ServerFailure(f"its metadata list no binary tensor extension: {list(extensions)}")


def write_job(
    case: ServedCase, model: Path, folder: Path, threads: int, *ports: int, seconds: float = 0
) -> dict[str, str]:
    """Write what a module of `bench/peers/serve` is told into `folder`; the environment that it runs in."""
    folder.mkdir(parents=True, exist_ok=True)
    port, grpc_port = ports or (0, 0)
    told = {
        "name": case.name,
        "model": str(model.resolve()),
        "threads": threads,
        "dtype": np.dtype(BY_V2[case.dtype].numpy).name,
        "datatype": case.dtype,
        "item": list(case.item),
        "classes": case.classes,
        "port": port,
        "grpc_port": grpc_port,
        "metrics_port": free_port(),
        "seconds": seconds,
    }
    (folder / "job.json").write_text(json.dumps(told))
    more = {"PYTHONPATH": str(ROOT), "BENCH_SERVE_JOB": str(folder.resolve()), "HOME": str(folder.resolve())}
    return {**os.environ, **more, "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": str(threads)}


def alone(
    case: ServedCase, model: Path, folder: Path, threads: int, cpus: Sequence[int], seconds: float
) -> dict[str, float]:
    """The runtime's own loop, in a process of its own. Raises ServerFailure."""
    environment = write_job(case, model, folder, threads, seconds=seconds)
    with _pinned(cpus):
        done = subprocess.run(
            [sys.executable, "-m", "bench.peers.serve.runtime_alone"],
            env=environment, check=False, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
    if done.returncode:
        raise ServerFailure(f"it ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def grpc_request(case: ServedCase, port: int) -> Request:
    """One item as the protocol's ModelInfer has it, in raw contents."""
    item = case.items(1)
    tensor = ModelInferRequest.InferInputTensor(name="x", datatype=case.dtype, shape=item.shape)
    message = ModelInferRequest(model_name=case.name, inputs=[tensor], raw_input_contents=[item.tobytes()])
    return Request(f"127.0.0.1:{port}", message.SerializeToString(), call=METHOD, proto=PROTO)


@contextlib.contextmanager
def _pinned(cpus: Sequence[int]) -> Iterator[None]:
    """What this thread starts meanwhile runs on `cpus` only."""
    before, own = os.sched_getaffinity(0), threading.get_native_id()
    os.sched_setaffinity(own, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(own, before)
