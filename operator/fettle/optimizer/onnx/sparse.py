"""Which products of a model have 2:4 sparse weights: of each four numbers that are multiplied and summed together, two or more are zero.

GPUs from sm80 on have kernels that skip those zeros. (NVIDIA's guide to TensorRT, "Structured Sparsity": four neighbours among the input channels
of a convolution, or along the summed axis of a matrix product.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from fettle.optimizer.onnx import model as onnx_model
from fettle.runtimes.base import Array

GROUP, MOST = 4, 2
_Stored: TypeAlias = dict[str, onnx.TensorProto]  # by name
_Makers: TypeAlias = dict[str, onnx.NodeProto]
PASSED = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})  # between a weight and its product: zeros stay zeros


def sparse_products(model: onnx.ModelProto, folder: Path) -> tuple[int, int]:
    """How many products have such weights, and how many have stored weights at all. `folder`: where external weights are."""
    found = [_is_sparse(numpy_helper.to_array(weight, str(folder)), axis) for weight, axis in _weights(model)]
    return sum(found), len(found)


def _weights(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, int]]:
    """The stored weights of products, and the axis along which each is summed."""
    for graph, stored, makers in _scopes(model.graph, {}, {}):
        for node in graph.node:
            axis = _summed_axis(node)
            if axis is None or len(node.input) < 2:
                continue
            name = node.input[1]
            while name in makers and makers[name].op_type in PASSED:
                name = makers[name].input[0]
            if name in stored and len(stored[name].dims) > 1:
                yield stored[name], axis


def _scopes(
    graph: onnx.GraphProto, stored: _Stored, makers: _Makers
) -> Iterator[tuple[onnx.GraphProto, _Stored, _Makers]]:
    """Each graph with the weights and the nodes whose results it may read, its own and those around it; branches may use the same names."""
    stored = {**stored, **{tensor.name: tensor for tensor in graph.initializer}}
    makers = {**makers, **{name: node for node in graph.node for name in node.output}}
    yield graph, stored, makers
    for body in onnx_model.bodies(graph):
        yield from _scopes(body, stored, makers)


def _summed_axis(node: onnx.NodeProto) -> int | None:
    if node.op_type == "Conv":
        return 1
    if node.op_type == "MatMul":
        return -2
    return int(onnx_model.attribute(node, "transB", 0)) if node.op_type == "Gemm" else None


def _is_sparse(weight: Array, axis: int) -> bool:
    if weight.shape[axis] % GROUP:
        return False
    groups = np.moveaxis(weight, axis, -1).reshape(-1, GROUP)
    return bool(((groups != 0).sum(axis=1) <= MOST).all())
