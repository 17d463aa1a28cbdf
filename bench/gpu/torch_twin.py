"""The subjects of `bench/gpu/check.py` as TorchScript: the same weights and operators as in their ONNX files, so that answers can be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from fettle.runtimes.base import Array

Attributes = dict[str, Any]
Operator = Callable[[list[torch.Tensor], Attributes], torch.Tensor]


def _padding(attributes: Attributes) -> list[int]:
    """PyTorch pads both ends of a dimension alike; so do these models."""
    pads = attributes.get("pads", [0, 0, 0, 0])
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        raise ValueError(f"the ends of a dimension have different pads: {pads}")
    return list(pads[:half])


def _conv(values: list[torch.Tensor], given: Attributes) -> torch.Tensor:
    strides, groups = given.get("strides", 1), given.get("group", 1)
    dilations = given.get("dilations", 1)
    return functional.conv2d(*values, stride=strides, padding=_padding(given), dilation=dilations, groups=groups)


def _gemm(values: list[torch.Tensor], given: Attributes) -> torch.Tensor:
    weight = values[1] if given.get("transB", 0) else values[1].t()
    return functional.linear(values[0], weight, *values[2:])


def _mean(values: list[torch.Tensor], given: Attributes) -> torch.Tensor:
    axes = given["axes"] if len(values) == 1 else values[1].tolist()
    return values[0].mean(list(axes), keepdim=bool(given.get("keepdims", 1)))


def _reshape(values: list[torch.Tensor], given: Attributes) -> torch.Tensor:
    sizes = values[1].tolist()
    return values[0].reshape([size or values[0].shape[place] for place, size in enumerate(sizes)])


def _max_pool(values: list[torch.Tensor], given: Attributes) -> torch.Tensor:
    return functional.max_pool2d(values[0], given["kernel_shape"], given.get("strides", 1), _padding(given))


OPERATORS: dict[str, Operator] = {
    "Add": lambda values, given: values[0] + values[1],
    "Conv": _conv,
    "Flatten": lambda values, given: values[0].flatten(given.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda values, given: values[0].mean((2, 3), keepdim=True),
    "MatMul": lambda values, given: values[0] @ values[1],
    "MaxPool": _max_pool,
    "ReduceMean": _mean,
    "Relu": lambda values, given: values[0].relu(),
    "Reshape": _reshape,
}


class Twin(torch.nn.Module):  # type: ignore[misc]  # PyTorch's types are not looked at
    """The nodes of an ONNX graph as PyTorch computes them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._input, self._outputs = model.graph.input[0].name, [output.name for output in model.graph.output]
        self._names: dict[str, str] = {}
        self._sizes: dict[str, torch.Tensor] = {}  # read on the CPU, wherever the weights are
        for number, stored in enumerate(model.graph.initializer):
            tensor = torch.from_numpy(numpy_helper.to_array(stored).copy())
            if tensor.is_floating_point():
                self._names[stored.name] = f"w{number}"
                self.register_buffer(self._names[stored.name], tensor)
            else:
                self._sizes[stored.name] = tensor
        self._steps = [
            (OPERATORS[node.op_type], list(node.input), node.output[0], _attributes(node)) for node in model.graph.node
        ]

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by name."""
        values = {**self._sizes, self._input: image, **{name: getattr(self, own) for name, own in self._names.items()}}
        for operator, inputs, output, given in self._steps:
            values[output] = operator([values[name] for name in inputs], given)
        return {name: values[name] for name in self._outputs}


def _attributes(node: onnx.NodeProto) -> Attributes:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def twin(entry: Path) -> Any:
    """The model at `entry` in eager PyTorch. Raises KeyError for an operator that is not among those of the subjects."""
    return Twin(onnx.load(entry)).eval()


def script(entry: Path, feed: Array, target: Path) -> Path:
    """The model at `entry` as TorchScript at `target`. Raises as `twin`."""
    with torch.no_grad():
        traced = torch.jit.trace(twin(entry), torch.from_numpy(feed), strict=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.save(traced, target)
    return target
