"""Models that are legal, or nearly, and that nobody would write by hand: what fuzzers and other people's exporters make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper
from tests.data.models import model, stored, tensor

T = TensorProto
Builder = Callable[[], onnx.ModelProto]
FLOATS = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


def node(kind: str, given: list[str], made: list[str], **attributes: object) -> onnx.NodeProto:
    """A node."""
    return helper.make_node(kind, given, made, **attributes)


def one(
    kind: str,
    shape: list[int | str],
    made: list[int | str] | None,
    *,
    dtype: int = T.FLOAT,
    opset: int = 17,
    **attributes: object,
) -> onnx.ModelProto:
    """y = kind(x)."""
    return model(
        [node(kind, ["x"], ["y"], **attributes)], [tensor("x", shape, dtype)], [tensor("y", made, dtype)], opset=opset
    )


def passing(dtype: int) -> onnx.ModelProto:
    """y = x, of any type."""
    return one("Identity", ["N", 3], ["N", 3], dtype=dtype)


def scalar_output() -> onnx.ModelProto:
    return one("ReduceSum", ["N", 3], [], keepdims=0)


def scalar_input() -> onnx.ModelProto:
    return one("Relu", [], [])


def one_number_an_item() -> onnx.ModelProto:
    return model(
        [node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        [tensor("x", ["N", 3])],
        [tensor("y", ["N"])],
        [stored("axes", [1], "int64")],
    )


def zero_size_input() -> onnx.ModelProto:
    return one("Relu", ["N", 0], ["N", 0])


def empty_output() -> onnx.ModelProto:
    weights = [stored("start", [0], "int64"), stored("end", [0], "int64"), stored("axes", [1], "int64")]
    return model(
        [node("Slice", ["x", "start", "end", "axes"], ["y"])], [tensor("x", ["N", 3])], [tensor("y", ["N", 0])], weights
    )


def unused_input() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [tensor("x", ["N", 3]), tensor("z", ["N", 2])], [tensor("y", ["N", 3])])


def duplicate_output() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [tensor("x", ["N", 3])], [tensor("y", ["N", 3]), tensor("y", ["N", 3])])


def duplicate_input() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [tensor("x", ["N", 3]), tensor("x", ["N", 3])], [tensor("y", ["N", 3])])


def output_is_input() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [tensor("x", ["N", 3])], [tensor("y", ["N", 3]), tensor("x", ["N", 3])])


def only_passes_its_input() -> onnx.ModelProto:
    return model([], [tensor("x", ["N", 3])], [tensor("x", ["N", 3])])


def no_inputs() -> onnx.ModelProto:
    return model([node("Relu", ["w"], ["y"])], [], [tensor("y", [3, 4])], [stored("w", FLOATS)])


def no_outputs() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [tensor("x", ["N", 3])], [])


def weight_is_output() -> onnx.ModelProto:
    return model(
        [node("Relu", ["x"], ["y"])],
        [tensor("x", ["N", 3])],
        [tensor("y", ["N", 3]), tensor("w", [3, 4])],
        [stored("w", FLOATS)],
    )


def huge_input() -> onnx.ModelProto:
    return one("ReduceMax", ["N", 2**40], ["N", 1], axes=[1])


def huge_constant_shape() -> onnx.ModelProto:
    nodes = [
        node("ConstantOfShape", ["shape"], ["c"]),
        node("ReduceMax", ["c"], ["m"], keepdims=0),
        node("Add", ["x", "m"], ["y"]),
    ]
    return model(nodes, [tensor("x", ["N", 3])], [tensor("y", ["N", 3])], [stored("shape", [2**31, 2**20], "int64")])


def rank_of_twenty() -> onnx.ModelProto:
    shape: list[int | str] = ["N", *[1] * 19]
    return one("Relu", shape, shape)


def no_rank() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [tensor("x", None)], [tensor("y", None)])


def negative_dimension() -> onnx.ModelProto:
    return one("Relu", [-3, 3], [-3, 3])


def dimension_without_name() -> onnx.ModelProto:
    made = one("Relu", ["N", 3], ["N", 3])
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
    return made


def odd_names() -> onnx.ModelProto:
    nodes = [node("Relu", ["a/b c:0"], ["é☃"]), node("Neg", ["é☃"], ["../../y"])]
    return model(nodes, [tensor("a/b c:0", ["N", 3])], [tensor("é☃", ["N", 3]), tensor("../../y", ["N", 3])])


def a_name_of_a_thousand_letters() -> onnx.ModelProto:
    name = "x" * 1000
    return model([node("Relu", [name], ["y"])], [tensor(name, ["N", 3])], [tensor("y", ["N", 3])])


def a_nul_in_a_name() -> onnx.ModelProto:
    return model([node("Relu", ["x\0"], ["y"])], [tensor("x\0", ["N", 3])], [tensor("y", ["N", 3])])


def an_input_called_labels() -> onnx.ModelProto:
    return model([node("Relu", ["labels"], ["y"])], [tensor("labels", ["N", 3])], [tensor("y", ["N", 3])])


def empty_name() -> onnx.ModelProto:
    return model([node("Relu", [""], ["y"])], [tensor("", ["N", 3])], [tensor("y", ["N", 3])])


def newline_in_a_name() -> onnx.ModelProto:
    return model([node("Relu", ["a\nb"], ["y"])], [tensor("a\nb", ["N", 3])], [tensor("y", ["N", 3])])


def branches() -> onnx.ModelProto:
    def body(kind: str) -> onnx.GraphProto:
        return helper.make_graph([node(kind, ["x"], ["b"])], kind, [], [tensor("b", None)])

    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=body("Relu"), else_branch=body("Neg")),
    ]  # fmt: skip
    return model(nodes, [tensor("x", ["N", 3])], [tensor("y", None)], [stored("zero", 0)])


def branches_of_two_ranks() -> onnx.ModelProto:
    small = helper.make_graph([node("ReduceSum", ["x"], ["b"], keepdims=0)], "small", [], [tensor("b", None)])
    large = helper.make_graph([node("Neg", ["x"], ["b"])], "large", [], [tensor("b", None)])
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "bound"], ["c"]),
        node("If", ["c"], ["y"], then_branch=small, else_branch=large),
    ]  # fmt: skip
    return model(nodes, [tensor("x", ["N", 3])], [tensor("y", None)], [stored("bound", 0.2)])


def loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Mul", ["before", "half"], ["after"])],
        "body",
        [tensor("i", [], T.INT64), tensor("go", [], T.BOOL), tensor("before", None)],
        [tensor("on", [], T.BOOL), tensor("after", None)],
    )
    weights = [stored("count", 3, "int64"), stored("yes", True, "bool"), stored("half", 0.5)]
    return model(
        [node("Loop", ["count", "yes", "x"], ["y"], body=body)],
        [tensor("x", ["N", 3])],
        [tensor("y", ["N", 3])],
        weights,
    )


def sequence_input() -> onnx.ModelProto:
    value = helper.make_tensor_sequence_value_info("x", T.FLOAT, None)
    return model([node("ConcatFromSequence", ["x"], ["y"], axis=0)], [value], [tensor("y", None)])


def optional_output() -> onnx.ModelProto:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(T.FLOAT, ["N", 3]))
    return model([node("Optional", ["x"], ["y"])], [tensor("x", ["N", 3])], [helper.make_value_info("y", kind)])


def map_output() -> onnx.ModelProto:
    kind = helper.make_map_type_proto(T.INT64, helper.make_tensor_type_proto(T.FLOAT, []))
    return model([node("Relu", ["x"], ["y"])], [tensor("x", ["N", 3])], [helper.make_value_info("y", kind)])


def output_of_no_type() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], [tensor("x", ["N", 3])], [onnx.ValueInfoProto(name="y")])


def output_of_an_unknown_type() -> onnx.ModelProto:
    made = one("Relu", ["N", 3], ["N", 3])
    made.graph.output[0].type.tensor_type.elem_type = 99
    return made


def function_of_its_own() -> onnx.ModelProto:
    body = helper.make_function(
        "mine", "twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    made = model(
        [node("twice", ["x"], ["y"], domain="mine")], [tensor("x", ["N", 3])], [tensor("y", ["N", 3])], domains=["mine"]
    )
    made.functions.append(body)
    return made


def function_that_calls_itself() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    body = helper.make_function("mine", "again", ["a"], ["b"], [node("again", ["a"], ["b"], domain="mine")], imports)
    made = model(
        [node("again", ["x"], ["y"], domain="mine")], [tensor("x", ["N", 3])], [tensor("y", ["N", 3])], domains=["mine"]
    )
    made.functions.append(body)
    return made


def sparse_weight() -> onnx.ModelProto:
    values = helper.make_tensor("w", T.FLOAT, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("i", T.INT64, [2], [0, 4]), [3, 3])
    made = model([node("MatMul", ["x", "w"], ["y"])], [tensor("x", ["N", 3])], [tensor("y", ["N", 3])])
    made.graph.sparse_initializer.append(sparse)
    return made


def training_info() -> onnx.ModelProto:
    made = one("Relu", ["N", 3], ["N", 3])
    made.training_info.add().initialization.CopyFrom(made.graph)
    return made


def a_circle() -> onnx.ModelProto:
    return model(
        [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"])], [tensor("x", ["N", 3])], [tensor("b", ["N", 3])]
    )


def nodes_without_inputs() -> onnx.ModelProto:
    kinds = ("Identity", "Div", "Mul", "Loop", "Softmax", "MatMul", "Clip")
    return model([node(kind, [], [f"o{kind}"]) for kind in kinds], [tensor("x", ["N", 3])], [tensor("oMul", ["N", 3])])


def nodes_without_outputs() -> onnx.ModelProto:
    kinds = ("Identity", "Constant", "Relu", "ZipMap")
    return model([node(kind, ["x"], []) for kind in kinds], [tensor("x", ["N", 3])], [tensor("x", ["N", 3])])


def weight_of_too_few_bytes() -> onnx.ModelProto:
    made = model(
        [node("Add", ["x", "w"], ["y"])], [tensor("x", ["N", 3])], [tensor("y", ["N", 3])], [stored("w", [1, 2, 3])]
    )
    made.graph.initializer[0].raw_data = b"\0" * 5
    return made


def weight_of_an_unknown_type() -> onnx.ModelProto:
    made = model(
        [node("Add", ["x", "w"], ["y"])], [tensor("x", ["N", 3])], [tensor("y", ["N", 3])], [stored("w", [1, 2, 3])]
    )
    made.graph.initializer[0].data_type = 77
    return made


def division_by_zero() -> onnx.ModelProto:
    return model(
        [node("Div", ["x", "w"], ["y"])],
        [tensor("x", ["N", 3], T.INT32)],
        [tensor("y", ["N", 3], T.INT32)],
        [stored("w", [0, 0, 0], "int32")],
    )


def infinite_answers() -> onnx.ModelProto:
    return model(
        [node("Div", ["x", "w"], ["y"])], [tensor("x", ["N", 3])], [tensor("y", ["N", 3])], [stored("w", [0, 0, 0])]
    )


def size_follows_the_values() -> onnx.ModelProto:
    return model([node("NonZero", ["x"], ["y"])], [tensor("x", ["N", 3])], [tensor("y", [2, None], T.INT64)])


def texts_of_no_utf8() -> onnx.ModelProto:
    words = helper.make_tensor("words", T.STRING, [2], [b"\xff\xfe", b"ok"])
    nodes = [
        node("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
        node("Mod", ["i", "two"], ["m"]),
        node("Gather", ["words", "m"], ["y"]),
    ]
    return model(nodes, [tensor("x", ["N", 3])], [tensor("y", ["N"], T.STRING)], [words, stored("two", 2, "int64")])


def half_weights() -> onnx.ModelProto:
    weight = onnx.numpy_helper.from_array(np.ones((3, 3), ml_dtypes.bfloat16), "w")
    nodes = [node("Cast", ["w"], ["f"], to=T.FLOAT), node("MatMul", ["x", "f"], ["y"])]
    return model(nodes, [tensor("x", ["N", 3])], [tensor("y", ["N", 3])], [weight])


KINDS: dict[str, Builder] = {
    builder.__name__.replace("_", " "): builder
    for builder in (
        scalar_output, scalar_input, one_number_an_item, zero_size_input, empty_output, unused_input, duplicate_output,
        duplicate_input, output_is_input, only_passes_its_input, no_inputs, no_outputs, weight_is_output, huge_input,
        huge_constant_shape, rank_of_twenty, no_rank, negative_dimension, dimension_without_name, odd_names,
        a_name_of_a_thousand_letters, a_nul_in_a_name, an_input_called_labels, empty_name, newline_in_a_name, branches, branches_of_two_ranks,
        loop, sequence_input, optional_output, map_output, output_of_no_type, output_of_an_unknown_type, function_of_its_own,
        function_that_calls_itself, sparse_weight, training_info, a_circle, nodes_without_inputs, nodes_without_outputs,
        weight_of_too_few_bytes, weight_of_an_unknown_type, division_by_zero, infinite_answers, size_follows_the_values,
        texts_of_no_utf8, half_weights,
    )
}  # fmt: skip
KINDS |= {
    f"{TensorProto.DataType.Name(kind).lower()} in and out": partial(passing, kind)
    for kind in TensorProto.DataType.values()
}


def damaged(content: bytes, random: Random) -> bytes:
    """A file as a broken disk or a broken transfer leaves it: cut off, bits turned, bytes replaced, bytes lost."""
    place, count = random.randrange(len(content)), random.randint(1, 40)
    kind = random.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + random.randbytes(count) + content[place + count :]
    return content[:place] + content[place + count :]


def _each(parts: Iterable[Any], field: str, values: Sequence[int], random: Random) -> None:
    """Another value in a field of each part."""
    for part in parts:
        setattr(part, field, random.choice(values))


def tampered(made: onnx.ModelProto, random: Random) -> onnx.ModelProto:
    """A model of which one part says something else than its exporter wrote."""
    changed = onnx.ModelProto()
    changed.CopyFrom(made)
    graph = changed.graph
    node_ = random.choice(list(graph.node))
    value = random.choice([*graph.input, *graph.output])
    numbers = [*range(-1, 30), 99]
    changes: list[Callable[[], object]] = [
        lambda: node_.input.pop() if node_.input else None,
        lambda: node_.output.pop() if node_.output else None,
        lambda: setattr(
            node_, "op_type", random.choice(("Loop", "If", "Identity", "ZipMap", "Scan", "Optional", "Clip", "Div"))
        ),
        lambda: node_.ClearField("attribute"),
        lambda: setattr(value.type.tensor_type, "elem_type", random.choice(numbers)),
        lambda: value.type.Clear(),
        lambda: setattr(value, "name", random.choice(("", "a/b", "x" * 300, "\0", "labels"))),
        lambda: _each(value.type.tensor_type.shape.dim, "dim_value", (-5, 0, 2**40, 2**62), random),
        lambda: setattr(changed, "ir_version", random.choice((0, 2, 13, 14, 99))),
        lambda: _each(changed.opset_import, "version", (0, 1, 6, 28, 999), random),
        lambda: _each(graph.initializer[:1], "data_type", numbers, random),
        lambda: [one_.dims.append(random.choice((-1, 0, 2**40))) for one_ in graph.initializer[:1]],
    ]
    random.choice(changes)()
    return changed
