"""Models that loop over sequences."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from tests.data.models import model, stored, tensor


def carried_weights() -> onnx.ModelProto:
    """A recurrent layer as a loop that carries its weights, as exporters of while loops write it; the batch is the second axis."""
    steps = [
        helper.make_node("Gather", ["frames", "step"], ["frame"], axis=0),
        helper.make_node("MatMul", ["frame", "kernel_in"], ["seen"], name="seen"),
        helper.make_node("MatMul", ["state_in", "again_in"], ["kept"], name="kept"),
        helper.make_node("Add", ["seen", "kept"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["state_out"]),
        helper.make_node("Add", ["step", "one"], ["step_out"]),
        helper.make_node("Identity", ["going_on"], ["goes_on"]),
        helper.make_node("Identity", ["kernel_in"], ["kernel_out"]),
        helper.make_node("Identity", ["again_in"], ["again_out"]),
    ]
    carried: list[tuple[str, int, list[int | str | None]]] = [
        ("step", TensorProto.INT64, []),
        ("state", TensorProto.FLOAT, [None, 8]),
        ("kernel", TensorProto.FLOAT, [6, 8]),
        ("again", TensorProto.FLOAT, [8, 8]),
    ]
    given = [tensor("iteration", [], TensorProto.INT64), tensor("going_on", [], TensorProto.BOOL)]
    given += [tensor("step" if name == "step" else f"{name}_in", shape, kind) for name, kind, shape in carried]
    made = [tensor("goes_on", [], TensorProto.BOOL)]
    made += [tensor(f"{name}_out", shape, kind) for name, kind, shape in carried]
    body = helper.make_graph(steps, "body", given, made, [stored("one", 1, "int64")])
    nodes = [
        helper.make_node("Shape", ["frames"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"], axis=0),
        helper.make_node("ReduceMean", ["frames"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("MatMul", ["mean", "w0"], ["first"]),
        helper.make_node(
            "Loop", ["count", "yes", "zero", "first", "kernel", "again"], ["last_step", "last", "k", "a"], body=body
        ),
        helper.make_node("MatMul", ["last", "a"], ["scores"]),
    ]
    random = np.random.default_rng(53)
    weights = [stored("zero", 0, "int64"), stored("yes", True, "bool")]
    weights += [stored(name, random.standard_normal(shape) / 3) for name, shape in (("w0", (6, 8)), ("kernel", (6, 8)))]
    weights.append(stored("again", random.standard_normal((8, 8)) / 3))
    return model(nodes, [tensor("frames", ["T", "batch", 6])], [tensor("scores", ["batch", 8])], weights)


def stacked() -> onnx.ModelProto:
    """Two LSTM layers, one behind the other, and a linear layer; the batch is the second axis."""
    random = np.random.default_rng(59)
    nodes = [
        helper.make_node("LSTM", ["frames", "w0", "r0"], ["all0"], hidden_size=8, name="first"),
        helper.make_node("Squeeze", ["all0", "direction"], ["steps0"]),
        helper.make_node("LSTM", ["steps0", "w1", "r1"], ["all1"], hidden_size=8, name="second"),
        helper.make_node("Squeeze", ["all1", "direction"], ["steps1"]),
        helper.make_node("MatMul", ["steps1", "w2"], ["scores"]),
    ]
    weights = [stored("direction", [1], "int64"), stored("w2", random.standard_normal((8, 4)))]
    shapes = {"w0": (1, 32, 6), "r0": (1, 32, 8), "w1": (1, 32, 8), "r1": (1, 32, 8)}
    weights += [stored(name, random.standard_normal(shape) / 3) for name, shape in shapes.items()]
    return model(nodes, [tensor("frames", ["T", "batch", 6])], [tensor("scores", ["T", "batch", 4])], weights)
