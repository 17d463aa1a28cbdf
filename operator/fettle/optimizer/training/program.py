"""Models that PyTorch can train: opened from a program of torch.export or from ONNX, and written as a program again.

All that trains works on one form: a graph whose inputs are tensors in the order of the signature's inputs, and whose answer is a tuple in the
order of its outputs. Files that steps hand on to each other hold that form under names of its own (`input_0`, `output_0`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.nn import Module as Module

from fettle.api.signature import Signature
from fettle.errors import RecipeError
from fettle.optimizer.training.functional import without_changes_in_place
from fettle.optimizer.training.layers import as_layers
from fettle.runtimes.base import Array
from fettle.runtimes.torchscript import open_program, to_array, to_tensor


def opened(path: Path, signature: Signature, example: Sequence[torch.Tensor] = ()) -> fx.GraphModule:
    """The model at `path` in evaluation mode, with gradients for its weights. `example`: what one run takes; an ONNX graph needs it.

    Raises RecipeError, RuntimeFailure.
    """
    module = _from_onnx(path, signature, example) if path.suffix == ".onnx" else _from_program(path, signature)
    for weight in module.parameters():
        weight.requires_grad_(weight.is_floating_point())
    return module.eval()


def _from_program(path: Path, signature: Signature) -> fx.GraphModule:
    program = open_program(path)
    if program.exported is None:
        raise RecipeError("a TorchScript archive has no graph that can be trained: export the model with torch.export")
    module = program.exported.module(check_guards=False)
    wanted = [tensor.name for tensor in signature.inputs]
    names = list(program.inputs)
    order = names if set(names) != set(wanted) and names == own_inputs(len(wanted)) else wanted
    if set(order) != set(names):
        message = (
            f"the model takes {', '.join(names)}, and the artifact {', '.join(wanted)}: models with inputs "
            "made constant (source.inputs[].value) cannot be trained"
        )
        raise RecipeError(message)
    _make_plain(module, names, order)
    return as_layers(module)


def own_inputs(count: int) -> list[str]:
    """Names of inputs in files that steps hand on."""
    return [f"input_{place}" for place in range(count)]


def own_outputs(count: int) -> list[str]:
    """Names of outputs in files that steps hand on."""
    return [f"output_{place}" for place in range(count)]


def _make_plain(module: fx.GraphModule, tensors: Sequence[str], order: Sequence[str]) -> None:
    """Inputs: only the tensors, in `order`. Output: a flat tuple. Checks of shapes go, for shapes are going to change, and so do changes in place."""
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())
    for node in list(graph.nodes):
        if node.op == "call_function" and "_assert" in str(node.target) and not node.users:
            graph.erase_node(node)
    places = [node for node in graph.nodes if node.op == "placeholder"]
    named = {}
    for node in places:
        if node.name in tensors or node.target in tensors:
            named[node.target if node.target in tensors else node.name] = node
        elif not node.users:
            graph.erase_node(node)
        else:
            raise RecipeError(f"the input {node.name!r} is not a tensor, and the model computes with it")
    without_changes_in_place(graph)
    first = next(iter(graph.nodes))
    for name in reversed(order):
        node = named[name]
        if node is not first:
            first.prepend(node)
            first = node
    graph.lint()
    module.recompile()


def _from_onnx(path: Path, signature: Signature, example: Sequence[torch.Tensor]) -> fx.GraphModule:
    from fettle.optimizer.training.onnx_graph import exported

    module = exported(path, signature, example, varying(signature)).module(check_guards=False)
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    _make_plain(module, names, names)
    return as_layers(module)


def varying(signature: Signature) -> tuple[dict[int, Any], ...]:
    """The dimensions of each input that vary, as torch.export takes them."""
    return tuple(
        {
            axis: torch.export.Dim.DYNAMIC if axis == tensor.batch_axis else torch.export.Dim.AUTO
            for axis, size in enumerate(tensor.shape)
            if size < 0
        }
        for tensor in signature.inputs
    )


def call(module: Module, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The answer as a tuple."""
    return as_tuple(module(*inputs))


def as_tuple(answer: Any) -> tuple[torch.Tensor, ...]:
    """An answer of one tensor or several, as a tuple."""
    return tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)


def runner(module: Module, signature: Signature) -> Any:
    """A function from arrays by name to arrays by name, as `base.Session.infer`."""

    def run(given: Any) -> dict[str, Array]:
        with torch.inference_mode():
            answers = call(module, [to_tensor(given[tensor.name]) for tensor in signature.inputs])
        return {tensor.name: to_array(answer) for tensor, answer in zip(signature.outputs, answers, strict=True)}

    return run
