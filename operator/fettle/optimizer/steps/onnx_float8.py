"""QDQ files in float8 (E4M3): the pairs of an int8 file whose ranges are symmetric, with the same ranges.

The largest number of a range becomes the largest finite float8, as NVIDIA's tools do it. Weights are stored in float8.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable
from fettle.runtimes.base import Array

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST, LARGEST_INT8 = 448.0, 127.0
FLOAT8_OPSET = 19  # from here on Q and DQ know the type
PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


def in_float8(pairs: Path, target: Path) -> Path:
    """Write the model at `pairs`, whose weights have both Q and DQ, with float8 in the place of int8. Raises RecipeError."""
    model = onnx_model.load(pairs)
    if onnx_model.external_files(model):
        raise RecipeError("the model is too large for float8: its weights do not fit into the graph's file")
    if onnx_model.opset(model) < FLOAT8_OPSET:
        model = portable.convert_opset(model, portable.WANTED_OPSETS[0])
    graph = model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made: dict[str, onnx.TensorProto] = {}

    def keep(name: str, array: Array) -> str:
        made[name] = numpy_helper.from_array(array, name)
        return name

    nodes = []
    for node in graph.node:
        if node.op_type in PAIR:
            value, scale, zero = node.input
            wider = stored[scale] * np.float32(LARGEST_INT8 / LARGEST)
            node.input[1] = keep(f"{scale}_float8", wider)
            node.input[2] = keep(f"{zero}_float8", np.zeros(stored[zero].shape, FLOAT8))
            if node.op_type == "QuantizeLinear" and value in stored:
                keep(node.output[0], _rounded(stored[value], wider, onnx_model.attribute(node, "axis", 1)))
                continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for each in onnx_model.graphs(graph) for node in each.node for name in node.input}
    kept = [tensor for tensor in (*graph.initializer, *made.values()) if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    values = [value for value in graph.value_info if value.type.tensor_type.elem_type != onnx.TensorProto.INT8]
    del graph.value_info[:]
    graph.value_info.extend(values)
    onnx_model.save(model, target)
    return target


def _rounded(weight: Array, scale: Array, axis: int) -> Array:
    """A weight as QuantizeLinear rounds it."""
    if scale.ndim:
        scale = scale.reshape([-1 if place == axis % weight.ndim else 1 for place in range(weight.ndim)])
    return np.clip(weight / scale, -LARGEST, LARGEST).astype(FLOAT8)
