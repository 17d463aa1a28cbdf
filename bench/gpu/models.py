"""The models that `bench/gpu/check.py` runs: the example's, and ResNet-50 at 384 px with made-up weights, which serve for time only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
# He et al. 2016, table 1: width, bottlenecks, stride of the first.
BLOCKS = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class _Graph:
    """A graph in the making. Weights follow He et al. 2015, so that values keep their size from layer to layer."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(50)

    def add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, value: str, shape: tuple[int, int, int], stride: int = 1, gain: float = 1.0) -> str:
        """`shape`: channels in, out, and the kernel's size. The batch norm behind it is folded into it, as exporters do."""
        inside, outside, size = shape
        scale = gain * np.sqrt(2 / (inside * size * size))
        kernel = self.weight(self._random.standard_normal((outside, inside, size, size)) * scale)
        bias = self.weight(np.zeros(outside))
        return self.add(
            "Conv", [value, kernel, bias], strides=[stride] * 2, pads=[size // 2] * 4, kernel_shape=[size] * 2
        )

    def bottleneck(self, value: str, inside: int, width: int, stride: int) -> str:
        """What is added to the shortcut is scaled down, or sixteen sums would grow."""
        inner = self.add("Relu", [self.conv(value, (inside, width, 1))])
        inner = self.add("Relu", [self.conv(inner, (width, width, 3), stride)])
        inner = self.conv(inner, (width, 4 * width, 1), gain=0.25)
        shortcut = value if inside == 4 * width else self.conv(value, (inside, 4 * width, 1), stride, gain=0.7)
        return self.add("Relu", [self.add("Add", [inner, shortcut])])


def resnet50(path: Path, pixels: int = 384) -> Path:
    """ResNet-50 for pictures [N, 3, pixels, pixels] and 1,000 classes, at `path`."""
    graph = _Graph()
    value = graph.add("Relu", [graph.conv("image", (3, 64, 7), 2)])
    value = graph.add("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inside = 64
    for width, count, stride in BLOCKS:
        for number in range(count):
            value = graph.bottleneck(value, inside, width, stride if number == 0 else 1)
            inside = 4 * width
    value = graph.add("Flatten", [graph.add("GlobalAveragePool", [value])])
    random = np.random.default_rng(1000)
    product = graph.weight(random.standard_normal((inside, 1000)) / np.sqrt(inside))
    value = graph.add("Gemm", [value, product, graph.weight(np.zeros(1000))])
    graph.nodes[-1].output[0] = "logits"
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["N", 3, pixels, pixels]), ("logits", ["N", 1000]))
    ]
    made = helper.make_graph(graph.nodes, "resnet50", tensors[:1], tensors[1:], graph.weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def digits() -> tuple[Path, np.ndarray]:
    """The example's model, and its evaluation items."""
    folder = ROOT / "examples" / "digits"
    with np.load(folder / "evaluation.npz", allow_pickle=False) as stored:
        return folder / "first" / "model.onnx", stored["image"]


def two_of_four(entry: Path, target: Path) -> Path:
    """The model at `entry` with the two smallest of each four neighbouring weights set to zero, along the axis that its products are summed over."""
    model = onnx.load(entry)
    axes = {node.input[1]: 1 if node.op_type == "Conv" else 0 for node in model.graph.node if len(node.input) > 1}
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor).copy()
        axis = axes.get(tensor.name)
        if axis is None or weight.ndim < 2 or weight.shape[axis] % 4:
            continue
        moved = np.moveaxis(weight, axis, -1)
        groups = moved.reshape(-1, 4).copy()
        np.put_along_axis(groups, np.abs(groups).argsort(1)[:, :2], 0, axis=1)
        weight = np.moveaxis(groups.reshape(moved.shape), -1, axis)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight), tensor.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)
    return target
