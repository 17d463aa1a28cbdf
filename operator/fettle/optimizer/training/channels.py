"""Channels of layers: which can go, and taking them out of a graph for good (torch-pruning's dependency graph)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import fx, nn

from fettle.errors import RecipeError
from fettle.optimizer.training.layers import LAYERS
from fettle.optimizer.training.program import Module, call
from fettle.optimizer.training.session import Training, parameters

ROUNDED_MOST = 16  # channels: what vector instructions take at once
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Channels:
    """The channels of a model that is pruned, and the layers that keep all of theirs."""

    training: Training
    fixed: Sequence[str]

    @classmethod
    def of(cls, training: Training, student: fx.GraphModule) -> Channels:
        """Those of `student`."""
        return cls(training, fixed_layers(student, training.example))

    def remove(self, student: fx.GraphModule, share: float, by_gradients: bool = False) -> list[Any]:
        """Remove that share of the channels of each layer: see `pruned`."""
        return pruned(student, self.training.example, self.fixed, share, by_gradients)

    def again(self, student: fx.GraphModule, history: list[Any]) -> None:
        """Remove what `remove` did, in all of its rounds, as torch-pruning wrote it down."""
        graph = torch_pruning.DependencyGraph().build_dependency(student, tuple(self.training.example))
        graph.load_pruning_history(history)

    def words(self, history: list[Any]) -> str:
        """What stayed."""
        return f"{len(self.fixed)} layers keep their channels"


def pruned(
    student: fx.GraphModule,
    example: Sequence[torch.Tensor],
    fixed: Sequence[str],
    ratio: float,
    by_gradients: bool = False,
) -> list[Any]:
    """Remove that share of the channels; what was removed, as torch-pruning can do it again. Raises RecipeError where nothing can go.

    What a channel is worth is the size of its weights, or, `by_gradients`, what the gradients that they hold say.
    """
    importance = torch_pruning.importance
    layers = dict(student.named_modules())
    before, multiple = parameters(student), _rounded(student, fixed)
    pruner = torch_pruning.pruner.BasePruner(
        student,
        tuple(example),
        importance=importance.GroupTaylorImportance() if by_gradients else importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        pruning_ratio_dict=_narrow(student, ratio, multiple),
        ignored_layers=[layers[name] for name in fixed],
        root_module_types=list(LAYERS),
        round_to=multiple,
    )
    pruner.step()
    if parameters(student) == before:
        raise RecipeError(
            "no channels could be removed: those of each layer reach an output, or the graph computes with their number"
        )
    history: list[Any] = pruner.DG.pruning_history()
    return history


def _rounded(student: Module, fixed: Sequence[str]) -> int:
    """The multiple to which channels are rounded: as vector instructions like it, as long as small layers can be pruned at all."""
    widths = [
        layer.weight.shape[0]
        for name, layer in student.named_modules()
        if isinstance(layer, LAYERS) and name not in fixed
    ]
    multiple = 1
    while multiple < ROUNDED_MOST and multiple * 8 <= min(widths, default=1):
        multiple *= 2
    return multiple


def _narrow(student: Module, ratio: float, multiple: int) -> dict[nn.Module, float]:
    """The ratios of layers that would have less than one multiple of channels left: that one stays. Rounded to none, all of them would."""
    found = [layer for layer in student.modules() if isinstance(layer, LAYERS)]
    widths = {layer: layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels for layer in found}
    narrow = {layer: width for layer, width in widths.items() if width * (1 - ratio) < multiple}
    return {layer: max(1 - (multiple + 0.5) / width, 0.0) for layer, width in narrow.items()}


def fixed_layers(student: fx.GraphModule, example: Sequence[torch.Tensor]) -> list[str]:
    """Layers whose channels cannot go: tried, one group of layers after the other, on a copy that has to answer in the same shapes."""
    with torch.no_grad():
        shapes = [answer.shape for answer in call(student, example)]
    names = {layer: name for name, layer in student.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(student, tuple(example))
    fixed: list[str] = []
    for group in graph.get_all_groups(root_module_types=list(LAYERS)):
        name = names[group[0].dep.target.module]
        if not _can_go(student, example, name, shapes):
            fixed.append(name)
    return fixed


def _can_go(student: fx.GraphModule, example: Sequence[torch.Tensor], name: str, shapes: Sequence[torch.Size]) -> bool:
    trial = copy.deepcopy(student)
    layer = trial.get_submodule(name)
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(trial, tuple(example))
        group = (
            graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, [0])
            if not isinstance(layer, nn.Linear)
            else (graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, [0]))
        )
        if not graph.check_pruning_group(group):
            return False
        group.prune()
        with torch.no_grad():
            return [answer.shape for answer in call(trial, example)] == list(shapes)
    except Exception:  # a graph that computes with the number of channels fails in its own ways
        log.debug("%s keeps its channels", name, exc_info=True)
        return False
