"""The graphs that engines are made of, as far as a CPU can tell: what they hold, and that the original's answers are certified of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tests.data import models
from tests.unit.optimizer.measure.models import CLASSES

from fettle.api.data import EvaluationSpec
from fettle.api.recipe import QuantizeStep
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Metric, Precision, QuantizeMode
from fettle.errors import RecipeError
from fettle.optimizer.measure import items
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.steps import Work, onnx_autocast, onnxruntime_quantize
from fettle.optimizer.steps.onnx_precision import in_precision, on_cpu

ROOT = Path(__file__).parents[4]
DIGITS = ROOT / "examples" / "digits"
SIGNATURE = Signature(
    inputs=(Tensor(name="image", dtype="FP32", shape=(-1, 1, 32, 32), batch_axis=0),),
    outputs=(Tensor(name="logits", dtype="FP32", shape=(-1, 10), batch_axis=0),),
)
with np.load(DIGITS / "evaluation.npz") as stored_items:
    IMAGES, LABELS = stored_items["image"][:300], stored_items["labels"][:300]
F32, F16, BF16 = Precision.FLOAT32, Precision.FLOAT16, Precision.BFLOAT16
INT8, FLOAT8 = QuantizeMode.STATIC, QuantizeMode.FLOAT8
FORMS = [(None, F16), (None, BF16), (INT8, F32), (INT8, F16), (FLOAT8, F32)]


def quantized(mode: QuantizeMode, entry: Path, folder: Path, operators: tuple[str, ...] = ()) -> Path:
    with np.load(DIGITS / "calibration.npz") as stored:
        calibration = items.of({"image": stored["image"][:50]}, SIGNATURE)
    folder.mkdir()
    work = Work(entry, folder, QuantizeStep(mode=mode, operators=operators), calibration=calibration)
    return (onnxruntime_quantize.float8 if mode == FLOAT8 else onnxruntime_quantize.symmetric)(work)


def form(mode: QuantizeMode | None, precision: Precision, folder: Path) -> Path:
    """The example's model as an engine is made of it; bfloat16 in the form that a CPU runs."""
    folder.mkdir()
    entry = DIGITS / "first" / "model.onnx"
    entry = quantized(mode, entry, folder / "quantized") if mode is not None else entry
    target = folder / "model.onnx"
    if precision == BF16:
        onnx_model.save(onnx_autocast.products(onnx_model.load(entry), precision, emulated=True), target)
        return target
    return in_precision(entry, target, precision)


def answers(entry: Path) -> list[dict[str, np.ndarray]]:
    """What ONNX Runtime answers on the CPU, item by item."""
    return [{"logits": logits} for logits in on_cpu(entry).run(["logits"], {"image": IMAGES})[0]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The original's answers to labelled items of the example, by which forms are judged as in every run."""
    spec, reading = EvaluationSpec(uri="-", metric=Metric.ACCURACY), CLASSES
    given = Reference(tmp_path_factory.mktemp("reference"), SIGNATURE, LABELS, spec, generated=False, reading=reading)
    given.add(answers(DIGITS / "first" / "model.onnx"))
    given.finish()
    return given


@pytest.mark.parametrize(("mode", "precision"), FORMS)
def test_a_form_is_certified_to_answer_as_the_original(
    mode: QuantizeMode | None, precision: Precision, reference: Reference, tmp_path: Path
) -> None:
    judged = reference.judge(answers(form(mode, precision, tmp_path / "form")), lossy=True, alpha=0.05)
    assert not judged.exact, "it is rounded"
    assert judged.drop is not None and judged.drop.high is not None
    assert judged.drop.high <= 0.06
    assert judged.agreement is not None and judged.agreement.value >= 0.97


def test_float8_stores_weights_in_float8_with_the_ranges_of_int8(tmp_path: Path) -> None:
    made = onnx.load(quantized(FLOAT8, DIGITS / "first" / "model.onnx", tmp_path / "float8"))
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    pairs = [node for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    weights = [stored[node.input[0]] for node in pairs if node.input[0] in stored]
    assert {stored[node.input[2]].data_type for node in pairs} == {TensorProto.FLOAT8E4M3FN}
    assert {weight.data_type for weight in weights} == {TensorProto.FLOAT8E4M3FN}
    largest = [np.abs(numpy_helper.to_array(weight).astype(np.float32)).max() for weight in weights]
    assert min(largest) == max(largest) == 448.0, "the largest weight is the largest number of the type"
    products = sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in made.graph.node)
    assert len(weights) == products > 0
    assert not any(stored[name].data_type == TensorProto.INT8 for name in stored), "nothing of int8 is left"


def test_float8_amid_float16_answers_as_amid_float32(tmp_path: Path) -> None:
    """By the definition of the operators: ONNX Runtime's kernels for pairs of float8 and float16 answer something else (1.31)."""
    wide, half = (form(FLOAT8, precision, tmp_path / precision) for precision in (F32, F16))
    (expected,) = on_cpu(wide).run(None, {"image": IMAGES[:1]})
    (found,) = ReferenceEvaluator(str(half)).run(None, {"image": IMAGES[:1]})
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_float8_of_operators_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the model has no LSTM to quantize"):
        quantized(FLOAT8, DIGITS / "first" / "model.onnx", tmp_path / "float8", ("LSTM",))


def test_the_scale_of_a_channel_that_does_next_to_nothing_is_no_zero_in_float16(tmp_path: Path) -> None:
    """TensorRT refuses a scale of 0, and such channels are in many models from outside."""
    random = np.random.default_rng(11)
    weights, items_of_x = (random.standard_normal((16, 16)).astype(np.float32) for _ in range(2))
    weights[:, 0] *= np.float32(1e-12)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16]) for name in ("x", "y")]
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = helper.make_graph([product], "idle", values[:1], values[1:], [numpy_helper.from_array(weights, "w")])
    entry = models.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "model.onnx"
    )
    x, y = (Tensor(name=name, dtype="FP32", shape=(-1, 16), batch_axis=0) for name in ("x", "y"))
    calibration = items.of({"x": items_of_x}, Signature(inputs=(x,), outputs=(y,)))
    (tmp_path / "int8").mkdir()
    work = Work(entry, tmp_path / "int8", QuantizeStep(mode=INT8), calibration=calibration)
    half = in_precision(onnxruntime_quantize.symmetric(work), tmp_path / "half.onnx", F16)
    made = onnx.load(half)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    scales = [stored[node.input[1]] for node in made.graph.node if node.op_type == "DequantizeLinear"]
    assert {scale.dtype for scale in scales} == {np.dtype(np.float16)}
    assert min(scale.min() for scale in scales) == np.finfo(np.float16).smallest_subnormal
    found, expected = (on_cpu(path).run(None, {"x": items_of_x})[0] for path in (half, entry))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("precision", [F16, BF16])
