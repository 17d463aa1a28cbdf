"""A kernel that destroys the GPU's context: the request fails, and the process ends, for no later one could succeed."""

from __future__ import annotations

import asyncio
import gc
import signal
from pathlib import Path
from types import FrameType

import httpx
import numpy as np
import pytest
from tests.unit.runtimes.fake_cuda import FakeCuda
from tests.unit.server.serving import publish
from tools.ports import free_port

from fettle.api.recipe import RuntimeSettings
from fettle.api.vocabulary import RuntimeName
from fettle.runtimes import cuda
from fettle.runtimes.base import Array, Arrays, Interrupt
from fettle.runtimes.cuda import ContextLost
from fettle.server.model import Batching, ServedModel
from fettle.server.process import serve
from fettle.server.request import InferRequest
from fettle.server.service import InferenceService
from fettle.server.settings import ServerSettings
from fettle.store.manifest import fetch_artifact, read_stored
from fettle.store.store import Store
from fettle.store.uris import Mounts


class Lost:
    """A session on a GPU that is gone."""

    def infer(self, inputs: Arrays, interrupt: Interrupt | None = None) -> dict[str, Array]:
        raise ContextLost("the GPU's context is lost (cudaStreamSynchronize: an illegal memory access)")

    def effective_settings(self) -> RuntimeSettings:
        return RuntimeSettings()

    def close(self) -> None:
        return


def test_the_memory_of_the_gpu_is_a_metric_while_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCuda()
    monkeypatch.setattr(cuda, "connect", lambda: gpu)
    digest = publish(tmp_path)
    manifest = read_stored(Store.open("pvc://store", Mounts({"store": tmp_path / "store"})), digest)
    settings = ServerSettings(model="lookup", folder=tmp_path / "model", sha256=digest)

    def shown(runtime: RuntimeName) -> list[str]:
        served = ServedModel(manifest.model_copy(update={"runtime": runtime}), Lost(), 8)
        lines = InferenceService(settings, served).metrics.text().decode().splitlines()
        served.close()
        return [line.rpartition(" ")[2] for line in lines if line.startswith("fettle_server_gpu_memory")]

    assert shown(RuntimeName.ONNXRUNTIME) == [], "it has no GPU"
    assert shown(RuntimeName.TENSORRT_RTX) == ["1.073741824e+09", "2.147483648e+09"]

    def lost() -> tuple[int, int]:
        raise ContextLost("the GPU's context is lost")

    monkeypatch.setattr(gpu, "memory", lost)
    assert shown(RuntimeName.ONNXRUNTIME_CUDA) == ["NaN", "NaN"], "the other metrics are still there"


def test_a_lost_gpu_fails_the_request_and_ends_the_process(tmp_path: Path) -> None:
    digest = publish(tmp_path)
    manifest = read_stored(Store.open("pvc://store", Mounts({"store": tmp_path / "store"})), digest)
    model = ServedModel(manifest, Lost(), 8)
    (tensor,) = manifest.signature.inputs
    shape = [1 if size == -1 else size for size in tensor.shape]
    request = InferRequest({tensor.name: np.zeros(shape, np.float32)}, 1, None, "1")
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGTERM, hear)
    try:
        with pytest.raises(ContextLost, match="an illegal memory access"):
            model._run_there(request.inputs, request.rows, request.rows)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    model.close()


async def test_a_process_that_a_lost_gpu_ended_says_so_by_its_status(tmp_path: Path) -> None:
    """Else the operator would take its end for nobody's fault, and promote a canary that loses its GPU now and then."""
    digest, mounts = publish(tmp_path), Mounts({"store": tmp_path / "store"})
    fetch_artifact(f"pvc://store/artifacts/{digest}", digest, tmp_path / "model", mounts)
    port, tasks = free_port(), set[asyncio.Task[int]]()
    ports = {"host": "127.0.0.1", "port": port, "grpc_port": free_port(), "management_port": free_port()}
    settings = ServerSettings(model="lookup", folder=tmp_path / "model", sha256=digest, drain_seconds=0, **ports)

    async def ask() -> int:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        async with httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{port}/v2/models/lookup/infer"
            return (await client.post(url, json={"inputs": [tensor]}, timeout=30)).status_code

    def lose(model: ServedModel) -> None:
        model.session = Lost()
        tasks.add(asyncio.create_task(ask()))

    try:
        with pytest.raises(ContextLost, match="an illegal memory access"):
            await serve(settings, lose)
        assert [await task for task in tasks] == [500]
    finally:
        gc.unfreeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


def test_a_gpu_that_is_lost_at_warm_up_is_an_error_of_loading(tmp_path: Path) -> None:
    """A signal meanwhile would end the process as if it had been told to stop."""
    digest, mounts = publish(tmp_path), Mounts({"store": tmp_path / "store"})
    fetch_artifact(f"pvc://store/artifacts/{digest}", digest, tmp_path / "model", mounts)
    model = ServedModel(read_stored(Store.open("pvc://store", mounts), digest), Lost(), 8)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(ContextLost):
            model.warm_up(tmp_path / "model", Batching())
    finally:
        signal.signal(signal.SIGTERM, before)
        model.close()
    assert heard == []
