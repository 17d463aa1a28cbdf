"""Convolutions replaced by depthwise-separable ones (MobileNet), which start as the best fit of the original weights and are then trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx, nn

from fettle.api.training import ReplaceStep
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.training.export import save
from fettle.optimizer.training.session import parameters


def depthwise_separable(work: Work[ReplaceStep]) -> Path:
    """Replace every convolution that becomes cheaper, and train. Raises RecipeError."""
    training = work.trained
    student = training.open(work.entry)
    least = work.step.depthwise_separable.min_channels
    replaced = [name for name, layer in list(student.named_modules()) if _suits(layer, least)]
    if not replaced:
        raise RecipeError(
            f"the model has no convolution of {least} channels or more with a kernel, and without groups, to make depthwise-separable"
        )
    for name in replaced:
        put(student, name, _separated(student.get_submodule(name)))
    training.fit(student)
    work.notes.append(
        f"{len(replaced)} convolutions are depthwise-separable: {parameters(student):,} of {parameters(training.teacher):,} parameters"
    )
    return save(student, training.example, training.signature, work.folder / "model.pt2")


def put(student: fx.GraphModule, name: str, layer: nn.Module) -> None:
    """Replace the layer called `name` by `layer`."""
    holder, _, own = name.rpartition(".")
    setattr(student.get_submodule(holder), own, layer)


def _suits(layer: nn.Module, least: int) -> bool:
    return (
        isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and layer.groups == 1
        and min(layer.in_channels, layer.out_channels) >= least
        and layer.weight[0, 0].numel() > 1
    )


def _separated(layer: nn.Module) -> nn.Sequential:
    """For each input channel, one kernel that fits all outputs best, times a weight for each output: a rank-1 SVD."""
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    kind, channels = type(layer), layer.in_channels
    kernel = layer.weight.shape[2:]
    weight = layer.weight.detach().movedim(1, 0).flatten(2)  # [inputs, outputs, places]
    left, size, right = torch.linalg.svd(weight, full_matrices=False)
    root = size[:, 0].sqrt()
    depthwise = kind(
        channels,
        channels,
        tuple(kernel),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=channels,
        bias=False,
    )
    pointwise = kind(channels, layer.out_channels, 1, bias=layer.bias is not None)
    with torch.no_grad():
        depthwise.weight.copy_((right[:, 0, :] * root[:, None]).reshape(depthwise.weight.shape))
        pointwise.weight.copy_((left[:, :, 0] * root[:, None]).T.reshape(pointwise.weight.shape))
        if layer.bias is not None and pointwise.bias is not None:
            pointwise.bias.copy_(layer.bias)
    return nn.Sequential(depthwise, pointwise).to(layer.weight.dtype)
