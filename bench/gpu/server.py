"""Fettle's own server on a GPU, under the requests of one client with several connections."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from tools.serving import ServerProcess, open_store, publish

from fettle.api.recipe import RuntimeSettings
from fettle.api.vocabulary import RuntimeName

if TYPE_CHECKING:
    from bench.gpu.forms import Subject

CONNECTIONS, SECONDS = 16, 8.0


def requests_per_second(
    entry: Path, runtime: RuntimeName, settings: RuntimeSettings, subject: Subject, folder: Path
) -> dict[str, Any]:
    """Requests of the subject's feed that were answered in a second, and how many were not answered with 200."""
    store = open_store(folder / "store")
    digest = publish(store, entry, subject.signature, runtime=runtime, settings=settings)
    server = ServerProcess(folder / "store", digest, folder / "artifact")
    try:
        return _load(f"http://127.0.0.1:{server.port}/v2/models/model/infer", subject)
    finally:
        server.stop()


def _load(address: str, subject: Subject) -> dict[str, Any]:
    header, body = _request(subject)
    answered, failed = [0] * CONNECTIONS, [0] * CONNECTIONS
    until = time.monotonic() + SECONDS

    def client(number: int) -> None:
        with httpx.Client(timeout=30) as connection:
            while time.monotonic() < until:
                response = connection.post(address, content=body, headers=header)
                (answered if response.status_code == 200 else failed)[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"requestsPerSecond": round(sum(answered) / SECONDS, 1), "failed": sum(failed), "items": subject.batch}


def _request(subject: Subject) -> tuple[dict[str, str], bytes]:
    """One request in the binary form of the Open Inference Protocol."""
    inputs, tail = [], b""
    for tensor in subject.signature.inputs:
        array = np.ascontiguousarray(subject.feed[tensor.name])
        inputs.append(
            {
                "name": tensor.name,
                "datatype": tensor.dtype,
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
        )
        tail += array.tobytes()
    text = json.dumps({"inputs": inputs}).encode()
    header = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return header, text + tail
