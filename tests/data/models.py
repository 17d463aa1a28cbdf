"""Models as other people hand them in, each small, each with the trait that breaks tools. Made with onnx's helper and skl2onnx; weights
are seeded, so a file is the same each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fettle.store.arrays import Array


def tensor(name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A tensor of the boundary."""
    made: onnx.ValueInfoProto = helper.make_tensor_value_info(name, kind, shape)
    return made


def stored(name: str, array: Any, dtype: str = "float32") -> onnx.TensorProto:
    """A weight."""
    return numpy_helper.from_array(np.asarray(array, dtype=dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model of these parts."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, producer_name="somebody")


def _convolutions(batch: int | str, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, Conv, Relu, pooling, Gemm, Softmax: a small classifier of 1x16x16 images into 4 classes."""
    random = np.random.default_rng(7)

    def weights(*shape: int) -> Array:
        scaled: Array = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
        return scaled.astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "bias", "mean", "variance"], ["b1"]),
        helper.make_node("Relu", ["b1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    parts = [
        numpy_helper.from_array(weights(8, 1, 3, 3), "w1"),
        stored("scale", 1 + 0.1 * random.random(8)),
        stored("bias", 0.1 * random.random(8)),
        stored("mean", 0.1 * random.random(8)),
        stored("variance", 0.5 + random.random(8)),
        numpy_helper.from_array(weights(16, 8, 3, 3), "w2"),
        numpy_helper.from_array(10 * weights(4, 16), "w3"),
        stored("b3", random.random(4)),
    ]
    shape = [batch, 1, 16, 16]
    return model(nodes, [tensor("image", shape)], [tensor("scores", [batch, 4])], parts, opset=opset, ir=ir)


def dynamic_batch() -> onnx.ModelProto:
    """The usual: a classifier whose batch varies."""
    return _convolutions("N")


def fixed_batch() -> onnx.ModelProto:
    """The batch is 1 and nothing else."""
    return _convolutions(1)


def old_opset() -> onnx.ModelProto:
    """Opset 9, IR 3, weights listed among the inputs as files of that time do."""
    made = _convolutions("N", opset=9, ir=3)
    for weight in made.graph.initializer:
        made.graph.input.append(tensor(weight.name, list(weight.dims)))
    return made


def newest_opset() -> onnx.ModelProto:
    """What the installed onnx writes when nobody says otherwise: newer than runtimes read."""
    return _convolutions("N", opset=onnx.defs.onnx_opset_version(), ir=onnx.IR_VERSION)


def two_inputs_two_outputs() -> onnx.ModelProto:
    """Two inputs of different rank, two outputs."""
    nodes = [
        helper.make_node("MatMul", ["left", "w"], ["m"]),
        helper.make_node("Mul", ["m", "right"], ["product"]),
        helper.make_node("ReduceSum", ["product", "last"], ["total"], keepdims=0),
    ]
    weights = [
        stored("w", np.random.default_rng(3).standard_normal((6, 5))),
        stored("last", np.array([1]), "int64"),
    ]
    inputs = [tensor("left", ["batch", 6]), tensor("right", ["batch", 1])]
    return model(nodes, inputs, [tensor("product", ["batch", 5]), tensor("total", ["batch"])], weights)


def tokens() -> onnx.ModelProto:
    """Token numbers into an embedding of 37 rows, masked mean, a layer: a number of 37 or more is out of range."""
    random = np.random.default_rng(5)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["embedded", "wide"], ["kept"]),
        helper.make_node("ReduceMean", ["kept"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
    ]
    weights = [
        stored("table", random.standard_normal((37, 12))),
        stored("last", np.array([-1]), "int64"),
        stored("w", random.standard_normal((12, 3))),
    ]
    inputs = [
        tensor("input_ids", ["batch", "sequence"], TensorProto.INT64),
        tensor("attention_mask", ["batch", "sequence"], TensorProto.INT64),
    ]
    return model(nodes, inputs, [tensor("logits", ["batch", 3])], weights)


def texts() -> onnx.ModelProto:
    """Words in, numbers out."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["word"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=["yes", "no", "perhaps"],
            values_floats=[1.0, -1.0, 0.25],
            default_float=0.0,
        ),
        helper.make_node("MatMul", ["code", "w"], ["score"]),
    ]
    inputs = [tensor("word", ["N", 1], TensorProto.STRING)]
    made = model(nodes, inputs, [tensor("score", ["N", 2])], [stored("w", [[2.0, 3.0]])], domains=["ai.onnx.ml"])
    made.opset_import[1].version = 2
    return made


def conditional() -> onnx.ModelProto:
    """An If on what the input holds, which cannot be folded, and one on a constant, which can."""

    def branch(name: str, kind: str, of: str) -> onnx.GraphProto:
        out = f"{name}_out"
        return helper.make_graph([helper.make_node(kind, [of, "one"], [out])], name, [], [tensor(out, None)])

    nodes = [
        helper.make_node(
            "If", ["always"], ["a"], then_branch=branch("t1", "Add", "x"), else_branch=branch("e1", "Sub", "x")
        ),
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "one"], ["big"]),
        helper.make_node(
            "If", ["big"], ["y"], then_branch=branch("t2", "Mul", "a"), else_branch=branch("e2", "Add", "a")
        ),
    ]
    weights = [stored("one", 1.5), numpy_helper.from_array(np.array(True), "always")]
    return model(nodes, [tensor("x", ["N", 4])], [tensor("y", ["N", 4])], weights)