def test_of_every_product_the_engine_gets_values_in_16_bits(precision: Precision, tmp_path: Path) -> None:
    made = onnx.load(in_precision(DIGITS / "first" / "model.onnx", tmp_path / "model.onnx", precision))
    kind = {F16: TensorProto.FLOAT16, BF16: TensorProto.BFLOAT16}[precision]
    stored = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    products = [node for node in made.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert products
    assert {stored[name] for node in products for name in node.input if name in stored} == {kind}
    assert [value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)] == [
        TensorProto.FLOAT,
        TensorProto.FLOAT,
    ]


def mask() -> onnx.ModelProto:
    """Integer tokens that become floats, as attention masks do."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["kept"], "kept", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["kept", "weights"], ["scores"], "scores"),
    ]
    weights = numpy_helper.from_array(np.random.default_rng(5).standard_normal((8, 4)).astype(np.float32), "weights")
    graph = helper.make_graph(
        nodes,
        "mask",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("made", "feed"),
    [
        (mask(), {"ids": np.arange(16).reshape(2, 8)}),
        (models.conditional(), {"x": np.random.default_rng(6).standard_normal((2, 4)).astype(np.float32)}),
        (models.clamped_for_a_branch(), {"x": np.random.default_rng(7).standard_normal((2, 8)).astype(np.float32)}),
    ],
    ids=["a mask of integers", "a branch", "a clamp for a branch"],
)
@pytest.mark.parametrize("precision", [F16, BF16])
def test_models_that_the_tool_breaks_are_cast_too(
    made: onnx.ModelProto, feed: dict[str, np.ndarray], precision: Precision, tmp_path: Path
) -> None:
    entry = models.save(made, tmp_path / "model.onnx")
    cast = in_precision(entry, tmp_path / "cast.onnx", precision)
    if precision == BF16:
        onnx_model.save(onnx_autocast.products(onnx_model.load(entry), precision, emulated=True), cast)
    for expected, found in zip(on_cpu(entry).run(None, feed), on_cpu(cast).run(None, feed), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.05 * max(1e-3, float(np.abs(expected).max())))


def body(name: str, given: str, made: str, **ends: list[onnx.ValueInfoProto]) -> onnx.GraphProto:
    """Two products, with a weight of the body's own and with one of the graph around it."""
    own = numpy_helper.from_array(np.random.default_rng(9).standard_normal((4, 4)).astype(np.float32) / 2, f"{name}_w")
    nodes = [
        helper.make_node("MatMul", [given, f"{name}_w"], [f"{name}_a"], f"{name}_first"),
        helper.make_node("Tanh", [f"{name}_a"], [f"{name}_b"], f"{name}_tanh"),
        helper.make_node("MatMul", [f"{name}_b", "w"], [made], f"{name}_second"),
    ]
    passed = [helper.make_node("Identity", ["going"], ["going_on"])] if "inputs" in ends else []
    output = helper.make_tensor_value_info(made, TensorProto.FLOAT, ["N", 4] if passed else None)
    outputs = [*ends.get("outputs", []), output]
    return helper.make_graph([*passed, *nodes], name, ends.get("inputs", []), outputs, [own])


