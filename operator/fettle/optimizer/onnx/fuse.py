"""Fusions that ONNX Runtime's offline optimizer does not have."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fettle.optimizer.onnx import model as onnx_model

HARD_SWISH_OPSET = 14


@dataclass
class Graph:
    """A graph with what a pattern asks: who makes a tensor, how often it is used, what a constant holds."""

    graph: onnx.GraphProto

    def __post_init__(self) -> None:
        self.made = {output: node for node in self.graph.node for output in node.output}
        self.uses = Counter(name for node in self.graph.node for name in node.input)
        self.uses.update(value.name for value in self.graph.output)
        # A branch or loop body may read any tensor around it: what it names is in use.
        for body in list(onnx_model.graphs(self.graph))[1:]:
            self.uses.update(name for node in body.node for name in node.input)
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}

    def number(self, name: str) -> float | None:
        """The value of a constant with one element."""
        tensor = self.stored.get(name)
        value = self.value(name) if tensor is not None and int(np.prod(tensor.dims)) == 1 else None
        return float(value.reshape(-1)[0]) if value is not None else None

    def value(self, name: str) -> np.ndarray[Any, Any] | None:
        """What a constant holds; None for what is no constant, or lies outside the file."""
        tensor = self.stored.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return np.asarray(numpy_helper.to_array(tensor))

    def inner(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node of one of these kinds that makes `name` for one user only."""
        node = self.made.get(name)
        return node if node is not None and node.op_type in kinds and self.uses[name] == 1 else None


def hard_swish(model: onnx.ModelProto) -> onnx.ModelProto:
    """x * clip(x + 3, 0, 6) / 6, written out in four nodes or with HardSigmoid, becomes HardSwish. The argument comes back where there is none."""
    if onnx_model.opset(model) < HARD_SWISH_OPSET:
        return model
    changed = deepcopy(model)
    known = Graph(changed.graph)
    fused = 0
    for index, node in enumerate(changed.graph.node):
        source = _swished(known, node)
        if source is not None:
            changed.graph.node[index].CopyFrom(
                helper.make_node(
                    "HardSwish", [source], list(node.output), name=f"{node.name or node.output[0]}_HardSwish"
                )
            )
            fused += 1
    if not fused:
        return model
    drop_unused(changed.graph)
    return changed


def _swished(known: Graph, node: onnx.NodeProto) -> str | None:
    """x, if `node` ends the pattern. The sixth may be taken before or after the product."""
    gated = _sigmoid_gated(known, node)
    if gated is not None:
        return gated
    scaled = _sixth(known, node)
    if scaled is not None:
        product = known.inner(scaled, "Mul")
        return None if product is None else _gated(known, product, scaled=False)
    return _gated(known, node, scaled=True) if node.op_type == "Mul" else None


def _sigmoid_gated(known: Graph, node: onnx.NodeProto) -> str | None:
    """x, if `node` is x * HardSigmoid(x) with the slope of HardSwish: what ONNX Runtime's offline optimizer makes of that."""
    if node.op_type != "Mul":
        return None
    for operand, other in ((0, 1), (1, 0)):
        gate = known.inner(node.input[other], "HardSigmoid")
        if gate is None or gate.input[0] != node.input[operand]:
            continue
        slope, offset = onnx_model.attribute(gate, "alpha", 0.2), onnx_model.attribute(gate, "beta", 0.5)
        if _near(slope, 1 / 6) and _near(offset, 0.5):
            return str(node.input[operand])
    return None


def _sixth(known: Graph, node: onnx.NodeProto) -> str | None:
    """a, if `node` is a / 6 or a * (1 / 6)."""
    if node.op_type == "Div" and _near(known.number(node.input[1]), 6):
        return str(node.input[0])
    if node.op_type == "Mul":
        for operand, other in ((0, 1), (1, 0)):
            if _near(known.number(node.input[other]), 1 / 6):
                return str(node.input[operand])
    return None


def _gated(known: Graph, product: onnx.NodeProto, scaled: bool) -> str | None:
    """x, if `product` is x times the gate of x (already divided by 6 if `scaled`)."""
    for operand, other in ((0, 1), (1, 0)):
        gate = product.input[other]
        if scaled:
            divided = known.inner(gate, "Div", "Mul")
            gate = _sixth(known, divided) if divided is not None else None
        if gate is not None and _gate(known, gate) == product.input[operand]:
            return str(product.input[operand])
    return None


def _gate(known: Graph, name: str) -> str | None:
    """x, if `name` is clip(x + 3, 0, 6)."""
    clip = known.inner(name, "Clip")
    if clip is None or len(clip.input) != 3:
        return None
    if not (_near(known.number(clip.input[1]), 0) and _near(known.number(clip.input[2]), 6)):
        return None
    added = known.inner(clip.input[0], "Add")
    if added is None:
        return None
    for operand, other in ((0, 1), (1, 0)):
        if _near(known.number(added.input[other]), 3):
            return str(added.input[operand])
    return None


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) < 1e-5


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes that nothing reads any more, then weights."""
    while True:
        known = Graph(graph)
        dead = [node for node in graph.node if not any(known.uses[output] for output in node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if not known.uses[tensor.name]]:
        graph.initializer.remove(tensor)
