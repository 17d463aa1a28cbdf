"""How many items of a request a run takes: the server splits larger requests, and nobody sees it but the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tools.serving import ServerProcess, open_store, publish

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName


def telling_model(axis: int) -> onnx.ModelProto:
    """y = x, and `together` says of each item how many there were in its run; items along `axis` of x and y."""
    shape: list[Any] = ["N", 2] if axis == 0 else [2, "N"]
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Shape", ["x"], ["count"], start=axis, end=axis + 1),
        helper.make_node("Expand", ["count", "count"], ["many"]),
        helper.make_node("Add", ["many", "zero"], ["together"]),
    ]
    graph = helper.make_graph(
        nodes,
        "telling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("together", TensorProto.INT64, ["N"]),
        ],
        [numpy_helper.from_array(np.array(0, np.int64), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def serve(root: Path, axis: int, runtime: RuntimeName, settings: RuntimeSettings) -> ServerProcess:
    model = root / "source" / "model.onnx"
    model.parent.mkdir()
    onnx.save(telling_model(axis), model)
    items = Tensor(name="x", dtype="FP32", shape=(-1, 2) if axis == 0 else (2, -1), batch_axis=axis)
    outputs = (
        items.model_copy(update={"name": "y"}),
        Tensor(name="together", dtype="INT64", shape=(-1,), batch_axis=0),
    )
    signature = Signature(inputs=(items,), outputs=outputs)
    sha256 = publish(open_store(root / "store"), model, signature, runtime=runtime, settings=settings)
    return ServerProcess(root / "store", sha256, root / "model", model="telling", drain_seconds=0)


def ask(server: ServerProcess, axis: int, rows: int) -> tuple[list[float], list[int]]:
    """The first element of each item of the answer, and with how many others each item ran."""
    values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    given = np.moveaxis(values, 0, axis)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(given.shape), "data": given.tolist()}
    answer = httpx.post(f"http://127.0.0.1:{server.port}/v2/models/telling/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    y, together = answer.json()["outputs"]
    assert y["shape"] == list(given.shape)
    return np.moveaxis(np.array(y["data"]).reshape(y["shape"]), axis, 0)[:, 0].tolist(), together["data"]


DYNAMIC = [(1, [1]), (3, [3] * 3), (4, [3] * 3 + [1]), (8, [3] * 6 + [2] * 2)]
ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO
FREE = RuntimeSettings(threads=1)
CASES = [
    ("no preferred batch", 0, ORT, FREE, [(1, [1]), (9, [9] * 9)]),
    ("preferred batch 3", 0, ORT, FREE.model_copy(update={"preferred_batch": 3}), DYNAMIC),
    ("preferred batch 3, items along axis 1", 1, ORT, FREE.model_copy(update={"preferred_batch": 3}), DYNAMIC),
    ("static batch 4", 0, OPENVINO, FREE.model_copy(update={"batch_size": 4}), [(1, [4]), (4, [4] * 4), (6, [4] * 6)]),
]


@pytest.mark.parametrize(("what", "axis", "runtime", "settings", "requests"), CASES, ids=[case[0] for case in CASES])
def test_a_request_runs_in_parts_and_is_answered_in_order(
    tmp_path: Path,
    what: str,
    axis: int,
    runtime: RuntimeName,
    settings: RuntimeSettings,
    requests: list[tuple[int, list[int]]],
) -> None:
    server = serve(tmp_path, axis, runtime, settings)
    try:
        for rows, parts in requests:
            assert ask(server, axis, rows) == ([2.0 * item for item in range(rows)], parts)
    finally:
        server.stop()
