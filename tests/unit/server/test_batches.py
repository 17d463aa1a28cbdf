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

from fettle.api.recipe import QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import QuantizeMode, RuntimeName
from fettle.library.predict import Predictor
from fettle.store.manifest import RecipeRecord, Tolerance, put_reference


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


def serve(
    root: Path, axis: int, runtime: RuntimeName, settings: RuntimeSettings, items_per_run: int | None = None
) -> ServerProcess:
    model = root / "source" / "model.onnx"
    model.parent.mkdir()
    onnx.save(telling_model(axis), model)
    items = Tensor(name="x", dtype="FP32", shape=(-1, 2) if axis == 0 else (2, -1), batch_axis=axis)
    outputs = (
        items.model_copy(update={"name": "y"}),
        Tensor(name="together", dtype="INT64", shape=(-1,), batch_axis=0),
    )
    signature = Signature(inputs=(items,), outputs=outputs)
    more = {"runtime": runtime, "settings": settings, "items_per_run": items_per_run}
    sha256 = publish(open_store(root / "store"), model, signature, **more)
    return ServerProcess(root / "store", sha256, root / "model", model="telling")


def items(axis: int, rows: int) -> np.ndarray[Any, Any]:
    return np.moveaxis(np.arange(rows * 2, dtype=np.float32).reshape(rows, 2), 0, axis)


