"""The models of `bench/serve.py`, with made-up weights: what they compute is of no matter, how much they compute is. And requests for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fettle.api.signature import BY_V2, Signature, Tensor
from fettle.store.arrays import Array


@dataclass(frozen=True)
class ServedCase:
    """A model. `item`: the shape of one, without the batch axis."""

    name: str
    what: str
    make: Callable[[], onnx.ModelProto]
    dtype: str
    item: tuple[int, ...]
    classes: int

    @property
    def signature(self) -> Signature:
        """Its one input and its one output, items along the first axis."""
        given = Tensor(name="x", dtype=self.dtype, shape=(-1, *self.item), batch_axis=0)
        answer = Tensor(name="y", dtype="FP32", shape=(-1, self.classes), batch_axis=0)
        return Signature(inputs=(given,), outputs=(answer,))

    def items(self, count: int) -> Array:
        """Some items."""
        rng, dtype = np.random.default_rng(0), np.dtype(BY_V2[self.dtype].numpy)
        if dtype.kind == "i":
            return rng.integers(0, VOCABULARY, (count, *self.item)).astype(dtype)
        return rng.standard_normal((count, *self.item)).astype(dtype)

    def json_body(self) -> bytes:
        """A request of one item: Open Inference Protocol V2."""
        item = self.items(1)
        data = [round(value, 6) if isinstance(value, float) else value for value in item.reshape(-1).tolist()]
        tensor = {"name": "x", "datatype": self.dtype, "shape": list(item.shape), "data": data}
        return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()

    def binary_body(self) -> tuple[bytes, int]:
        """The same with the binary tensor extension, answer included; and how long its JSON is."""
        item = self.items(1)
        size = {"binary_data_size": item.nbytes}
        tensor = {"name": "x", "datatype": self.dtype, "shape": list(item.shape), "parameters": size}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}, separators=(",", ":"))
        return head.encode() + item.tobytes(), len(head)


class _Graph:
    """Nodes and weights, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(1)

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Random numbers, small enough for what comes out to stay in range."""
        size = scale if scale is not None else (2 / max(1, int(np.prod(shape[1:])))) ** 0.5
        values = (self._rng.standard_normal(shape) * size).astype(np.float32)
        return self.constant(values)

    def constant(self, values: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def convolution(self, x: str, into: int, out: int, size: int, stride: int = 1, relu: bool = True) -> str:
        pads = [size // 2] * 4
        x = self.add("Conv", x, self.weight(out, into, size, size), strides=[stride] * 2, pads=pads)
        return self.add("Relu", x) if relu else x

    def model(self, dtype: int, item: tuple[int, ...], classes: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "served",
            [helper.make_tensor_value_info("x", dtype, ["N", *item])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def tiny_cnn() -> onnx.ModelProto:
    """Two convolutions over 8 x 8 numbers, 10 classes: a run takes about what it takes to call the runtime."""
    graph = _Graph()
    x = graph.convolution(graph.convolution("x", 1, 8, 3), 8, 16, 3)
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    graph.add("Gemm", x, graph.weight(16, 10), graph.weight(10), output="y")
    return graph.model(TensorProto.FLOAT, (1, 8, 8), 10)


def resnet50() -> onnx.ModelProto:
    """ResNet-50 for pictures of 224 x 224, batch normalization folded away: 25 million weights, 4 billion multiplications."""
    graph = _Graph()
    x = graph.convolution("x", 3, 64, 7, 2)
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    into = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = graph.convolution(graph.convolution(x, into, width, 1), width, width, 3, stride)
            y = graph.convolution(y, width, 4 * width, 1, relu=False)
            if not block:
                x = graph.convolution(x, into, 4 * width, 1, stride, relu=False)
            x, into = graph.add("Relu", graph.add("Add", x, y)), 4 * width
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    graph.add("Gemm", x, graph.weight(2048, 1000), graph.weight(1000), output="y")
    return graph.model(TensorProto.FLOAT, (3, 224, 224), 1000)


VOCABULARY, TOKENS, WIDTH, HEADS, LAYERS = 30522, 128, 384, 12, 6


def encoder() -> onnx.ModelProto:
    """A text encoder of MiniLM's size (6 layers, 384 wide, 22 million weights) that takes 128 token ids and gives the mean vector."""
    graph = _Graph()
    half = graph.constant(np.array(0.5, np.float32))
    one = graph.constant(np.array(1, np.float32))
    root_half = graph.constant(np.array(0.5**0.5, np.float32))
    scale = graph.constant(np.array((WIDTH // HEADS) ** -0.5, np.float32))
    split = graph.constant(np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
    merge = graph.constant(np.array([0, 0, WIDTH], np.int64))
    x = graph.add("Gather", graph.weight(VOCABULARY, WIDTH, scale=1.0), "x")
    x = graph.add("Add", x, graph.weight(TOKENS, WIDTH, scale=0.1))

    def linear(x: str, into: int, out: int) -> str:
        return graph.add("Add", graph.add("MatMul", x, graph.weight(into, out)), graph.weight(out))

    def normalized(x: str) -> str:
        weights = (graph.constant(np.ones(WIDTH, np.float32)), graph.constant(np.zeros(WIDTH, np.float32)))
        return graph.add("LayerNormalization", x, *weights, axis=-1)

    def heads(x: str, order: list[int]) -> str:
        return graph.add("Transpose", graph.add("Reshape", linear(x, WIDTH, WIDTH), split), perm=order)

    for _ in range(LAYERS):
        queries, keys, values = heads(x, [0, 2, 1, 3]), heads(x, [0, 2, 3, 1]), heads(x, [0, 2, 1, 3])
        attention = graph.add("Softmax", graph.add("Mul", graph.add("MatMul", queries, keys), scale), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", attention, values), perm=[0, 2, 1, 3])
        x = normalized(graph.add("Add", x, linear(graph.add("Reshape", mixed, merge), WIDTH, WIDTH)))
        inner = linear(x, WIDTH, 4 * WIDTH)
        gate = graph.add("Add", graph.add("Erf", graph.add("Mul", inner, root_half)), one)
        inner = graph.add("Mul", graph.add("Mul", inner, gate), half)
        x = normalized(graph.add("Add", x, linear(inner, 4 * WIDTH, WIDTH)))
    graph.add("ReduceMean", x, axes=[1], keepdims=0, output="y")
    return graph.model(TensorProto.INT64, (TOKENS,), WIDTH)


CASES = (
    ServedCase("tiny-cnn", "two convolutions over 8 x 8 numbers", tiny_cnn, "FP32", (1, 8, 8), 10),
    ServedCase("resnet50", "ResNet-50, pictures of 224 x 224", resnet50, "FP32", (3, 224, 224), 1000),
    ServedCase("encoder", "a text encoder of MiniLM's size, 128 tokens", encoder, "INT64", (TOKENS,), WIDTH),
)
BY_NAME = {case.name: case for case in CASES}


def written(case: ServedCase, folder: Path) -> Path:
    """The model's file below `folder`, alone in its own; made when it is not there yet."""
    path = folder / "models" / case.name / "model.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        onnx.save(case.make(), partial)
        partial.replace(path)
    return path
