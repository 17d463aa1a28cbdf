"""ONNX Runtime's QLinear operators in floating point between pairs of QuantizeLinear and DequantizeLinear, and what constant integers stand for.

Their definitions: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fettle.optimizer.onnx import model as onnx_model
from fettle.optimizer.onnx.fuse import Graph
from fettle.runtimes.base import Array


@dataclass(frozen=True)
class _QLinear:
    """Where a QLinear operator has its inputs: operands as (value, scale, zero point), the result's (scale, zero point), and a bias.

    `columns`: the axis of the second operand along which its scale may vary.
    """

    kind: str
    operands: tuple[tuple[int, int, int], ...]
    result: tuple[int, int]
    bias: int | None = None
    columns: int = -1


_FIRST, _SECOND = (0, 1, 2), (3, 4, 5)
_QLINEAR = {
    "QLinearConv": _QLinear("Conv", (_FIRST, _SECOND), (6, 7), bias=8, columns=0),
    "QGemm": _QLinear("Gemm", (_FIRST, _SECOND), (7, 8), bias=6),
    **{f"QLinear{kind}": _QLinear(kind, (_FIRST, _SECOND), (6, 7)) for kind in ("MatMul", "Add", "Mul")},
    **{
        f"QLinear{kind}": _QLinear(kind, (_FIRST,), (3, 4))
        for kind in ("Sigmoid", "LeakyRelu", "Softmax", "AveragePool", "GlobalAveragePool")
    },
}
_ONE_AXIS = 13  # the opset since which a softmax is over one axis
_OF_QLINEAR_ONLY = ("channels_last", "opset")  # attributes


class QLinearOperators:
    """Each becomes its floating-point operator between pairs."""

    def __init__(self, known: Graph, opset: int) -> None:
        self._known, self._opset = known, opset

    def __call__(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        rule = _QLINEAR.get(node.op_type)
        if node.op_type == "QLinearConcat":  # scale and zero point of the result, then the operands
            operands = tuple((at, at + 1, at + 2) for at in range(2, len(node.input), 3))
            rule = _QLinear("Concat", operands, (0, 1))
        if rule is None or onnx_model.attribute(node, "channels_last"):
            yield node
            return
        names = [*node.input, *[""] * 3]
        out, biases = node.output[0], self._bias(node, rule)
        if biases is None or self._newer_softmax(node):
            yield node
            return
        given = [
            self._operand(node, rule, place, [names[at] for at in rule.operands[place]])
            for place in range(len(rule.operands))
        ]
        yield from (pair for _, pair in given if pair is not None)
        # A QGemm without a scale answers in float32.
        plain = fresh(self._known, f"{out}_plain") if names[rule.result[0]] else out
        made = helper.make_node(rule.kind, [*[name for name, _ in given], *biases], [plain], name=f"{out}_{rule.kind}")
        made.attribute.extend(a for a in node.attribute if a.name not in _OF_QLINEAR_ONLY)
        yield from self._softmax(node, made) if rule.kind == "Softmax" else (made,)
        if plain != out:
            result = [names[at] for at in rule.result]
            yield helper.make_node("QuantizeLinear", [plain, *result], [out], name=f"{out}_quantized")

    def _newer_softmax(self, node: onnx.NodeProto) -> bool:
        """Whether this is a softmax over another axis than the last, which the model's opset does not have."""
        over_one = (
            node.op_type == "QLinearSoftmax" and onnx_model.attribute(node, "opset", 0) >= _ONE_AXIS > self._opset
        )
        return bool(over_one and onnx_model.attribute(node, "axis", -1) != -1)

    def _softmax(self, node: onnx.NodeProto, made: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Before opset 13, a softmax was over all dimensions from its axis on, and the attribute `opset` says which one this is."""
        axis, (value,), (out,) = onnx_model.attribute(node, "axis", -1), made.input, made.output
        del made.attribute[:]
        if axis == -1 or onnx_model.attribute(node, "opset", 0) >= _ONE_AXIS or self._opset < _ONE_AXIS:
            made.attribute.append(helper.make_attribute("axis", axis))
            yield made
            return
        flat, soft, shape = (fresh(self._known, f"{out}_{word}") for word in ("flat", "soft", "shape"))
        yield helper.make_node("Shape", [value], [shape], name=shape)
        yield helper.make_node("Flatten", [value], [flat], name=flat, axis=axis)
        yield helper.make_node("Softmax", [flat], [soft], name=soft, axis=-1)
        yield helper.make_node("Reshape", [soft, shape], [out], name=made.name)

    def _operand(
        self, node: onnx.NodeProto, rule: _QLinear, place: int, names: list[str]
    ) -> tuple[str, onnx.NodeProto | None]:
        """The name of an operand in float32, and the node that makes it where it is no constant."""
        name = fresh(self._known, f"{node.output[0]}_operand{place}")
        numbers = numbers_of(self._known, names[0], names[1], names[2], _columns(node, rule))
        if numbers is not None:
            return constant(self._known, name, numbers), None
        return name, helper.make_node("DequantizeLinear", names, [name], name=f"{name}_dequantized")

    def _bias(self, node: onnx.NodeProto, rule: _QLinear) -> list[str] | None:
        """The name of the bias in float32, if there is one: it counts in products of both operands. None if its numbers are not in the file."""
        if rule.bias is None or len(node.input) <= rule.bias or not node.input[rule.bias]:
            return []
        integers = self._known.value(node.input[rule.bias])
        scales = [self._known.value(node.input[scale]) for _, scale, _ in rule.operands]
        if integers is None or scales[0] is None or scales[1] is None:
            return None
        alpha = onnx_model.attribute(node, "alpha", 1.0)  # QGemm's
        numbers = integers.astype(np.float32) * scales[0] * scales[1] * np.float32(alpha)
        return [constant(self._known, f"{node.output[0]}_bias", numbers)]


def _columns(node: onnx.NodeProto, rule: _QLinear) -> int:
    """The axis of the weights that is the result's columns."""
    return 0 if onnx_model.attribute(node, "transB") else rule.columns


def constant(known: Graph, name: str, array: Array) -> str:
    """A new constant of float32, and its name."""
    name = fresh(known, name)
    known.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32, order="C"), name))
    known.stored[name] = known.graph.initializer[-1]
    return name


