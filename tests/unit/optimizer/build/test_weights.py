"""Weight-only quantization of small real models: what it makes, how near its answers are, and what it refuses."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from tests.data import models
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.build.test_build import ORT, built, images, kinds, plan, prepared
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import QuantizeStep, RuntimeSettings
from fettle.api.report import BuildReport, PrepareReport
from fettle.api.vocabulary import QuantizeMode, RuntimeName
from fettle.optimizer.measure import items
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.steps import Work, onnxruntime_weights
from fettle.runtimes import base
from fettle.store.arrays import Array

OPENVINO = RuntimeName.OPENVINO
WEIGHTS, INT4 = QuantizeMode.WEIGHT_ONLY, QuantizeMode.WEIGHT_ONLY_INT4
ITEMS = 300


@cache
def digits() -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
    """Weights and biases of three dense layers that were trained on the digits, and images that they were not trained on."""
    data = load_digits()
    images = (data.data / 16).astype(np.float32)
    trained = MLPClassifier((256, 128), max_iter=40, random_state=0).fit(images[ITEMS:], data.target[ITEMS:])
    parts = ([array.astype(np.float32) for array in arrays] for arrays in (trained.coefs_, trained.intercepts_))
    weights, biases = map(tuple, parts)
    return weights, biases, images[:ITEMS]


def classifier() -> onnx.ModelProto:
    """The three layers: a Gemm with its weight transposed, a MatMul with its bias added, a plain Gemm."""
    (first, second, third), biases, _ = digits()
    nodes = [
        helper.make_node("Gemm", ["pixels", "w0", "b0"], ["h0"], "first", transB=1),
        helper.make_node("Relu", ["h0"], ["r0"]),
        helper.make_node("MatMul", ["r0", "w1"], ["p1"], "second"),
        helper.make_node("Add", ["p1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["logits"], "third"),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    stored = {"w0": np.ascontiguousarray(first.T), "w1": second, "w2": third} | {
        f"b{n}": b for n, b in enumerate(biases)
    }
    return model(nodes, stored, 64, 10)


def twice() -> onnx.ModelProto:
    """Two products that share one weight, which both take transposed."""
    weight = np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32) / 8
    nodes = [
        helper.make_node("Gemm", ["pixels", "w"], ["h"], "first", transB=1),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Gemm", ["t", "w"], ["scores"], "second", transB=1),
    ]
    return model(nodes, {"w": weight}, 64, 64)


def model(nodes: list[onnx.NodeProto], stored: dict[str, Array], width: int, answers: int) -> onnx.ModelProto:
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])]
        for name, size in (("pixels", width), ("scores", answers))
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "dense", ends[0], ends[1], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def answers(bench: Workbench, report: PrepareReport, made: BuildReport, family: RuntimeName) -> tuple[Array, Array]:
    """What the portable form and the built file answer to all items."""
    assert made.built is not None, made.message
    stored = {"int8": (family, made.built), "float32": (ORT, report.portable)}
    files = {name: (kind, bench.store.fetch_model(file, bench.folder / name)) for name, (kind, file) in stored.items()}
    arrays = items.of(arrays_in(bench.store, report.items.sha256), report.signature)
    feed = arrays.feed(range(len(arrays)))
    sessions = (
        base.get(kind).load(path, RuntimeSettings(threads=1), report.signature)
        for kind, path in (files["float32"], files["int8"])
    )
    original, changed = (session.infer(feed)["scores"] for session in sessions)
    return original, changed


@pytest.mark.parametrize("family", [ORT, OPENVINO])
@pytest.mark.parametrize(("mode", "agreement", "size"), [(WEIGHTS, 0.99, 0.45), (INT4, 0.95, 0.4)])
def test_a_file_with_small_weights_is_smaller_and_answers_nearly_alike(
    bench: Workbench, family: RuntimeName, mode: QuantizeMode, agreement: float, size: float
) -> None:
    report = prepared(bench, classifier(), pixels=digits()[2])
    made = built(bench, report, plan(family, mode))
    original, changed = answers(bench, report, made, family)
    assert np.mean(original.argmax(axis=1) == changed.argmax(axis=1)) >= agreement
    assert np.abs(original - changed).mean() < 0.02
    assert not np.array_equal(original, changed)
    assert made.built is not None
    assert made.built.bytes < size * report.portable.bytes


def test_every_product_with_stored_weights_is_quantized_and_the_runtime_computes_it_so(bench: Workbench) -> None:
    report = prepared(bench, classifier(), pixels=digits()[2])
    made = built(bench, report, plan(ORT, WEIGHTS))
    found = kinds(bench, made)
    assert (found["MatMulNBits"], found["MatMul"], found["Gemm"]) == (3, 0, 0)
    assert made.built is not None
    path = bench.store.fetch_model(made.built, bench.folder / "int8")
    feed = items.of(arrays_in(bench.store, report.items.sha256), report.signature).feed([0])
    executed = base.get(ORT).executed(path, RuntimeSettings(threads=1), feed, report.signature)
    assert (executed.weight_only, executed.int8, executed.f32) == (3, 0, 0)
    assert set(made.libraries) == {"onnx", "onnx-ir", "onnxruntime"}


@pytest.mark.parametrize("family", [ORT, OPENVINO])
def test_two_products_that_share_a_weight_answer_as_before(bench: Workbench, family: RuntimeName) -> None:
    pixels = np.random.default_rng(4).normal(size=(40, 64)).astype(np.float32)
    report = prepared(bench, twice(), pixels=pixels)
    original, changed = answers(bench, report, built(bench, report, plan(family, WEIGHTS)), family)
    assert np.abs(original - changed).max() < 0.05 * np.abs(original).max()


def both_ways() -> onnx.ModelProto:
    """A weight that one product takes as it lies and one transposed, and of which a third operation looks up rows."""
    weight = np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32) / 8
    nodes = [
        helper.make_node("MatMul", ["pixels", "w"], ["h"], "first"),
        helper.make_node("Gemm", ["h", "w"], ["k"], "second", transB=1),
        helper.make_node("Gather", ["w", "row"], ["looked"], "third"),
        helper.make_node("Add", ["k", "looked"], ["scores"]),
    ]
    return model(nodes, {"w": weight, "row": np.int64([3])}, 64, 64)


@pytest.mark.parametrize("family", [ORT, OPENVINO])
@pytest.mark.parametrize(("mode", "most"), [(WEIGHTS, 0.02), (INT4, 0.2)])
def test_a_weight_that_is_read_by_rows_and_by_columns_answers_as_before(
    bench: Workbench, family: RuntimeName, mode: QuantizeMode, most: float
) -> None:
    pixels = np.random.default_rng(4).normal(size=(40, 64)).astype(np.float32)
    report = prepared(bench, both_ways(), pixels=pixels)
    original, changed = answers(bench, report, built(bench, report, plan(family, mode)), family)
    assert np.abs(original - changed).max() < most * np.abs(original).max()


def test_only_the_products_that_a_recipe_names_are_quantized(bench: Workbench) -> None:
    report = prepared(bench, twice(), pixels=digits()[2])
    found = kinds(bench, built(bench, report, plan(ORT, WEIGHTS, ("Gemm",))))
    assert found["MatMulNBits"] == 2
    refused = built(bench, report, plan(ORT, WEIGHTS, ("Conv",)))
    assert (refused.built, refused.reason) == (None, Reason.RECIPE_NOT_APPLICABLE)


@pytest.mark.parametrize("family", [ORT, OPENVINO])
@pytest.mark.parametrize("mode", [WEIGHTS, INT4])
def test_a_model_of_convolutions_alone_is_refused(bench: Workbench, family: RuntimeName, mode: QuantizeMode) -> None:
    whole = models.dynamic_batch()
    head = next(node for node in whole.graph.node if node.op_type == "Gemm")
    pooled = head.input[0]
    del whole.graph.node[list(whole.graph.node).index(head) :]
    del whole.graph.output[:]
    whole.graph.output.extend([helper.make_tensor_value_info(pooled, TensorProto.FLOAT, ["N", 16])])
    report = images(bench, whole)
    refused = built(bench, report, plan(family, mode))
    assert (refused.built, refused.reason) == (None, Reason.RECIPE_NOT_APPLICABLE)
    assert "MatMul" in (refused.message or "")


def test_nothing_that_feeds_a_recurrent_node_is_quantized(bench: Workbench) -> None:
    frames = np.random.default_rng(0).standard_normal((40, 5, 6)).astype(np.float32)
    report = prepared(bench, models.recurrent(), frames=frames)
    found = kinds(bench, built(bench, report, plan(ORT, WEIGHTS)))
    assert (found["LSTM"], found["MatMul"], found["MatMulNBits"]) == (1, 1, 1)


def test_weights_that_lie_outside_of_the_graph_are_quantized_too(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_model, "INLINE_LIMIT", 1000)
    bench.put(classifier(), external=True)
    evaluation = EvaluationSpec(uri=bench.data("items", pixels=digits()[2]))
    report = bench.prepare(bench.task(uri="pvc://claim/model", evaluation=evaluation))
    assert len(report.portable.files) == 2, "the weights of a model above that limit stay in a file of their own"
    made = built(bench, report, plan(ORT, WEIGHTS))
    original, changed = answers(bench, report, made, ORT)
    assert np.abs(original - changed).mean() < 0.02


def branches(then: str, otherwise: str) -> onnx.ModelProto:
    """A product, and one of two branches that take the same weight, each in its own way."""
    rng = np.random.default_rng(3)
    weight, head, bias = (rng.normal(size=shape).astype(np.float32) / 8 for shape in ((64, 64), (64, 64), (64,)))
    bodies = [
        helper.make_graph(
            [helper.make_node(kind, ["h", "w"], [f"{kind}_{n}"], **({"transB": 1} if kind == "Gemm" else {}))],
            f"body{n}",
            [],
            [helper.make_tensor_value_info(f"{kind}_{n}", TensorProto.FLOAT, None)],
        )
        for n, kind in enumerate((then, otherwise))
    ]
    nodes = [
        helper.make_node("MatMul", ["pixels", "v"], ["h"], "head"),
        helper.make_node("ReduceSum", ["pixels"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["b"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("Add", ["b", "w_scales"], ["scores"]),
    ]
    return model(nodes, {"w": weight, "v": head, "zero": np.float32([0]).reshape(()), "w_scales": bias}, 64, 64)


@pytest.mark.parametrize(("then", "otherwise"), [("Gemm", "Gemm"), ("Gemm", "MatMul"), ("MatMul", "Gemm")])
def test_branches_that_share_a_weight_answer_as_before(tmp_path: Path, then: str, otherwise: str) -> None:
    path, folder = tmp_path / "model.onnx", tmp_path / "made"
    folder.mkdir()
    onnx.save(branches(then, otherwise), path)
    step = QuantizeStep(mode=WEIGHTS)
    made = onnxruntime_weights.int8(Work(entry=path, folder=folder, step=step))
    pixels = np.abs(np.random.default_rng(4).normal(size=(8, 64))).astype(np.float32)
    for feed in (pixels, -pixels):
        original, changed = (
            ort.InferenceSession(str(each), providers=["CPUExecutionProvider"]).run(None, {"pixels": feed})[0]
            for each in (path, made)
        )
        assert np.abs(original - changed).max() < 0.05 * np.abs(original).max()


def test_products_of_integers_stay_as_they_are_beside_those_that_are_quantized(tmp_path: Path) -> None:
    path, folder = tmp_path / "model.onnx", tmp_path / "made"
    folder.mkdir()
    nodes = [
        helper.make_node("MatMul", ["pixels", "w"], ["h"]),
        helper.make_node("Cast", ["h"], ["whole"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["whole", "n"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["scores"], to=TensorProto.FLOAT),
    ]
    weight = np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32)
    onnx.save(model(nodes, {"w": weight, "n": np.eye(64, dtype=np.int32)}, 64, 64), path)
    made = onnxruntime_weights.int8(Work(entry=path, folder=folder, step=QuantizeStep(mode=WEIGHTS)))
    assert [node.op_type for node in onnx.load(made).graph.node] == ["MatMulNBits", "Cast", "MatMul", "Cast"]
    assert ort.InferenceSession(str(made), providers=["CPUExecutionProvider"])
