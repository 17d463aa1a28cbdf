"""A small model in a store, and a server process that serves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tools.serving import ServerProcess, open_store
from tools.serving import publish as publish_model

from fettle.api.signature import Signature, Tensor
from fettle.store.comparison import Comparison
from fettle.store.manifest import Tolerance, put_reference

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
    source = root / "source" / "model.onnx"
    source.parent.mkdir(parents=True)
    onnx.save(lookup_model(values), source)
    store = open_store(root / "store")
    signature = Signature(
        inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),),
        outputs=(Tensor(name="y", dtype="FP32", shape=(-1, 4), batch_axis=0),),
    )
    return publish_model(
        store,
        source,
        signature,
        tolerances={"y": Tolerance(rtol=1e-5, atol=1e-6)},
        comparisons={"y": rule} if rule is not None else {},
        reference=put_reference(store, {"x": ROWS}, {"y": values[ROWS.astype(int)]}),
    )


class Server(ServerProcess):
    """A server of the look-up model."""

    def __init__(
        self, root: Path, values: np.ndarray = VALUES, rule: Comparison | None = None, **settings: object
    ) -> None:
        told = {"model": "lookup", "revision": "abc123", "drain_seconds": 1, **settings}
        super().__init__(root / "store", publish(root, values, rule), root / "model", **told)

    @property
    def url(self) -> str:
        """The model's base address."""
        return f"http://127.0.0.1:{self.port}/v2/models/lookup"
