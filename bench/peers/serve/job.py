"""What a server of `bench/serve.py` is told: one model, its ports. Nothing here but numpy and onnxruntime: it is imported in environments that
lack Fettle.

Each server is a module of `bench/peers/serve`, run as `python -m bench.peers.serve.NAME`. BENCH_SERVE_JOB in its environment, and in that of the
processes that it starts, is a folder with `job.json`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


@dataclass(frozen=True)
class ServeJob:
    """`model`: an ONNX file with one input x and one output y, items along the first axis of both. `dtype`: numpy's name, `datatype`: the
    protocol's. `item`: the input's shape without that axis."""

    folder: Path
    name: str
    model: str
    threads: int
    dtype: str
    datatype: str
    item: list[int]
    classes: int
    port: int
    grpc_port: int
    metrics_port: int
    seconds: float

    def session(self) -> ort.InferenceSession:
        """The model, loaded as Fettle loads it."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        return ort.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])

    def items(self, values: Any, shape: Any) -> np.ndarray[Any, Any]:
        """Elements as a client wrote them, as an array."""
        return np.array(values, self.dtype).reshape(shape)

    def outputs(self, y: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
        """The answer as the protocol has it, for orjson or another library that takes lists."""
        return [{"name": "y", "datatype": "FP32", "shape": list(y.shape), "data": y.reshape(-1).tolist()}]


def read() -> ServeJob:
    """The job that the environment names."""
    path = Path(os.environ["BENCH_SERVE_JOB"])
    return ServeJob(folder=path, **json.loads((path / "job.json").read_text()))