def clamped_for_a_branch() -> onnx.ModelProto:
    """A Relu behind a product that only the branches of an If read."""

    def branch(name: str, kind: str) -> onnx.GraphProto:
        out = f"{name}_out"
        return helper.make_graph([helper.make_node(kind, ["clamped", "one"], [out])], name, [], [tensor(out, None)])

    random = np.random.default_rng(41)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Relu", ["h"], ["clamped"], "clamp"),
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "one"], ["big"]),
        helper.make_node("If", ["big"], ["y"], then_branch=branch("then", "Mul"), else_branch=branch("else", "Add")),
    ]
    weights = [stored("one", 1.5), numpy_helper.from_array(random.standard_normal((8, 4)).astype(np.float32), "w")]
    return model(nodes, [tensor("x", ["N", 8])], [tensor("y", ["N", 4])], weights)


def custom_operator() -> onnx.ModelProto:
    """An operator that nobody here has."""
    nodes = [helper.make_node("SecretSauce", ["x"], ["y"], domain="com.example")]
    return model(nodes, [tensor("x", ["N", 4])], [tensor("y", ["N", 4])], domains=["com.example"])


def whole_batch_output() -> onnx.ModelProto:
    """The second output is one number for the whole batch."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["y"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
    ]
    return model(nodes, [tensor("x", ["N", 4])], [tensor("y", ["N", 4]), tensor("mean", [])], [stored("two", 2.0)])


def squeezed_output() -> onnx.ModelProto:
    """Where the output has one axis or none depends on how many items there are, so OpenVINO loads it only for a batch that is known."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["column"]), helper.make_node("Squeeze", ["column"], ["y"])]
    weights = [stored("w", np.random.default_rng(13).standard_normal((4, 1)))]
    return model(nodes, [tensor("x", ["N", 4])], [tensor("y", [])], weights)


def sequence_output() -> onnx.ModelProto:
    """A sequence of tensors at the boundary."""
    nodes = [helper.make_node("SplitToSequence", ["x"], ["parts"], axis=0)]
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    return model(nodes, [tensor("x", ["N", 4])], [helper.make_value_info("parts", kind)])


def float8_input() -> onnx.ModelProto:
    """A data type that the serving protocol does not have."""
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    return model(nodes, [tensor("x", ["N", 4], TensorProto.FLOAT8E4M3FN)], [tensor("y", ["N", 4])], opset=19, ir=9)


