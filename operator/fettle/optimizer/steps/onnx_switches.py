"""A QDQ file with a switch at every quantized value: each layer can run in int8 or in float32, in one session."""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from fettle.optimizer.loss import Infer
from fettle.optimizer.measure.items import Answer
from fettle.runtimes.base import Array

SWITCHES = "fettle_switches"
QUANTIZED = "_quantized"  # what the tool adds to the name of a weight
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})


class OnnxSwitches:
    """See `layers.Switches`. `quantized` is `original` as the tool quantized it; the file with switches is written to `entry`."""

    def __init__(self, quantized: Path, original: Path, entry: Path) -> None:
        model = onnx.load(str(quantized))
        weights = {tensor.name: tensor for tensor in onnx.load(str(original)).graph.initializer}
        graph = model.graph
        made = {output: node for node in graph.node for output in node.output}
        self._users = _users(graph, made)
        quantizing = set().union(*self._users.values()) if self._users else set()
        self.layers = tuple(node.name for node in graph.node if node.name in quantizing)
        self.products = frozenset(node.name for node in graph.node if node.op_type in PRODUCTS)
        self._places: dict[str, int] = {}
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            nodes.append(node)
            value = _float_value(node, made, weights)
            if node.op_type != "DequantizeLinear" or value is None or node.output[0] not in self._users:
                continue
            name = node.output[0]
            if value in weights:
                float_weight = onnx.TensorProto()
                float_weight.CopyFrom(weights[value])
                value = float_weight.name = f"{name}_float32"  # the tool may give a quantized bias the name that it had
                graph.initializer.append(float_weight)
            node.output[0] = f"{name}_int8"
            nodes += self._switch(name, node.output[0], value)
        del graph.node[:]
        graph.node.extend(nodes)
        graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(self._places)]))
        onnx.save(model, str(entry))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1  # as what it is compared with: sums in another order differ
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # the pairs stay what they are
        self._session = ort.InferenceSession(str(entry), options, providers=["CPUExecutionProvider"])
        self._outputs = [value.name for value in self._session.get_outputs()]

    def infer(self, quantized: frozenset[str]) -> Infer:
        """See `layers.Switches.infer`."""
        on = np.zeros(len(self._places), np.bool_)
        for name, place in self._places.items():
            on[place] = bool(self._users[name] & quantized)

        def run(feed: Answer) -> dict[str, Array]:
            values = self._session.run(self._outputs, {**feed, SWITCHES: on})
            return dict(zip(self._outputs, map(np.asarray, values), strict=True))

        return run

    def _switch(self, name: str, int8: str, value: str) -> list[onnx.NodeProto]:
        """Nodes that give either the value of `int8` or of `value`, under `name`."""
        place = self._places.setdefault(name, len(self._places))
        index = numpy_helper.from_array(np.int64(place))
        return [
            helper.make_node("Constant", [], [f"{name}_place"], name=f"{name}_place", value=index),
            helper.make_node("Gather", [SWITCHES, f"{name}_place"], [f"{name}_switch"], name=f"{name}_switch"),
            helper.make_node("Where", [f"{name}_switch", int8, value], [name], name=f"{name}_chosen"),
        ]


def _users(graph: onnx.GraphProto, made: dict[str, onnx.NodeProto]) -> dict[str, frozenset[str]]:
    """By the output of each DequantizeLinear: the layers for which it is quantized. The tool quantizes a layer's inputs and outputs."""
    takers: defaultdict[str, set[str]] = defaultdict(set)
    for node in graph.node:
        if node.op_type not in PAIR:
            for name in node.input:
                takers[name].add(node.name)
    layers = {taker for name, node in made.items() if node.op_type == "DequantizeLinear" for taker in takers[name]}
    users: dict[str, frozenset[str]] = {}
    for name, node in made.items():
        if node.op_type != "DequantizeLinear":
            continue
        quantizer = made.get(node.input[0])
        maker = made.get(quantizer.input[0]) if quantizer is not None else None
        makers = {maker.name} & layers if maker is not None else set()
        users[name] = frozenset(takers[name] | makers)
    return {name: found for name, found in users.items() if found}


def _float_value(node: onnx.NodeProto, made: dict[str, onnx.NodeProto], weights: dict[str, Any]) -> str | None:
    """The name of the float32 value that a DequantizeLinear replaces; None if it is not known."""
    if node.op_type != "DequantizeLinear":
        return None
    quantizer = made.get(node.input[0])
    if quantizer is not None:
        return str(quantizer.input[0])
    name = node.input[0].removesuffix(QUANTIZED)
    return name if name in weights else None


def products(model: onnx.ModelProto, feed: Answer) -> int:
    """The number of multiplications for one answer in layers with weights; 0 if shapes are not known before a run."""
    shaped = deepcopy(model)
    for value in shaped.graph.input:
        if value.name in feed:
            shape = helper.make_tensor_type_proto(value.type.tensor_type.elem_type, feed[value.name].shape)
            value.type.CopyFrom(shape)
    try:
        graph = onnx.shape_inference.infer_shapes(shaped, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return 0
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    return sum(_products(node, shapes) for node in graph.node)


def _products(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if node.op_type not in PRODUCTS:
        return 0
    left, right, made = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if not left or not right or not made:
        return 0
    size = int(np.prod(made))
    if node.op_type == "Conv":
        return size * int(np.prod(right[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(left)) * int(np.prod(right[1:]))
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return size * left[-2 if transposed and len(left) > 1 else -1]
