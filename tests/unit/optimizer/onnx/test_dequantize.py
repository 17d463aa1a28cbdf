"""Quantized graphs in floating point again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from fettle.api.recipe import DequantizeStep
from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.dequantize import dequantized
from fettle.optimizer.onnx.portable import quantized_operators
from fettle.optimizer.steps import Work
from fettle.optimizer.steps.onnx_dequantize import dequantize

RANDOM = np.random.default_rng(3)
IMAGES = RANDOM.normal(size=(16, 3, 12, 12)).astype(np.float32)
FRAMES = np.tanh(RANDOM.normal(size=(5, 2, 6))).astype(np.float32)
Values = dict[str, np.ndarray]


def _weights(**shapes: tuple[int, ...]) -> list[TensorProto]:
    return [
        numpy_helper.from_array((RANDOM.normal(size=shape) * 0.3).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def _model(nodes: list[onnx.NodeProto], weights: list[TensorProto], given: tuple[object, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def network() -> onnx.ModelProto:
    """Convolutions, pools, a sum of branches, and a dense layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
        helper.make_node("MaxPool", ["r1"], ["m1"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        helper.make_node("Conv", ["m1", "w2"], ["c2"], pads=[1, 1, 1, 1], name="second"),
        helper.make_node("Concat", ["m1", "c2"], ["k"], axis=1, name="both"),
        helper.make_node("Conv", ["k", "w3"], ["c3"], name="third"),
        helper.make_node("Add", ["c3", "m1"], ["a"], name="sum"),
        helper.make_node("GlobalAveragePool", ["a"], ["g"], name="average"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], transB=1, name="dense"),
    ]
    return _model(
        nodes,
        _weights(w1=(8, 3, 3, 3), b1=(8,), w2=(8, 8, 3, 3), w3=(8, 16, 1, 1), w4=(5, 8), b4=(5,)),
        ("N", 3, 12, 12),
    )


def products() -> onnx.ModelProto:
    """What dynamic quantization changes: a convolution without bias, and a product of matrices."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("GlobalAveragePool", ["c1"], ["g"], name="average"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w2"], ["y"], name="dense"),
    ]
    return _model(nodes, _weights(w1=(8, 3, 3, 3), b1=(8,), w2=(8, 5)), ("N", 3, 12, 12))


def recurrent() -> onnx.ModelProto:
    """An LSTM that reads in both directions."""
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=4, direction="bidirectional", name="lstm")
    return _model([node], _weights(w=(2, 16, 6), r=(2, 16, 4), b=(2, 32)), (5, "N", 6))


class Items(CalibrationDataReader):  # type: ignore[misc]
    """The images, one by one."""

    def __init__(self) -> None:
        self._items = iter([{"x": image[None]} for image in IMAGES])

    def get_next(self) -> Values | None:
        return next(self._items, None)


def static(model: onnx.ModelProto, folder: Path, **options: object) -> onnx.ModelProto:
    """`model` as ONNX Runtime's tool quantizes it with ranges from the images."""
    onnx.save(model, folder / "model.onnx")
    quantize_static(folder / "model.onnx", folder / "quantized.onnx", Items(), **options)
    return onnx.load(folder / "quantized.onnx")


def dynamic(model: onnx.ModelProto, folder: Path, *kinds: str, **options: object) -> onnx.ModelProto:
    """`model` with ranges that are taken while it runs."""
    onnx.save(model, folder / "model.onnx")
    quantize_dynamic(folder / "model.onnx", folder / "quantized.onnx", op_types_to_quantize=list(kinds), **options)
    return onnx.load(folder / "quantized.onnx")


