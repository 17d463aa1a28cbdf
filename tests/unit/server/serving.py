"""A real artifact in a store, and a server process that serves it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName
from fettle.store.comparison import Comparison
from fettle.store.manifest import DataRecord, Manifest, RecipeRecord, Tolerance, put_reference, write_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts

VALUES = np.arange(12, dtype=np.float32)
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def lookup_model(values: np.ndarray = VALUES) -> onnx.ModelProto:
    """y = table[int(x)]: a value of 12 or more is outside of the table, and onnxruntime refuses it."""
    table = numpy_helper.from_array(values, "table")
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [table],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def publish(root: Path, values: np.ndarray = VALUES, rule: Comparison | None = None) -> str:
    """An artifact of the look-up model in a store, its answers compared by `rule`; its digest."""
    (root / "store").mkdir(parents=True)
    (root / "source").mkdir()
    onnx.save(lookup_model(values), root / "source" / "model.onnx")
    store = Store.open("pvc://store", Mounts({"store": root / "store"}))
    signature = Signature(
        inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),),
        outputs=(Tensor(name="y", dtype="FP32", shape=(-1, 4), batch_axis=0),),
    )
    manifest = Manifest(
        source_sha256="0" * 64,
        recipe=RecipeRecord(name="portable"),
        data=DataRecord(),
        libraries={},
        runtime=RuntimeName.ONNXRUNTIME,
        settings=RuntimeSettings(threads=1),
        signature=signature,
        tolerances={"y": Tolerance(rtol=1e-5, atol=1e-6)},
        comparisons={"y": rule} if rule is not None else {},
        model=store.put_model(root / "source", "model.onnx"),
        reference=put_reference(store, {"x": ROWS}, {"y": values[ROWS.astype(int)]}),
    )
    return write_artifact(store, manifest)


class Server:
    """A running server process and its two ports."""

    def __init__(
        self, root: Path, values: np.ndarray = VALUES, rule: Comparison | None = None, **settings: str
    ) -> None:
        self.sha256 = publish(root, values, rule)
        self.port, self.management = free_port(), free_port()
        self.environment = os.environ | {
            "FETTLE_MOUNTS": f'{{"store": "{root / "store"}"}}',
            "FETTLE_SERVER_ARTIFACT": f"pvc://store/artifacts/{self.sha256}",
            "FETTLE_SERVER_SHA256": self.sha256,
            "FETTLE_SERVER_FOLDER": str(root / "model"),
            "FETTLE_SERVER_MODEL": "lookup",
            "FETTLE_SERVER_REVISION": "abc123",
            "FETTLE_SERVER_HOST": "127.0.0.1",
            "FETTLE_SERVER_PORT": str(self.port),
            "FETTLE_SERVER_MANAGEMENT_PORT": str(self.management),
            "FETTLE_SERVER_DRAIN_SECONDS": "1",
            **settings,
        }
        self.run("fetch")
        self.process = subprocess.Popen([sys.executable, "-m", "fettle.server", "serve"], env=self.environment)
        self.wait_until_ready()

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the server to its end."""
        arguments = [sys.executable, "-m", "fettle.server", command]
        return subprocess.run(arguments, env=self.environment, capture_output=True, text=True, check=False, timeout=60)

    def wait_until_ready(self) -> None:
        """Poll /readyz."""
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.admin}/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not get ready")

    @property
    def url(self) -> str:
        """The model's base address."""
        return f"http://127.0.0.1:{self.port}/v2/models/lookup"

    @property
    def admin(self) -> str:
        """The management address."""
        return f"http://127.0.0.1:{self.management}"

    def stop(self) -> None:
        """End the process, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
