"""Products alone in a 16-bit type, each between casts, as torch.autocast does it: their weights are stored in that type, and every other operator
keeps float32. Libraries for GPUs fuse the casts into their kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from fettle.api.vocabulary import Precision
from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx import portable
from fettle.runtimes.base import numpy_dtype

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})  # of ConvTranspose in bfloat16 TensorRT RTX builds no engine (1.7)
TYPES = {Precision.BFLOAT16: ("BF16", TensorProto.BFLOAT16), Precision.FLOAT16: ("FP16", TensorProto.FLOAT16)}


def products(model: onnx.ModelProto, precision: Precision, *, emulated: bool = False) -> onnx.ModelProto:
    """`model` with its float32 products in that precision. What is quantized stays as it is.

    `emulated`: the same rounding, but products are computed in float32, for runtimes without kernels of the type (ONNX Runtime on a CPU has none
    of bfloat16).
    """
    changed = portable.infer_shapes(model)
    # Bodies first: changing the nodes of a graph copies them, with the bodies in them.
    for number, (graph, floats) in reversed(list(enumerate(_scopes(changed.graph, frozenset())))):
        _Casts(graph, precision, floats, emulated, f"_in_{number}" if number else "").apply()
    return changed


def _scopes(graph: onnx.GraphProto, around: frozenset[str]) -> Iterator[tuple[onnx.GraphProto, frozenset[str]]]:
    """Each graph with the float32 tensors that it may read, its own and those `around` it; two branches may give a name different types."""
    floats = around | _floats(graph)
    yield graph, floats
    for body in onnx_model.bodies(graph):
        yield from _scopes(body, floats)


def _floats(graph: onnx.GraphProto) -> frozenset[str]:
    """The names of a graph's own tensors that are float32 and were not made of integers."""
    names = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    values = (*graph.input, *graph.output, *graph.value_info)
    names |= {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    made = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return frozenset(names - made)


@dataclass
class _Casts:
    """The casts of one graph. `floats`: what may be cast, in this graph and around it. `own`: ends the names of a body's casts,
    because a name in a body must not be one around it."""

    graph: onnx.GraphProto
    precision: Precision
    floats: frozenset[str]
    emulated: bool
    own: str = ""
    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _cast: dict[str, str] = field(default_factory=dict)  # by the name of the value that was cast

    def apply(self) -> None:
        """Put the products of the graph between casts, and drop weights that nothing reads any more."""
        for node in self.graph.node:
            inside = [name for name in node.input if name]
            if node.op_type in PRODUCTS and self.floats.issuperset([*inside, *node.output]):
                for place, name in enumerate(node.input):
                    node.input[place] = self._rounded(name) if name else name
                answer = node.output[0]
                node.output[0] = f"{answer}_{self.precision.lower()}"
                self._nodes.append(node)
                self._back(node.output[0], answer)
            else:
                self._nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self._nodes)
        read = {name for graph in onnx_model.graphs(self.graph) for node in graph.node for name in node.input}
        read |= {value.name for value in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read or tensor.name not in self._cast]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _rounded(self, name: str) -> str:
        """The name under which a product reads `name`."""
        if name not in self._cast:
            rounded = f"{name}_as_{self.precision.lower()}{self.own}"
            stored = next((tensor for tensor in self.graph.initializer if tensor.name == name), None)
            v2, kind = TYPES[self.precision]
            if stored is None or uses_external_data(stored):
                self._add(name, rounded, kind)
            else:
                weight = np.asarray(numpy_helper.to_array(stored)).astype(numpy_dtype(v2))
                self.graph.initializer.append(numpy_helper.from_array(weight, rounded))
            if self.emulated:
                self._add(rounded, rounded := f"{rounded}_in_float32", TensorProto.FLOAT)
            self._cast[name] = rounded
        return self._cast[name]

    def _back(self, made: str, answer: str) -> None:
        """Give what a product made back in float32."""
        if self.emulated:
            self._add(made, made := f"{made}_rounded", TYPES[self.precision][1])
        self._add(made, answer, TensorProto.FLOAT)

    def _add(self, value: str, name: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [value], [name], f"{name}_cast", to=kind))
