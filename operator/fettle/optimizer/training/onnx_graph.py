"""An ONNX graph taken back into PyTorch, so that it can be trained: onnx2pytorch makes a module of it, torch.export a graph of that."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx2pytorch import ConvertModel
from torch import nn

from fettle.api.signature import Signature
from fettle.api.text import quoted
from fettle.errors import RecipeError
from fettle.optimizer.onnx import model as onnx_model

REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
}
ADVICE = "provide the source as a torch.export program, or remove the steps that train from the recipe"


def exported(path: Path, signature: Signature, example: Sequence[torch.Tensor], shapes: Any) -> Any:
    """The graph at `path` as a program of torch.export. Raises RecipeError naming the operator that PyTorch or the converter lacks."""
    model = onnx_model.load(path)
    names = [value.name for value in onnx_model.inputs(model.graph)]
    if names != [tensor.name for tensor in signature.inputs]:
        message = (
            f"the graph takes {', '.join(names)}, but the artifact has other inputs: models with inputs "
            "made constant (source.inputs[].value) cannot be trained"
        )
        raise RecipeError(message)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ConvertModel(model).eval()
            _fix_shapes(module, model)
            _part_constants(module)
            return torch.export.export(module, tuple(example), dynamic_shapes={"input_list": shapes}, strict=False)
    except NotImplementedError as error:
        operator = str(error).rpartition("op_type=")[2].rstrip(".") or quoted(error)
        raise RecipeError(f"{operator} cannot be converted from ONNX to PyTorch: {ADVICE}") from error
    except Exception as error:  # both libraries raise what they like
        message = (
            f"the ONNX graph could not be converted to PyTorch ({type(error).__name__}: {quoted(error, 200)}): {ADVICE}"
        )
        raise RecipeError(message) from error


class _Reduce(nn.Module):
    """A reduction over axes that are known while the graph is traced."""

    def __init__(self, reduce: Callable[..., torch.Tensor], axes: Sequence[int], keep: bool) -> None:
        super().__init__()
        self.reduce, self.axes, self.keep = reduce, tuple(axes), keep

    def forward(self, data: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Over the axes."""
        return self.reduce(data, self.axes, self.keep)


class _Reshape(nn.Module):
    """A shape that is known while the graph is traced: 0 is the input's own size, unless it may be one."""

    def __init__(self, shape: Sequence[int], own: bool) -> None:
        super().__init__()
        self.shape, self.own = tuple(shape), own

    def forward(self, data: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """In the shape."""
        sizes = (data.shape[axis] if size == 0 and self.own else size for axis, size in enumerate(self.shape))
        return data.reshape(tuple(sizes))


def _fix_shapes(module: nn.Module, model: onnx.ModelProto) -> None:
    """Axes and shapes that the file stores: the converter reads them from tensors, which have no values while a graph is traced."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        second = stored.get(node.input[1]) if len(node.input) > 1 else None
        numbers = onnx.numpy_helper.to_array(second).reshape(-1).tolist() if second is not None else given.get("axes")
        if numbers is None:
            continue
        if node.op_type in REDUCTIONS:
            made: nn.Module = _Reduce(REDUCTIONS[node.op_type], numbers, bool(given.get("keepdims", 1)))
        elif node.op_type == "Reshape":
            made = _Reshape(numbers, not given.get("allowzero", 0))
        else:
            continue
        setattr(module, module.mapping[node.output[0]], made)


def _part_constants(module: nn.Module) -> None:
    """Weights become parameters, which are trained; whole numbers become plain attributes, for shapes are known while a graph is traced."""
    for name, value in list(module._buffers.items()):
        if value is None:
            continue
        del module._buffers[name]
        if value.is_floating_point() and value.numel() > 1:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.__dict__[name] = value