def ask(server: ServerProcess, axis: int, rows: int) -> tuple[list[float], list[int]]:
    """The first element of each item of the answer, and with how many others each item ran."""
    given = items(axis, rows)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(given.shape), "data": given.tolist()}
    answer = httpx.post(f"http://127.0.0.1:{server.port}/v2/models/telling/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    y, together = answer.json()["outputs"]
    assert y["shape"] == list(given.shape)
    return np.moveaxis(np.array(y["data"]).reshape(y["shape"]), axis, 0)[:, 0].tolist(), together["data"]


DYNAMIC = [(1, [1]), (3, [3] * 3), (4, [3] * 3 + [1]), (8, [3] * 6 + [2] * 2)]
ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO
FREE = RuntimeSettings(threads=1)
THREE, FOUR = FREE.model_copy(update={"preferred_batch": 3}), FREE.model_copy(update={"batch_size": 4})
CASES = [
    ("no preferred batch", 0, ORT, FREE, None, [(1, [1]), (9, [9] * 9)]),
    ("preferred batch 3", 0, ORT, THREE, None, DYNAMIC),
    ("preferred batch 3, items along axis 1", 1, ORT, THREE, None, DYNAMIC),
    ("static batch 4", 0, OPENVINO, FOUR, None, [(1, [4]), (4, [4] * 4), (6, [4] * 6)]),
    ("one item a run", 0, ORT, FREE, 1, [(1, [1]), (9, [1] * 9)]),
    ("one item a run, items along axis 1", 1, ORT, THREE, 1, [(1, [1]), (9, [1] * 9)]),
    ("one item a run of a static batch of 4", 0, OPENVINO, FOUR, 1, [(1, [4]), (4, [4] * 4), (6, [4] * 6)]),
]


@pytest.mark.parametrize(
    ("what", "axis", "runtime", "settings", "items_per_run", "requests"), CASES, ids=[case[0] for case in CASES]
)
def test_a_request_runs_in_parts_and_is_answered_in_order(
    tmp_path: Path,
    what: str,
    axis: int,
    runtime: RuntimeName,
    settings: RuntimeSettings,
    items_per_run: int | None,
    requests: list[tuple[int, list[int]]],
) -> None:
    server = serve(tmp_path, axis, runtime, settings, items_per_run)
    try:
        for rows, parts in requests:
            assert ask(server, axis, rows) == ([2.0 * item for item in range(rows)], parts)
        here = Predictor(tmp_path / "model")
        for rows, parts in requests:
            answer = here.predict(items(axis, rows))
            assert isinstance(answer, dict)
            assert answer["y"].tolist() == items(axis, rows).tolist()
            assert answer["together"].tolist() == parts, "in Python an item runs beside as many as in the server"
    finally:
        server.stop()


def by_range_of_the_run() -> onnx.ModelProto:
    """y = x in int8 steps of the whole run's range, as dynamic quantization takes it."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "dynamic", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def by_range(root: Path, **more: Any) -> ServerProcess:
    """A server of that model; `more`: other parts of its manifest."""
    model = root / "source" / "model.onnx"
    model.parent.mkdir()
    onnx.save(by_range_of_the_run(), model)
    x = Tensor(name="x", dtype="FP32", shape=(-1, 2), batch_axis=0)
    signature = Signature(inputs=(x,), outputs=(x.model_copy(update={"name": "y"}),))
    sha256 = publish(open_store(root / "store"), model, signature, **more)
    return ServerProcess(root / "store", sha256, root / "model", model="m")


@pytest.mark.parametrize(("runtime", "settings"), [(ORT, FREE), (OPENVINO, FOUR)], ids=["free batch", "static batch"])
def test_an_item_beside_a_large_one_is_answered_as_alone(
    tmp_path: Path, runtime: RuntimeName, settings: RuntimeSettings
) -> None:
    server = by_range(tmp_path, runtime=runtime, settings=settings, items_per_run=1)
    try:

        def answers(*rows: list[float]) -> list[float]:
            tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
            found = httpx.post(f"http://127.0.0.1:{server.port}/v2/models/m/infer", json={"inputs": [tensor]}).json()
            return list(found["outputs"][0]["data"])

        alone = answers([1, 0.3])
        assert answers([1, 0.3], [1e6, 1])[:2] == alone
        assert answers([1e6, 1], [1, 0.3], [5, 5], [7, 7], [8, 8])[2:4] == alone
        shape = httpx.get(f"http://127.0.0.1:{server.port}/v2/models/m").json()["inputs"][0]["shape"]
        assert shape == [-1, 2], "a request may hold as many items as before"
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("another shape", np.zeros((3, 2), np.float32)),
        ("other numbers", np.full((2, 2), 9, np.float32)),
        ("no numbers", np.full((2, 2), np.nan, np.float32)),
    ],
)
def test_a_reference_that_does_not_come_out_again_is_said_and_stops_nothing(
    tmp_path: Path, what: str, expected: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    reference = put_reference(open_store(tmp_path / "store"), {"x": np.zeros((2, 2), np.float32)}, {"y": expected})
    by_range(tmp_path, reference=reference, tolerances={"y": Tolerance(rtol=0.01, atol=0.01)}).stop()
    assert "another class of CPU than it was measured on" in capfd.readouterr().err


def test_an_older_artifact_with_dynamic_quantization_is_served_one_by_one_though_it_does_not_say_so(
    tmp_path: Path,
) -> None:
    model = tmp_path / "source" / "model.onnx"
    model.parent.mkdir()
    onnx.save(telling_model(0), model)
    x = Tensor(name="x", dtype="FP32", shape=(-1, 2), batch_axis=0)
    outputs = (x.model_copy(update={"name": "y"}), Tensor(name="together", dtype="INT64", shape=(-1,), batch_axis=0))
    steps = (RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.DYNAMIC)),)
    store = open_store(tmp_path / "store")
    given = np.arange(6, dtype=np.float32).reshape(3, 2)
    # As it was written before: the answers of one run of three items.
    reference = put_reference(store, {"x": given}, {"y": given, "together": np.array([3, 3, 3])})
    more = {"recipe": RecipeRecord(name="int8-dynamic", steps=steps), "reference": reference}
    more["tolerances"] = {"y": Tolerance(rtol=0, atol=0)}
    sha256 = publish(store, model, Signature(inputs=(x,), outputs=outputs), **more)
    log = tmp_path / "log"
    with log.open("wb") as stream:
        server = ServerProcess(tmp_path / "store", sha256, tmp_path / "model", model="telling", log=stream.fileno())
        try:
            assert ask(server, 0, 5) == ([0.0, 2.0, 4.0, 6.0, 8.0], [1] * 5)
        finally:
            server.stop()
    assert b"differs from the reference" not in log.read_bytes()
