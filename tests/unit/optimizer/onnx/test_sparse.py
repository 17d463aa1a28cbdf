"""Products whose weights are 2:4 sparse, found wherever the weights are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fettle.api.vocabulary import Precision
from fettle.optimizer.onnx.sparse import sparse_products
from fettle.optimizer.steps import onnx_autocast
from fettle.runtimes.base import Array

RANDOM = np.random.default_rng(4)


def two_of_four(shape: tuple[int, ...], axis: int) -> Array:
    """Random weights of which each second pair along an axis is zero."""
    weight = RANDOM.normal(1, 0.1, shape).astype(np.float32)
    moved = np.moveaxis(weight, axis, -1)
    moved[..., 2::4], moved[..., 3::4] = 0, 0
    return weight


def product(kind: str, weight: Array, **attributes: int) -> onnx.ModelProto:
    shape = ["N", weight.shape[1], 5, 5] if kind == "Conv" else ["N", 8]
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in (("x", shape), ("y", None))
    ]
    graph = helper.make_graph([node], "product", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "shape", "axis", "attributes"),
    [
        ("Conv", (6, 8, 3, 3), 1, {}),
        ("MatMul", (8, 6), 0, {}),
        ("Gemm", (8, 6), 0, {}),
        ("Gemm", (6, 8), 1, {"transB": 1}),
    ],
)
def test_zeros_count_along_the_axis_that_is_summed(
    kind: str, shape: tuple[int, ...], axis: int, attributes: dict[str, int], tmp_path: Path
) -> None:
    def found(weight: Array) -> tuple[int, int]:
        return sparse_products(product(kind, weight, **attributes), tmp_path)

    assert found(two_of_four(shape, axis)) == (1, 1)
    dense = two_of_four(shape, axis)
    dense[dense == 0] = 1
    assert found(dense) == (0, 1)
    other = next(each for each in range(len(shape)) if each != axis)
    assert found(two_of_four(shape, other)) == (0, 1), "zeros along another axis help nobody"
    one_more = two_of_four(shape, axis)
    np.moveaxis(one_more, axis, -1)[(0,) * (one_more.ndim - 1)][2] = 1
    assert found(one_more) == (0, 1), "one group of four with three numbers is enough"


def test_a_number_of_channels_that_four_does_not_divide_is_not_sparse(tmp_path: Path) -> None:
    assert sparse_products(product("MatMul", np.zeros((6, 8), np.float32)), tmp_path) == (0, 1)


def test_weights_keep_their_zeros_in_every_precision(tmp_path: Path) -> None:
    model = product("MatMul", two_of_four((8, 6), 0))
    cast = onnx_autocast.products(model, Precision.BFLOAT16)
    assert sparse_products(cast, tmp_path) == (1, 1)
    scales = [("scale", np.float32(0.1)), ("zero", np.int8(0))]
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in scales)
    pair = [
        helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
    ]
    graph.node[0].input[1] = "d"
    nodes = [*pair, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    assert sparse_products(model, tmp_path) == (1, 1)


def test_a_product_of_two_values_has_no_weights(tmp_path: Path) -> None:
    model = product("MatMul", np.zeros((8, 8), np.float32))
    model.graph.node[0].input[1] = "x"
    assert sparse_products(model, tmp_path) == (0, 0)


def test_branches_may_use_the_same_names_for_other_values(tmp_path: Path) -> None:
    def branch(number: int, stored: str, cast: str, weight: Array) -> onnx.GraphProto:
        """A product with the weight `stored`, which the other branch calls as this one calls its cast."""
        nodes = [
            helper.make_node("Cast", [stored], [cast], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", cast], [f"y{number}"]),
        ]
        output = helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, [8, 8])
        return helper.make_graph(nodes, f"branch{number}", [], [output], [numpy_helper.from_array(weight, stored)])

    branches = {
        "then_branch": branch(1, "p", "q", two_of_four((8, 8), 0)),
        "else_branch": branch(2, "q", "p", np.ones((8, 8), np.float32)),
    }
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 8]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 8])]
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], **branches)], "chosen", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    assert sparse_products(model, tmp_path) == (1, 2)
