"""A kernel that destroys the GPU's context: the request fails, and the process ends, for no later one could succeed."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from tests.unit.server.serving import publish

from fettle.api.recipe import RuntimeSettings
from fettle.runtimes.base import Array, Arrays, Interrupt
from fettle.runtimes.cuda import ContextLost
from fettle.server.model import ServedModel
from fettle.server.request import InferRequest
from fettle.store.manifest import read_stored
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
