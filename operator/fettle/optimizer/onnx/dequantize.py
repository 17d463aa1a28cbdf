"""A quantized graph in floating point again: weights are the numbers that their integers stand for, and activations are no longer rounded.

Three forms are known: pairs of QuantizeLinear and DequantizeLinear, ONNX Runtime's QLinear operators, and ranges that are taken while the model
runs (DynamicQuantizeLinear with MatMulInteger or ConvInteger, and DynamicQuantizeLSTM). Their definitions:
https://onnx.ai/onnx/operators/ and https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.fuse import Graph, drop_unused
from fettle.optimizer.onnx.qlinear import QLinearOperators, constant, numbers_of, scaled
from fettle.runtimes.base import Array

OPSET = 11  # of Clip with its bounds as inputs
_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16)
# What hands on or picks among values, of whatever type.
_PASSING = frozenset(
    {
        "Concat",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def dequantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without what is known of the three forms; inner shapes are forgotten. What is not known stays as it is: look for it afterwards."""
    changed = deepcopy(model)
    opset = onnx_model.opset(model)
    for rewriting in (partial(QLinearOperators, opset=opset), _Pairs, _Dynamic) if opset >= OPSET else ():
        rewrite = rewriting(Graph(changed.graph))
        nodes = [other for node in changed.graph.node for other in rewrite(node)]
        del changed.graph.node[:]
        changed.graph.node.extend(nodes)
    del changed.graph.value_info[:]
    drop_unused(changed.graph)
    return changed


