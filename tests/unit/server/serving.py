"""Small models in a store, one quick and one as slow as it is asked to be, and server processes that serve them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tools.serving import ServerProcess, open_store, saved
from tools.serving import publish as publish_model

from fettle.api.signature import BY_V2, Signature, Tensor
from fettle.api.vocabulary import AgreementMode
from fettle.store.comparison import Comparison
from fettle.store.manifest import Tolerance, put_reference

VALUES = np.arange(12, dtype=np.float32)
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
# A request for the look-up model.
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


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


SIGNATURE = Signature(  # of both
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),),
    outputs=(Tensor(name="y", dtype="FP32", shape=(-1, 4), batch_axis=0),),
)


def publish(root: Path, values: np.ndarray = VALUES, rule: Comparison | None = None) -> str:
    """An artifact of the look-up model in a store, its answers compared by `rule`; its digest."""
    source = saved(lookup_model(values), root)
    store = open_store(root / "store")
    return publish_model(
        store,
        source,
        SIGNATURE,
        tolerances={"y": Tolerance(rtol=1e-5, atol=1e-6)},
        comparisons={"y": rule} if rule is not None else {},
        reference=put_reference(store, {"x": ROWS}, {"y": values[ROWS.astype(int)]}),
    )


class Server(ServerProcess):
    """A server of the look-up model."""

    def __init__(
        self, root: Path, values: np.ndarray = VALUES, rule: Comparison | None = None, **settings: Any
    ) -> None:
        told: dict[str, Any] = {"model": "lookup", "revision": "abc123", **settings}
        super().__init__(root / "store", publish(root, values, rule), root / "model", **told)

    @property
    def url(self) -> str:
        """The model's base address."""
        return f"http://127.0.0.1:{self.port}/v2/models/lookup"


def slow_model(size: int) -> onnx.ModelProto:
    """y = x, after as many multiplications of a matrix of `size` as the first number of the first item says."""
    state, weights = np.zeros((size, size), np.float32), np.eye(size, dtype=np.float32)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "weights"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [size, size]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [size, size]),
        ],
    )
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["item"], axis=0),
        helper.make_node("Gather", ["item", "zero"], ["number"], axis=0),
        helper.make_node("Cast", ["number"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "yes", "state"], ["last"], body=body),
        helper.make_node("ReduceMax", ["last"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    constants = {"zero": np.array(0, np.int64), "yes": np.array(True), "state": state, "weights": weights}
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


SLOW, QUICK = [500.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]  # a second or two with a matrix of 512, and milliseconds
SIZE = 512


def publish_slow(root: Path, size: int = SIZE, warm: list[float] = QUICK, **more: Any) -> str:
    """An artifact of the slow model in a store; its digest. `warm`: the item of its warm-up."""
    source = saved(slow_model(size), root)
    store = open_store(root / "store")
    item = np.array([warm], np.float32)
    rule = Comparison(mode=AgreementMode.TOP_ONE, margin=1)
    told = {"comparisons": {"y": rule}, "reference": put_reference(store, {"x": item}, {"y": item}), **more}
    return publish_model(store, source, SIGNATURE, **told)


class SlowServer(ServerProcess):
    """A server of the slow model. `artifact`: what `publish_slow` is told."""

    def __init__(self, root: Path, artifact: dict[str, Any] | None = None, **settings: Any) -> None:
        sha256 = publish_slow(root, **(artifact or {}))
        super().__init__(root / "store", sha256, root / "model", **{"model": "slow", **settings})

    def ask(self, item: list[float]) -> None:
        """One item; the answer is the item."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": item}
        url = f"http://127.0.0.1:{self.port}/v2/models/slow/infer"
        answer = httpx.post(url, json={"inputs": [tensor]}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == item


def metric(server: ServerProcess, name: str) -> float:
    """The sum of all values of a metric whose name and first labels begin so."""
    lines = httpx.get(f"{server.admin}/metrics", timeout=60).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def answers_with(server: ServerProcess, code: int) -> int:
    """How many requests have ended with that code."""
    return int(metric(server, f'fettle_server_requests_total{{code="{code}"'))


def every_type_model(signature: Signature) -> onnx.ModelProto:
    """Each output is the input at its place: for tensors of any type and shape, strings too."""

    def info(tensor: Tensor) -> onnx.ValueInfoProto:
        shape = [f"{tensor.name}_{axis}" if size == -1 else size for axis, size in enumerate(tensor.shape)]
        return helper.make_tensor_value_info(tensor.name, BY_V2[tensor.dtype].onnx, shape)

    pairs = list(zip(signature.inputs, signature.outputs, strict=True))
    graph = helper.make_graph(
        [helper.make_node("Identity", [left.name], [right.name]) for left, right in pairs],
        "echo",
        [info(tensor) for tensor in signature.inputs],
        [info(tensor) for tensor in signature.outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


class EchoServer(ServerProcess):
    """A server that answers each input x_<type> as the output y_<type>. The bases of both addresses are its own."""

    def __init__(self, root: Path, dtypes: Sequence[str], size: int = -1, **settings: Any) -> None:
        """`size`: of an item, -1 = any."""

        def side(letter: str) -> tuple[Tensor, ...]:
            return tuple(
                Tensor(name=f"{letter}_{dtype}", dtype=dtype, shape=(-1, size), batch_axis=0) for dtype in dtypes
            )

        signature = Signature(inputs=side("x"), outputs=side("y"))
        source = saved(every_type_model(signature), root)
        sha256 = publish_model(open_store(root / "store"), source, signature)
        told: dict[str, Any] = {"model": "echo", "revision": "abc123", **settings}
        super().__init__(root / "store", sha256, root / "model", **told)
