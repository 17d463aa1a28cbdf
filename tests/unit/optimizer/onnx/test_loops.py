"""Loops that must not be changed, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.data.models import model, stored, tensor

from fettle.optimizer.onnx.loops import free_loops, lighten_loops

RANDOM = np.random.default_rng(61)
ROW = RANDOM.standard_normal(4).astype(np.float32)
SQUARE = RANDOM.standard_normal((4, 4)).astype(np.float32)


def looping(
    steps: Sequence[onnx.NodeProto], carried: Sequence[tuple[str, str, list[int]]], after: Sequence[onnx.NodeProto]
) -> onnx.ModelProto:
    """`x`, and a Loop of two steps; `carried`: names before and after each step. Its outputs are called `last_` and what they were before."""
    given = [tensor("step", [], TensorProto.INT64), tensor("going_on", [], TensorProto.BOOL)]
    given += [tensor(before, shape) for before, _, shape in carried]
    made = [tensor("goes_on", [], TensorProto.BOOL), *(tensor(name, shape) for _, name, shape in carried)]
    nodes = [helper.make_node("Identity", ["going_on"], ["goes_on"]), *steps]
    body = helper.make_graph(nodes, "body", given, made)
    starts = ["square" if shape == [4, 4] else "zeros" for *_, shape in carried]
    ends = [f"last_{before}" for before, *_ in carried]
    loop = helper.make_node("Loop", ["count", "", *starts], ends, body=body)
    weights = [stored("count", 2, "int64"), stored("zeros", np.zeros(4)), stored("square", SQUARE)]
    weights.append(stored("order", [1, 0, 3, 2], "int64"))
    return model([*after[:-1], loop, after[-1]], [tensor("x", None)], [tensor("y", None)], weights)


def answer(made: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def kinds(made: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


SUMS = [helper.make_node("MatMul", ["row", "square"], ["seen"]), helper.make_node("Add", ["sum", "seen"], ["sum_out"])]


def test_a_reordered_vector_is_multiplied_after_it_is_reordered() -> None:
    steps = [helper.make_node("Gather", ["x", "order"], ["row"]), *SUMS]
    made = looping(steps, [("sum", "sum_out", [4])], [helper.make_node("Identity", ["last_sum"], ["y"])])
    made.graph.input[0].CopyFrom(tensor("x", [4]))
    np.testing.assert_allclose(answer(lighten_loops(made), ROW), answer(made, ROW), rtol=1e-5)


@pytest.mark.parametrize(
    "table", [helper.make_node("Exp", ["square"], ["rows"]), helper.make_node("Exp", ["x"], ["rows"])]
)
def test_only_rows_that_follow_from_the_inputs_are_multiplied_before_the_loop(table: onnx.NodeProto) -> None:
    steps = [helper.make_node("Gather", ["rows", "step"], ["row"]), *SUMS]
    made = looping(steps, [("sum", "sum_out", [4])], [table, helper.make_node("Add", ["x", "last_sum"], ["y"])])
    made.graph.input[0].CopyFrom(tensor("x", [4, 4]))
    lighter = lighten_loops(made)
    assert ("MatMul" in kinds(lighter)) == (table.input[0] == "x"), "of a constant table, few rows may be read"
    np.testing.assert_allclose(answer(lighter, SQUARE), answer(made, SQUARE), rtol=1e-5)


def test_a_value_of_the_body_may_have_the_name_of_an_output_of_the_loop() -> None:
    steps = [
        helper.make_node("Identity", ["weight"], ["weight_out"]),
        helper.make_node("Exp", ["sum"], ["last_weight"]),
        helper.make_node("MatMul", ["last_weight", "weight"], ["sum_out"]),
    ]
    carried = [("weight", "weight_out", [4, 4]), ("sum", "sum_out", [4])]
    made = looping(steps, carried, [helper.make_node("MatMul", ["last_sum", "last_weight"], ["y"])])
    made.graph.node.insert(0, helper.make_node("Neg", ["x"], ["unread"]))
    np.testing.assert_allclose(answer(free_loops(made), ROW), answer(made, ROW), rtol=1e-5)


def test_a_loop_that_changes_nothing_keeps_an_output() -> None:
    steps = [helper.make_node("Identity", ["weight"], ["weight_out"])]
    made = looping(steps, [("weight", "weight_out", [4, 4])], [helper.make_node("MatMul", ["x", "last_weight"], ["y"])])
    np.testing.assert_allclose(answer(free_loops(made), ROW), answer(made, ROW), rtol=1e-5)