class _Pairs:
    """Constants become numbers; QuantizeLinear only cuts off what lies outside of its range, and DequantizeLinear does nothing.

    That needs every reader of the integers to be known: DequantizeLinear with the same scale, or an operator that only hands them on.
    """

    def __init__(self, known: Graph) -> None:
        self._known = known
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in known.graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._tables: dict[tuple[str, ...], str] = {}  # numbers of constant integers, by value, scale and zero point
        self._free: dict[str, tuple[float, int, np.dtype[Any]]] = {}  # integers that may be float32, with their grid
        for node in known.graph.node:
            grid = self._grid(node) if node.op_type == "QuantizeLinear" else self._passed(node)
            self._free.update(dict.fromkeys(node.output, grid) if grid is not None else {})
        while bound := [name for name in self._free if not self._may_be_free(name)]:
            for name in bound:
                del self._free[name]

    def __call__(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        grid = self._free.get(node.output[0]) if node.output else None
        if node.op_type == "QuantizeLinear" and grid is not None:
            yield self._cut(node, grid)
        elif node.op_type == "DequantizeLinear" and node.input[0] in self._free:
            yield helper.make_node("Identity", node.input[:1], node.output, name=node.name)
        elif node.op_type == "DequantizeLinear" and (picked := self._picked(node)) is not None:
            yield picked
        elif node.op_type != "DequantizeLinear" or not self._stored(node):
            yield node

    def _grid(self, node: onnx.NodeProto) -> tuple[float, int, np.dtype[Any]] | None:
        """Scale, zero point and type of a pair with one of each in the file; None for any other."""
        scale = self._known.value(node.input[1])
        zero = self._known.value(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        if scale is None or zero is None or scale.dtype != np.float32 or zero.dtype not in _INTEGERS:
            return None
        if onnx_model.attribute(node, "output_dtype"):
            return None
        return (scale.item(), zero.item(), zero.dtype) if scale.size == zero.size == 1 else None

    def _passed(self, node: onnx.NodeProto) -> tuple[float, int, np.dtype[Any]] | None:
        """The grid that all operands of an operator have that hands them on."""
        grids = {self._free.get(name) for name in _handed_on(node)}
        return grids.pop() if len(grids) == 1 else None

    def _may_be_free(self, name: str) -> bool:
        maker = self._known.made[name]
        if maker.op_type != "QuantizeLinear" and not all(other in self._free for other in _handed_on(maker)):
            return False
        readers = self._readers[name]
        if len(readers) != self._known.uses[name]:  # an output, or read in the body of a loop
            return False
        for reader in readers:
            if reader.op_type == "DequantizeLinear":
                if self._grid(reader) != self._free[name]:
                    return False
            elif name not in _handed_on(reader) or not all(out in self._free for out in reader.output):
                return False
        return True

    def _cut(self, node: onnx.NodeProto, grid: tuple[float, int, np.dtype[Any]]) -> onnx.NodeProto:
        scale, zero, kind = grid
        ends = [(int(end) - zero) * scale for end in (np.iinfo(kind).min, np.iinfo(kind).max)]
        bounds = [
            constant(self._known, f"{node.output[0]}_{word}", np.array(end))
            for word, end in zip(("least", "most"), ends, strict=True)
        ]
        return helper.make_node("Clip", [node.input[0], *bounds], node.output, name=node.name)

    def _picked(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """What picks among the numbers of a constant table, such as embeddings, where `node` dequantizes what is picked among its integers."""
        picks = self._known.inner(node.input[0], *_PASSING - {"Concat", "MaxPool", "Split"})
        if picks is None or self._grid(node) is None:
            return None
        table = (picks.input[0], *node.input[1:])
        if table not in self._tables:
            numbers = numbers_of(self._known, table[0], table[1], table[2] if len(table) > 2 else "", 0)
            if numbers is None:
                return None
            self._tables[table] = constant(self._known, f"{table[0]}_numbers", numbers)
        picked = helper.make_node(
            picks.op_type, [self._tables[table], *picks.input[1:]], node.output, name=node.name or picks.name
        )
        picked.attribute.extend(picks.attribute)
        return picked

    def _stored(self, node: onnx.NodeProto) -> bool:
        """Put what constant integers stand for into the file, under the name of the node's output; False where they are no constants.

        They have the type of their scale, which may be float16.
        """
        zero = node.input[2] if len(node.input) > 2 else ""
        axis = onnx_model.attribute(node, "axis", 1)
        numbers = numbers_of(self._known, node.input[0], node.input[1], zero, axis)
        scale = self._known.value(node.input[1])
        otherwise = onnx_model.attribute(node, "block_size") or onnx_model.attribute(node, "output_dtype")
        if numbers is None or scale is None or otherwise:
            return False
        self._known.graph.initializer.append(numpy_helper.from_array(numbers.astype(scale.dtype), node.output[0]))
        return True


def _handed_on(node: onnx.NodeProto) -> list[str]:
    """The operands whose values a passing operator hands on."""
    if node.op_type not in _PASSING or node.domain:
        return []
    return list(node.input if node.op_type == "Concat" else node.input[:1])


class _Dynamic:
    """Products of integers whose ranges are taken while the model runs."""

    def __init__(self, known: Graph) -> None:
        self._known = known

    def __call__(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        plain = None
        if node.op_type == "Mul":
            plain = self._product(node, node.input[0], node.input[1]) or self._product(
                node, node.input[1], node.input[0]
            )
        elif node.op_type == "DynamicQuantizeLSTM":
            plain = self._lstm(node)
        yield plain or node

    def _product(self, node: onnx.NodeProto, sums: str, scale: str) -> onnx.NodeProto | None:
        """The floating-point product, if `node` scales the sums of an integer one."""
        cast = self._known.inner(sums, "Cast")
        product, added = self._summed(cast.input[0]) if cast is not None else (None, None)
        quantized = self._known.made.get(product.input[0]) if product is not None else None
        if product is None or quantized is None or quantized.op_type != "DynamicQuantizeLinear":
            return None
        names = [*product.input, "", ""]
        if names[2] != quantized.output[2]:
            return None
        scales = self._other_factor(scale, quantized.output[1])
        weights = self._weights(product, names[1], scales, names[3])
        if weights is None or scales is None:
            return None
        biases = []
        if added is not None:
            bias = self._bias(added, quantized.output[1], scales)
            if bias is None or product.op_type != "ConvInteger" or bias.shape != weights.shape[:1]:
                return None
            biases = [constant(self._known, f"{node.output[0]}_bias", bias)]
        stored = constant(self._known, f"{node.output[0]}_weights", weights)
        kind = _PRODUCTS[product.op_type]
        given = [quantized.input[0], stored, *biases]
        plain = helper.make_node(kind, given, node.output, name=f"{node.output[0]}_{kind}")
        plain.attribute.extend(product.attribute)
        return plain

    def _summed(self, name: str) -> tuple[onnx.NodeProto | None, str | None]:
        """The integer product that makes `name`, and the bias that is added to its sums: old tools divide one by the scale while the model runs."""
        product, add = self._known.inner(name, *_PRODUCTS), self._known.inner(name, "Add")
        if add is None:
            return product, None
        for operand, other in ((0, 1), (1, 0)):
            product = self._known.inner(add.input[operand], *_PRODUCTS)
            if product is not None:
                return product, add.input[other]
        return None, None

    def _bias(self, name: str, factor: str, scales: Array) -> Array | None:
        """The constant that was divided by the scale of the sums, which is `factor` times `scales`."""
        node = self._known.made.get(name)
        while node is not None and node.op_type in ("Reshape", "Unsqueeze", "Cast", "Floor", "Round"):
            node = self._known.made.get(node.input[0])
        if node is None or node.op_type != "Div":
            return None
        beside = self._other_factor(node.input[1], factor)
        same = beside is not None and np.array_equal(beside.ravel(), scales.ravel())
        return self._known.value(node.input[0]) if same else None

    def _other_factor(self, name: str, factor: str) -> Array | None:
        """What `name` is a product of, beside `factor`."""
        scaling = self._known.made.get(name)
        if scaling is None or scaling.op_type != "Mul" or factor not in scaling.input:
            return None
        return self._known.value(scaling.input[0 if scaling.input[1] == factor else 1])

    def _weights(self, product: onnx.NodeProto, weights: str, scales: Array | None, zero: str) -> Array | None:
        integers = self._known.value(weights)
        zeros = self._known.value(zero) if zero else np.zeros((), np.int32)
        if integers is None or scales is None or zeros is None:
            return None
        convolves = product.op_type == "ConvInteger"
        beside = integers.ndim - 2 if convolves else 0  # dimensions of the result after the one of its columns
        if scales.size > 1 and (scales.ndim <= beside or scales.shape[-1 - beside] != scales.size):
            return None
        return scaled(integers, scales.reshape(-1), zeros, 0 if convolves else -1)

    def _lstm(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Its weights lie turned, as (directions, inputs, gates), with scales for each direction or each column of it."""
        names = [*node.input, *[""] * 4]
        turned = []
        for at, scale in ((1, 8), (2, 10)):
            parts = [self._known.value(names[place]) for place in (at, scale, scale + 1)]
            if any(part is None for part in parts):
                return None
            integers, scales, zeros = (part for part in parts if part is not None)
            shaped = [part.reshape(integers.shape[0], 1, -1).astype(np.float32) for part in (scales, zeros)]
            numbers = (integers.astype(np.float32) - shaped[1]) * shaped[0]
            turned.append(constant(self._known, f"{node.output[0]}_{names[at]}", numbers.transpose(0, 2, 1)))
        plain = helper.make_node("LSTM", [names[0], *turned, *names[3:8]], node.output, name=node.name)
        plain.attribute.extend(node.attribute)
        return plain
