"""A graph of ATen operators made one of layers: what a program of torch.export calls with weights becomes a module that holds them.

Tools that change architectures know layers (`nn.Conv2d`), and a layer trains as it did: batch normalization learns its statistics again,
dropout drops.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten
HANDED_ON = "named.module."  # where the files that steps hand on have their layers (`export.save`)
ADDS = (operator.add, operator.iadd, torch.add, aten.add.Tensor, aten.add_.Tensor)
SIZES = (aten.sym_size.int,)  # of a tensor: what is made of one has none of its values
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)  # whose products are the work: what is pruned, made sparse and quantized
Arguments = dict[str, Any]
Maker = Callable[[Arguments], nn.Module]


def as_layers(module: fx.GraphModule) -> fx.GraphModule:
    """`module` with a layer for each call that has weights of its own. Calls with the same weights share a layer."""
    graph = module.graph
    made: dict[tuple[Any, ...], str] = {}
    for node in list(graph.nodes):
        maker = MAKERS.get(node.target) if node.op == "call_function" else None
        if maker is None:
            continue
        given = _arguments(module, node)
        if given is None:
            continue
        data, arguments, names = given
        key = (str(node.target), *names, *_hashable(arguments))
        layer = maker(arguments)
        if layer is None:
            continue
        if not names:
            key = (*key, node.name)
        if key not in made:
            made[key] = _free(module, names[0].rpartition(".")[0] if names else node.name)
            module.add_submodule(made[key], layer)
        with graph.inserting_before(node):
            called = graph.call_module(made[key], (data,))
        called.meta = node.meta
        node.replace_all_uses_with(called)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return fx.GraphModule(module, graph)


def _arguments(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, Arguments, tuple[str, ...]] | None:
    """What goes into the layer, its other arguments by name with weights as tensors, and the weights' names. None: computed weights."""
    schema = list(node.target._schema.arguments)
    arguments = {argument.name: argument.default_value for argument in schema}
    arguments |= dict(zip((argument.name for argument in schema), node.args, strict=False)) | dict(node.kwargs)
    place = "indices" if node.target is aten.embedding.default else schema[0].name
    data = arguments.pop(place)
    names = []
    for name, value in arguments.items():
        if not isinstance(value, fx.Node):
            continue
        if value.op != "get_attr":
            return None
        names.append(str(value.target))
        arguments[name] = _attribute(module, str(value.target))
    return (data, arguments, tuple(names)) if isinstance(data, fx.Node) else None


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _hashable(arguments: Arguments) -> list[str]:
    return [f"{name}={value}" for name, value in arguments.items() if not isinstance(value, torch.Tensor)]


def _free(module: nn.Module, wanted: str) -> str:
    """A name for a layer that no other has: the same each time that a step opens what the one before it made."""
    base = wanted.removeprefix(HANDED_ON).replace(".", "_").removesuffix("_layer") or "layer"
    number, name = 0, f"{base}_layer"
    while hasattr(module, name):
        number += 1
        name = f"{base}_layer_{number}"
    return name


def _weights(layer: nn.Module, given: Arguments, **names: str) -> nn.Module:
    """`layer` with the weights that were given: as parameters where they are floats, shared with whoever else has them."""
    for own, name in names.items():
        value = given.get(name)
        if isinstance(value, nn.Parameter) or value is None:
            layer.register_parameter(own, value)
        else:
            setattr(layer, own, nn.Parameter(value))
    return layer


def _convolution(kind: type[nn.Module]) -> Maker:
    transposed = issubclass(kind, nn.modules.conv._ConvTransposeNd)

    def make(given: Arguments) -> nn.Module:
        weight, groups, padding = given["weight"], given["groups"], given["padding"]
        rank, sizes = weight.ndim - 2, (weight.shape[0], weight.shape[1] * groups)
        layer = kind(
            *(sizes if transposed else reversed(sizes)),
            tuple(weight.shape[2:]),
            stride=_each(given["stride"], rank),
            padding=padding if isinstance(padding, str) else _each(padding, rank),
            dilation=_each(given["dilation"], rank),
            groups=groups,
            bias=given["bias"] is not None,
            device="meta",
            **({"output_padding": _each(given["output_padding"], rank)} if transposed else {}),
        )
        return _weights(layer, given, weight="weight", bias="bias")

    return make


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * rank if len(values) == 1 else values


def _linear(given: Arguments) -> nn.Module:
    outputs, inputs = given["weight"].shape
    layer = nn.Linear(inputs, outputs, bias=given["bias"] is not None, device="meta")
    return _weights(layer, given, weight="weight", bias="bias")


class _BatchNorm(nn.BatchNorm2d):
    """Of any rank: the graph says what goes in."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Nothing to check."""


def _batch_norm(given: Arguments) -> nn.Module | None:
    mean, variance = given["running_mean"], given["running_var"]
    if mean is None or variance is None:
        return None
    layer = _BatchNorm(len(mean), eps=given["eps"], momentum=given["momentum"], affine=given["weight"] is not None)
    layer.running_mean, layer.running_var = mean.detach().clone(), variance.detach().clone()
    return _weights(layer, given, weight="weight", bias="bias") if given["weight"] is not None else layer


def _layer_norm(given: Arguments) -> nn.Module:
    affine = given["weight"] is not None
    layer = nn.LayerNorm(tuple(given["normalized_shape"]), given["eps"], affine, bias=given["bias"] is not None)
    return _weights(layer, given, weight="weight", bias="bias") if affine else layer


def _embedding(given: Arguments) -> nn.Module:
    rows, columns = given["weight"].shape
    return _weights(nn.Embedding(rows, columns, device="meta"), given, weight="weight")


def _dropout(kind: Callable[[float], nn.Module]) -> Maker:
    return lambda given: kind(given["p"])


MAKERS: dict[Any, Any] = {
    aten.conv1d.default: _convolution(nn.Conv1d),
    aten.conv2d.default: _convolution(nn.Conv2d),
    aten.conv3d.default: _convolution(nn.Conv3d),
    aten.conv1d.padding: _convolution(nn.Conv1d),
    aten.conv2d.padding: _convolution(nn.Conv2d),
    aten.conv3d.padding: _convolution(nn.Conv3d),
    aten.conv_transpose1d.default: _convolution(nn.ConvTranspose1d),
    aten.conv_transpose2d.input: _convolution(nn.ConvTranspose2d),
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.embedding.default: _embedding,
    aten.dropout.default: _dropout(nn.Dropout),
    aten.feature_dropout.default: _dropout(nn.Dropout2d),
    aten.alpha_dropout.default: _dropout(nn.AlphaDropout),
    aten.feature_alpha_dropout.default: _dropout(nn.FeatureAlphaDropout),
}