def with_bodies(kind: str) -> onnx.ModelProto:
    """A product, and then products in the branches of an If, or in the body of a Loop."""
    one, w = np.array(0, np.float32), np.random.default_rng(8).standard_normal((4, 4)).astype(np.float32) / 2
    weights = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(one, "zero")]
    weights.append(numpy_helper.from_array(np.array(3), "count"))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "before")]
    if kind == "If":
        branches = {"then_branch": body("then", "h", "then_y"), "else_branch": body("else", "h", "else_y")}
        nodes += [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "zero"], ["large"]),
            helper.make_node("If", ["large"], ["y"], "if", **branches),
        ]
    else:
        flag = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("going", "going_on")]
        inputs = [helper.make_tensor_value_info("round", TensorProto.INT64, []), flag[0]]
        inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, ["N", 4]))
        loop = body("loop", "state", "state_out", inputs=inputs, outputs=flag[1:])
        nodes.append(helper.make_node("Loop", ["count", "", "h"], ["y"], "loop", body=loop))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "bodies", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", ["If", "Loop"])
@pytest.mark.parametrize("precision", [F16, BF16])
@pytest.mark.parametrize("by", ["the form", "products alone"])
def test_products_in_branches_and_loops_are_cast_and_answer_alike(
    kind: str, precision: Precision, by: str, tmp_path: Path
) -> None:
    entry = models.save(with_bodies(kind), tmp_path / "model.onnx")
    if by == "the form":
        cast = onnx.load(in_precision(entry, tmp_path / "cast.onnx", precision))
    else:
        cast = onnx_autocast.products(onnx_model.load(entry), precision)
    wanted = {F16: TensorProto.FLOAT16, BF16: TensorProto.BFLOAT16}[precision]
    types: dict[str, int] = {}
    for graph in onnx_model.graphs(onnx.shape_inference.infer_shapes(cast).graph):
        types |= {each.name: each.data_type for each in graph.initializer}
        types |= {
            each.name: each.type.tensor_type.elem_type for each in (*graph.input, *graph.value_info, *graph.output)
        }
    products = [node for node in onnx_model.nodes(cast) if node.op_type == "MatMul"]
    assert len(products) == (5 if kind == "If" else 3)
    assert {types[name] for node in products for name in node.input} == {wanted}
    if precision == BF16:
        cast = onnx_autocast.products(onnx_model.load(entry), precision, emulated=True)
    runnable = models.save(cast, tmp_path / "runnable.onnx")
    for sign in (1, -1):  # both branches
        feed = {"x": sign * np.abs(np.random.default_rng(6).standard_normal((3, 4))).astype(np.float32)}
        expected, found = (on_cpu(path).run(None, feed)[0] for path in (entry, runnable))
        np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
        assert not np.array_equal(found, expected), "it is rounded"


def test_branches_may_give_a_name_different_types() -> None:
    def branch(kind: int) -> onnx.GraphProto:
        """A product in that type, of values that the other branch calls the same."""
        weight = numpy_helper.from_array(np.eye(4, dtype=helper.tensor_dtype_to_np_dtype(kind)), "w")
        nodes = [
            helper.make_node("Cast", ["x"], ["p"], to=kind),
            helper.make_node("MatMul", ["p", "w"], ["q"]),
            helper.make_node("Cast", ["q"], [f"y{kind}"], to=TensorProto.FLOAT),
        ]
        output = helper.make_tensor_value_info(f"y{kind}", TensorProto.FLOAT, [4, 4])
        return helper.make_graph(nodes, f"branch{kind}", [], [output], [weight])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch(TensorProto.FLOAT), else_branch=branch(TensorProto.DOUBLE)
    )
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("c", TensorProto.BOOL, []), ("x", 1, [4, 4]), ("y", 1, [4, 4]))
    ]
    graph = helper.make_graph([node], "chosen", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    cast = onnx_autocast.products(model, F16)
    stored = {inner.name: {tensor.data_type for tensor in inner.initializer} for inner in onnx_model.graphs(cast.graph)}
    assert stored == {"chosen": set(), "branch1": {TensorProto.FLOAT16}, "branch11": {TensorProto.DOUBLE}}
    onnx.checker.check_model(cast, full_check=True)