def answer(model: onnx.ModelProto, x: np.ndarray = IMAGES) -> np.ndarray:
    """The model's one output."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def _far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.ptp(other))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_statically_quantized_model_answers_in_float32_and_nearer_to_what_it_was_made_from(
    tmp_path: Path, form: QuantFormat, activations: QuantType, per_channel: bool
) -> None:
    plain = network()
    options = {"quant_format": form, "activation_type": activations, "weight_type": QuantType.QInt8}
    quantized = static(plain, tmp_path, **options, per_channel=per_channel)
    changed = dequantized(quantized)
    assert not quantized_operators(changed)
    onnx.checker.check_model(changed, full_check=True)
    # What is left is what the weights lost, and ranges that calibration cut off: nothing for these very items.
    assert _far(answer(changed), answer(plain)) < min(0.02, _far(answer(quantized), answer(plain)))


@pytest.mark.parametrize("weights", [QuantType.QUInt8, QuantType.QInt8])
def test_products_with_dynamic_ranges_are_plain_products_again(tmp_path: Path, weights: QuantType) -> None:
    plain = products()
    quantized = dynamic(plain, tmp_path, "Conv", "MatMul", weight_type=weights)
    assert {"ConvInteger", "MatMulInteger"} <= quantized_operators(quantized)
    changed = dequantized(quantized)
    assert not quantized_operators(changed)
    assert {"Conv", "MatMul"} <= {node.op_type for node in changed.graph.node}
    assert _far(answer(changed), answer(plain)) < 0.02


def test_a_bias_that_old_tools_divide_while_the_model_runs_is_one_again(tmp_path: Path) -> None:
    plain = products()
    changed = dynamic(plain, tmp_path, "Conv", weight_type=QuantType.QUInt8)
    cast = next(node for node in changed.graph.node if node.op_type == "Cast")
    scaling = next(node for node in changed.graph.node if node.op_type == "Mul" and cast.output[0] in node.input)
    (scales,) = set(scaling.input) - set(cast.output)
    bias = next(node for node in changed.graph.node if node.op_type == "Add" and scaling.output[0] in node.input)
    nodes = [
        helper.make_node("Div", ["b1", scales], ["divided"]),
        helper.make_node("Floor", ["divided"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["integers"], to=TensorProto.INT32),
        helper.make_node("Reshape", ["integers", "across"], ["beside"]),
        helper.make_node("Add", [cast.input[0], "beside"], ["sums"]),
    ]
    place = list(changed.graph.node).index(cast)
    cast.input[0] = "sums"
    for offset, node in enumerate(nodes):
        changed.graph.node.insert(place + offset, node)
    bias.CopyFrom(helper.make_node("Identity", [scaling.output[0]], list(bias.output)))
    changed.graph.initializer.append(numpy_helper.from_array(np.int64([1, -1, 1, 1]), "across"))
    if not any(tensor.name == "b1" for tensor in changed.graph.initializer):
        changed.graph.initializer.append(plain.graph.initializer[1])
    order = {node.output[0]: node for node in changed.graph.node}
    assert "ConvInteger" in quantized_operators(changed) and order["sums"].op_type == "Add"
    restored = dequantized(changed)
    assert not quantized_operators(restored)
    assert _far(answer(restored), answer(plain)) < 0.02


def test_weights_with_a_scale_for_each_column_keep_them(tmp_path: Path) -> None:
    plain = products()
    wide = numpy_helper.to_array(plain.graph.initializer[2]) * np.array([1, 10, 100, 0.1, 1], np.float32)
    plain.graph.initializer[2].CopyFrom(numpy_helper.from_array(wide, "w2"))
    changed = dequantized(dynamic(plain, tmp_path, "MatMul", weight_type=QuantType.QInt8, per_channel=True))
    assert not quantized_operators(changed)
    for column, wanted in zip(answer(changed).T, answer(plain).T, strict=True):
        assert _far(column, wanted) < 0.02


def test_a_quantized_lstm_is_one_in_float32_again(tmp_path: Path) -> None:
    plain = recurrent()
    quantized = dynamic(plain, tmp_path, "LSTM", weight_type=QuantType.QInt8)
    assert "DynamicQuantizeLSTM" in quantized_operators(quantized)
    changed = dequantized(quantized)
    assert [node.op_type for node in changed.graph.node] == ["LSTM"]
    assert _far(answer(changed, FRAMES), answer(plain, FRAMES)) < 0.02


def _pair(zero: int, kind: type, *, readers: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dq"),
        *readers,
    ]
    weights = [
        numpy_helper.from_array(np.float32(0.1), "scale"),
        numpy_helper.from_array(kind(zero), "zero"),
        numpy_helper.from_array(np.float32(0.2), "twice"),
    ]
    return _model(nodes, weights, ("N",))


@pytest.mark.parametrize(("zero", "kind", "least", "most"), [(0, np.uint8, 0.0, 25.5), (-28, np.int8, -10.0, 15.5)])
def test_a_pair_still_cuts_off_what_lies_outside_of_its_range(zero: int, kind: type, least: float, most: float) -> None:
    changed = dequantized(_pair(zero, kind))
    assert not quantized_operators(changed)
    assert answer(changed, np.float32([-100, 0.04, 100])) == pytest.approx([least, 0.04, most], abs=1e-5)


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param(helper.make_node("DequantizeLinear", ["q", "twice", "zero"], ["z"]), id="in another scale"),
        pytest.param(helper.make_node("Cast", ["q"], ["z"], to=TensorProto.FLOAT), id="as numbers"),
    ],
)
def test_integers_that_somebody_else_reads_stay_integers(reader: onnx.NodeProto) -> None:
    model = _pair(3, np.uint8, readers=(reader,))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    changed = dequantized(model)
    assert quantized_operators(changed) == {"QuantizeLinear", "DequantizeLinear"}
    x = np.float32([0, 1, 2.04])
    for one, other in zip(*(_all(each, x) for each in (model, changed)), strict=True):
        np.testing.assert_array_equal(one, other)


def _all(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, {"x": x})]


def test_the_argument_is_not_changed(tmp_path: Path) -> None:
    quantized = static(network(), tmp_path, quant_format=QuantFormat.QDQ)
    before = quantized.SerializeToString()
    dequantized(quantized)
    assert quantized.SerializeToString() == before


GRIDS = {
    "s": np.float32(0.05),
    "z": np.uint8(128),
    "ws": np.float32(0.02),
    "wz": np.int8(0),
    "ys": np.float32(0.2),
    "yz": np.uint8(128),
}
TABLE = RANDOM.integers(-100, 100, size=(8, 6)).astype(np.int8)
ROWS = RANDOM.normal(size=(4, 8)).astype(np.float32)


def between(
    node: onnx.NodeProto, given: tuple[object, ...], *, before: tuple[onnx.NodeProto, ...] = (), **stored: object
) -> onnx.ModelProto:
    """A model whose input is quantized for `node`, and the result of that, `o`, dequantized; with constants beside the usual scales."""
    nodes = [
        *before,
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node,
        helper.make_node("DequantizeLinear", ["o", "ys", "yz"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in (GRIDS | stored).items()]
    model = _model(nodes, weights, given)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_the_bias_of_a_quantized_gemm_is_scaled_as_its_product_is(alpha: float) -> None:
    names = ["q", "s", "z", "w", "ws", "wz", "c", "ys", "yz"]
    bias = RANDOM.integers(-5000, 5000, size=6).astype(np.int32)
    quantized = between(
        helper.make_node("QGemm", names, ["o"], domain="com.microsoft", alpha=alpha), ROWS.shape, w=TABLE, c=bias
    )
    changed = dequantized(quantized)
    assert not quantized_operators(changed)
    assert np.abs(answer(changed, ROWS) - answer(quantized, ROWS)).max() < 0.2


def test_a_convolution_whose_bias_is_made_while_the_model_runs_stays_as_it_is() -> None:
    names = ["q", "s", "z", "w", "ws", "wz", "ys", "yz", "bias"]
    kernels = RANDOM.integers(-100, 100, size=(2, 3, 3, 3)).astype(np.int8)
    made = helper.make_node("Identity", ["c"], ["bias"])
    quantized = between(
        helper.make_node("QLinearConv", names, ["o"]), IMAGES.shape, before=(made,), w=kernels, c=np.int32([100, -3000])
    )
    changed = dequantized(quantized)
    assert "QLinearConv" in quantized_operators(changed)
    assert _far(answer(changed), answer(quantized)) < 0.02


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
@pytest.mark.parametrize(("written_for", "opset"), [(11, 11), (11, 17), (12, 13), (13, 13), (13, 17), (13, 11)])
def test_a_quantized_softmax_is_over_what_it_was_over_when_it_was_written(
    written_for: int, opset: int, axis: int | None
) -> None:
    given = {"opset": written_for} | ({"axis": axis} if axis is not None else {})
    fine = {"ys": np.float32(1 / 256), "yz": np.uint8(0)}
    names = ["q", "s", "z", "ys", "yz"]
    blocks = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
    node = helper.make_node("QLinearSoftmax", names, ["o"], domain="com.microsoft", **given)
    quantized = between(node, blocks.shape, **fine)
    quantized.opset_import[0].version = opset
    changed = dequantized(quantized)
    assert bool(quantized_operators(changed)) == (written_for > opset and axis not in (None, -1))
    assert np.abs(answer(changed, blocks) - answer(quantized, blocks)).max() < 0.02


def test_matrices_of_a_batch_keep_the_scales_of_their_columns() -> None:
    batches = RANDOM.normal(size=(2, 5, 6)).astype(np.float32)
    stored = {
        "w": RANDOM.integers(-100, 100, size=(2, 6, 3)).astype(np.int8),
        "wsb": RANDOM.uniform(0.001, 0.05, size=(2, 1, 3)).astype(np.float32),
        "wzb": np.zeros((2, 1, 3), np.int8),
    }
    names = ["q", "s", "z", "w", "wsb", "wzb", "ys", "yz"]
    quantized = between(helper.make_node("QLinearMatMul", names, ["o"]), batches.shape, **stored)
    changed = dequantized(quantized)
    assert not quantized_operators(changed)
    assert np.abs(answer(changed, batches) - answer(quantized, batches)).max() < 0.5


def test_weights_that_stand_for_float16_are_in_float16() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["weights"]),
        helper.make_node("MatMul", ["half", "weights"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = [numpy_helper.from_array(TABLE, "w"), numpy_helper.from_array(np.float16(0.02), "scale")]
    quantized = _model(nodes, weights, ROWS.shape)
    quantized.opset_import[0].version, quantized.ir_version = 19, 9
    changed = dequantized(quantized)
    assert not quantized_operators(changed)
    assert _far(answer(changed, ROWS), answer(quantized, ROWS)) < 0.01


def test_embeddings_that_are_stored_as_integers_are_numbers_again(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["words"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "words"], ["first"], name="first"),
        helper.make_node("Gather", ["table", "words"], ["second"], name="second", axis=0),
        helper.make_node("Add", ["first", "second"], ["y"], name="sum"),
    ]
    plain = _model(nodes, _weights(table=(10, 6)), ("N",))
    quantized = dynamic(plain, tmp_path, "Gather", weight_type=QuantType.QInt8)
    assert quantized_operators(quantized) == {"DequantizeLinear"}
    changed = dequantized(quantized)
    assert not quantized_operators(changed)
    assert [len(tensor.dims) for tensor in changed.graph.initializer] == [2]
    words = np.float32([1, 7, 1, 9])
    np.testing.assert_allclose(answer(changed, words), answer(quantized, words), atol=1e-6)


def stored_beside(folder: Path) -> Path:
    """A model with one weight in integers, and one in a file of its own."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weights"]),
        helper.make_node("MatMul", ["x", "weights"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    grid = [numpy_helper.from_array(np.asarray(GRIDS[name]), name) for name in ("ws", "wz")]
    model = _model(nodes, [*grid, numpy_helper.from_array(TABLE, "w"), *_weights(v=(6, 20))], ROWS.shape)
    path = folder / "source" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=200)
    return path


def test_weights_that_lie_outside_of_the_graph_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = stored_beside(tmp_path), tmp_path / "made"
    folder.mkdir()
    monkeypatch.setattr(onnx_model, "INLINE_LIMIT", 1000)
    made = dequantize(Work(entry=path, folder=folder, step=DequantizeStep()))
    one, other = (
        ort.InferenceSession(str(each), providers=["CPUExecutionProvider"]).run(None, {"x": ROWS})[0]
        for each in (path, made)
    )
    assert _far(other, one) < 0.05  # the runtime rounds activations beside weights in 8 bits


def test_a_model_that_no_file_holds_in_float32_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = stored_beside(tmp_path), tmp_path / "made"
    folder.mkdir()
    monkeypatch.setattr(onnx_model, "INLINE_LIMIT", 150)
    with pytest.raises(RecipeError, match="in float32 its weights would be larger"):
        dequantize(Work(entry=path, folder=folder, step=DequantizeStep()))
