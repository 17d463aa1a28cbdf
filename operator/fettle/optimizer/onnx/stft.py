"""Short-time Fourier transforms as convolutions with the waves of their frequencies.

The sums are the same, but a convolution runs on the matrix kernels that every runtime has, and many runtimes have no STFT at all.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.fuse import Graph, drop_unused
from fettle.runtimes.base import Array

LONGEST = 1024  # samples of a frame: for longer ones a fast transform takes fewer operations than even these kernels make up for


def convolve_stft(model: onnx.ModelProto) -> onnx.ModelProto:
    """Each STFT of a real float32 signal with a fixed frame becomes a Conv. The argument comes back where there is none."""
    if not any(node.op_type == "STFT" for node in model.graph.node):
        return model
    changed: onnx.ModelProto = shape_inference.infer_shapes(model, data_prop=True)
    graph = changed.graph
    ranks = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.type.tensor_type.HasField("shape")
    }
    known = Graph(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        shape = ranks.get(node.input[0]) if node.op_type == "STFT" else None
        waves = _waves(known, node) if shape is not None and _is_real(shape) else None
        step = known.number(node.input[1]) if waves is not None else None
        if shape is None or waves is None or step is None:
            nodes.append(node)
        else:
            nodes += _convolution(graph, node, waves, int(step), len(shape))
    if len(nodes) == len(graph.node):
        return model
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    return changed


def _is_real(shape: list[int]) -> bool:
    """Whether a signal of that shape is [batch, samples] or [batch, samples, 1]; complex ones end with a 2."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)


def _waves(known: Graph, node: onnx.NodeProto) -> Array | None:
    """By frequency: a cosine for the real and a sine for the imaginary part, `[frequencies, 2, samples]`. None where the frame is not fixed."""
    window, length = (known.value(node.input[place]) if place < len(node.input) else None for place in (2, 3))
    absent = len(node.input) < 3 or not node.input[2]
    if (window is None and not absent) or (window is None and length is None):
        return None
    samples = int(length.reshape(-1)[0]) if length is not None else len(window) if window is not None else 0
    if not 0 < samples <= LONGEST or (window is not None and window.shape != (samples,)):
        return None
    one_sided = onnx_model.attribute(node, "onesided", 1)
    frequencies = np.arange(samples // 2 + 1 if one_sided else samples)
    turns = np.outer(frequencies, np.arange(samples)) % samples  # whole turns cost digits
    angles = 2 * np.pi * turns / samples
    weights = np.ones(samples) if window is None else window.astype(np.float64)
    return np.asarray(np.stack([np.cos(angles), -np.sin(angles)], axis=1) * weights)


def _convolution(
    graph: onnx.GraphProto, node: onnx.NodeProto, waves: Array, step: int, rank: int
) -> list[onnx.NodeProto]:
    """The nodes for an STFT whose frames are `step` samples apart, of a signal with `rank` axes; their weights go into the graph."""
    name = node.output[0]
    frequencies, parts, samples = waves.shape
    kernels = waves.reshape(frequencies * parts, 1, samples).astype(np.float32)
    shape = np.array([0, 0, frequencies, parts], np.int64)  # as many items and frames as there are, also none
    for suffix, value in (("waves", kernels), ("parts", shape), ("axis", np.array([1], np.int64))):
        graph.initializer.append(numpy_helper.from_array(value, f"{name}_{suffix}"))
    row = (
        helper.make_node("Unsqueeze", [node.input[0], f"{name}_axis"], [f"{name}_row"], name=f"{name}_row")
        if rank == 2
        else helper.make_node("Transpose", [node.input[0]], [f"{name}_row"], name=f"{name}_row", perm=[0, 2, 1])
    )
    sums, frames = f"{name}_sums", f"{name}_frames"
    return [
        row,
        helper.make_node("Conv", [f"{name}_row", f"{name}_waves"], [sums], name=sums, strides=[step]),
        helper.make_node("Transpose", [sums], [frames], name=frames, perm=[0, 2, 1]),
        helper.make_node("Reshape", [frames, f"{name}_parts"], [name], name=node.name or f"{name}_split"),
    ]