def random_output() -> onnx.ModelProto:
    """Answers differ from run to run."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"]),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    return model(nodes, [tensor("x", ["N", 4])], [tensor("y", ["N", 4])])


def recurrent() -> onnx.ModelProto:
    """Linear layer, LSTM over time-first sequences, linear layer; the batch is the second axis."""
    random = np.random.default_rng(11)
    nodes = [
        helper.make_node("MatMul", ["frames", "w0"], ["in"], name="before"),
        helper.make_node("LSTM", ["in", "w", "r"], ["steps"], hidden_size=8, name="lstm"),
        helper.make_node("Squeeze", ["steps", "direction"], ["hidden"], name="squeeze"),
        helper.make_node("MatMul", ["hidden", "w1"], ["scores"], name="after"),
    ]
    weights = [
        stored("w0", random.standard_normal((6, 8))),
        stored("w", random.standard_normal((1, 32, 8)) / 3),
        stored("r", random.standard_normal((1, 32, 8)) / 3),
        stored("direction", np.array([1]), "int64"),
        stored("w1", random.standard_normal((8, 4))),
    ]
    return model(nodes, [tensor("frames", ["T", "batch", 6])], [tensor("scores", ["T", "batch", 4])], weights)


def carried_state() -> onnx.ModelProto:
    """What a call leaves behind goes into the next one."""
    nodes = [
        helper.make_node("Add", ["input", "state"], ["stateN"]),
        helper.make_node("Tanh", ["stateN"], ["output"]),
    ]
    shape: tuple[str, int] = ("N", 4)
    return model(
        nodes, [tensor("input", shape), tensor("state", shape)], [tensor("output", shape), tensor("stateN", shape)]
    )


def ruined_by_int8() -> onnx.ModelProto:
    """The answer lies in a part of the input a million times smaller than the rest: 8 bits cannot hold both."""
    random = np.random.default_rng(13)
    left = np.zeros((8, 8), np.float32)
    left[0, 0] = 1e6
    left[1:, 1:] = np.eye(7) * 1e-1
    right = random.standard_normal((8, 3)).astype(np.float32)
    right[0] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "left"], ["wide"]),
        helper.make_node("MatMul", ["wide", "right"], ["logits"]),
    ]
    weights = [numpy_helper.from_array(left, "left"), numpy_helper.from_array(right, "right")]
    return model(nodes, [tensor("x", ["N", 8])], [tensor("logits", ["N", 3])], weights)


def frozen_flag() -> onnx.ModelProto:
    """An input that only ever has one value."""
    nodes = [helper.make_node("Mul", ["x", "gain"], ["y"])]
    return model(nodes, [tensor("x", ["N", 4]), tensor("gain", [])], [tensor("y", ["N", 4])])


def written_out() -> onnx.ModelProto:
    """GELU and LayerNormalization as exporters write them out, below the opsets that have them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Div", ["h", "sqrt2"], ["g1"]),
        helper.make_node("Erf", ["g1"], ["g2"]),
        helper.make_node("Add", ["g2", "one"], ["g3"]),
        helper.make_node("Mul", ["h", "g3"], ["g4"]),
        helper.make_node("Mul", ["g4", "half"], ["gelu"]),
        helper.make_node("ReduceMean", ["gelu"], ["mu"], axes=[-1]),
        helper.make_node("Sub", ["gelu", "mu"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["d2"]),
        helper.make_node("ReduceMean", ["d2"], ["variance"], axes=[-1]),
        helper.make_node("Add", ["variance", "epsilon"], ["v1"]),
        helper.make_node("Sqrt", ["v1"], ["deviation"]),
        helper.make_node("Div", ["d", "deviation"], ["n1"]),
        helper.make_node("Mul", ["n1", "gain"], ["n2"]),
        helper.make_node("Add", ["n2", "shift"], ["y"]),
    ]
    random = np.random.default_rng(17)
    numbers = {"sqrt2": 2**0.5, "one": 1, "half": 0.5, "two": 2, "epsilon": 1e-5}
    weights = [stored(name, value) for name, value in numbers.items()]
    weights += [
        stored("w", random.standard_normal((8, 8))),
        stored("gain", random.random(8)),
        stored("shift", random.random(8)),
    ]
    return model(nodes, [tensor("x", ["N", 8])], [tensor("y", ["N", 8])], weights, opset=13)