def fresh(known: Graph, name: str) -> str:
    """`name`, or one like it that no tensor has."""
    while name in known.stored or name in known.made or known.uses[name]:
        name += "_"
    return name


def numbers_of(known: Graph, value: str, scale: str, zero: str, axis: int) -> Array | None:
    """What constant integers stand for; None where a part is not in the file, or scales vary otherwise than along `axis`."""
    integers, scales = known.value(value), known.value(scale)
    zeros = known.value(zero) if zero else np.zeros((), np.int32)
    return None if integers is None or scales is None or zeros is None else scaled(integers, scales, zeros, axis)


def scaled(integers: Array, scales: Array, zeros: Array, axis: int) -> Array | None:
    """(integers - zeros) * scales, where these are one number, one for each place along `axis`, or of a shape of their own beside the integers'."""
    parts = [_beside(integers, part.astype(np.float32), axis) for part in (scales, zeros)]
    if parts[0] is None or parts[1] is None:
        return None
    numbers: Array = (integers.astype(np.float32) - parts[1]) * parts[0]
    return numbers


def _beside(integers: Array, part: Array, axis: int) -> Array | None:
    if part.size == 1:
        return part.reshape(())
    if part.ndim == 1 and -integers.ndim <= axis < integers.ndim and part.size == integers.shape[axis]:
        along = [1] * integers.ndim
        along[axis] = -1
        return part.reshape(along)
    fits = part.ndim == integers.ndim > 1 and all(
        size in (1, whole) for size, whole in zip(part.shape, integers.shape, strict=True)
    )
    return part if fits else None