def hard_swish(scale_first: bool = False) -> onnx.ModelProto:
    """HardSwish as exporters write it out; one result is read twice and must stay."""
    gate = "divided" if scale_first else "clipped"
    last = ("Mul", ["h", gate]) if scale_first else ("Div", ["product", "six"])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "three"], ["added"]),
        helper.make_node("Clip", ["added", "zero", "six"], ["clipped"]),
        helper.make_node("Div", ["clipped", "six"], ["divided"]),
        helper.make_node("Mul", ["h", "clipped"], ["product"]),
        helper.make_node(*last, ["swished"]),
        helper.make_node("Add", ["swished", "h"], ["y"]),
    ]
    unused = "product" if scale_first else "divided"
    nodes = [node for node in nodes if unused not in node.output]
    weights = [stored(name, value) for name, value in (("three", 3), ("zero", 0), ("six", 6))]
    weights.append(stored("w", np.random.default_rng(29).standard_normal((8, 8))))
    return model(nodes, [tensor("x", ["N", 8])], [tensor("y", ["N", 8])], weights)


def quantized(folder: Path) -> onnx.ModelProto:
    """`dynamic_batch`, quantized by ONNX Runtime's own tool."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.items = iter(images(8))

        def get_next(self) -> dict[str, Array] | None:
            image = next(self.items, None)
            return None if image is None else {"image": image[None]}

    plain, written = folder / "plain.onnx", folder / "quantized.onnx"
    onnx.save(dynamic_batch(), plain)
    quantize_static(str(plain), str(written), Reader())
    loaded: onnx.ModelProto = onnx.load(str(written))
    return loaded


def with_cast_integers() -> onnx.ModelProto:
    """A model that computes with the integers of a QuantizeLinear as numbers."""
    model = dynamic_batch()
    name = model.graph.node[0].input[0]
    nodes = [
        helper.make_node("QuantizeLinear", [name, "grid"], ["integers"], name="quantize"),
        helper.make_node("Cast", ["integers"], ["numbers"], to=TensorProto.FLOAT, name="cast"),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.01), "grid"))
    model.graph.node[0].input[0] = "numbers"
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    return model


def with_zip_map() -> onnx.ModelProto:
    """A scikit-learn classifier as skl2onnx writes it: labels, and probabilities as a sequence of maps."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(19)
    inputs = random.standard_normal((200, 5)).astype(np.float32)
    classes = (inputs[:, 0] + inputs[:, 1] > 0).astype(np.int64) + (inputs[:, 2] > 1)
    made: onnx.ModelProto = to_onnx(LogisticRegression(max_iter=500).fit(inputs, classes), inputs[:1], target_opset=17)
    return made


def above_two_gigabytes(folder: Path) -> Path:
    """2.4 GB of weights in a file beside the graph, in an opset that must be raised."""
    size, layers = 8192, 9
    (folder / "weights.bin").unlink(missing_ok=True)
    weights = []
    for layer in range(layers):
        values = np.random.default_rng(layer).standard_normal((size, size), dtype=np.float32) / 90
        weight = onnx.TensorProto(
            name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[size, size], data_location=TensorProto.EXTERNAL
        )
        places = {"location": "weights.bin", "offset": layer * values.nbytes, "length": values.nbytes}
        for key, value in places.items():
            weight.external_data.add(key=key, value=str(value))
        weights.append(weight)
        with (folder / "weights.bin").open("ab") as stream:
            stream.write(values.tobytes())
    names = ["x", *(f"x{layer}" for layer in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    made = model(nodes, [tensor("x", ["N", size])], [tensor("y", ["N", size])], weights, opset=11)
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def save(made: onnx.ModelProto, path: Path, *, external: bool = False) -> Path:
    """Write a model; with `external`, every weight beside it in `weights.bin`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        path.write_bytes(made.SerializeToString())
    return path


def images(count: int, seed: int = 23) -> Array:
    """Items for the classifiers of images."""
    return np.random.default_rng(seed).random((count, 1, 16, 16), dtype=np.float32)


BY_NAME: dict[str, Callable[[], onnx.ModelProto]] = {
    function.__name__: function
    for function in (
        dynamic_batch,
        fixed_batch,
        old_opset,
        newest_opset,
        two_inputs_two_outputs,
        tokens,
        texts,
        conditional,
        custom_operator,
        whole_batch_output,
        squeezed_output,
        sequence_output,
        float8_input,
        random_output,
        recurrent,
        carried_state,
        ruined_by_int8,
        frozen_flag,
        written_out,
        with_zip_map,
    )
}
