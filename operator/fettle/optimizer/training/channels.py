"""Channels of layers: which can go, and taking them out of a graph for good (torch-pruning's dependency graph)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import fx, nn

from fettle.errors import RecipeError
from fettle.optimizer.training.layers import LAYERS
from fettle.optimizer.training.program import Module, call
from fettle.optimizer.training.session import Training

ROUNDED_MOST = 16  # channels: what vector instructions take at once
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Channels:
    """The channels of a model that is pruned: `widths` are those of its layers as it came; the `fixed` layers keep all of theirs."""

    training: Training
    fixed: Sequence[str]
    widths: Mapping[str, int]

    @classmethod
    def of(cls, training: Training, student: fx.GraphModule) -> Channels:
        """Those of `student`."""
        return cls(training, fixed_layers(student, training.example), widths(student))

    def remove(self, student: fx.GraphModule, left: float, by_gradients: bool = False) -> list[Any]:
        """Remove channels until that share of those of each layer is left: see `narrowed`. Raises RecipeError where none can go."""
        wanted = narrowed(self.widths, self.fixed, left)
        gone = pruned(student, self.training.example, self.fixed, wanted, by_gradients)
        if not gone and widths(student) == self.widths:
            raise RecipeError(
                "no channels could be removed: those of each layer reach an output, or the graph computes with their number"
            )
        return gone

    def again(self, student: fx.GraphModule, history: list[Any]) -> None:
        """Remove what `remove` did, in all of its rounds, as torch-pruning wrote it down."""
        graph = torch_pruning.DependencyGraph().build_dependency(student, tuple(self.training.example))
        graph.load_pruning_history(history)

    def words(self, history: list[Any]) -> str:
        """What stayed."""
        return f"{len(self.fixed)} layers keep their channels"


def widths(student: Module) -> dict[str, int]:
    """The channels of each layer, by name."""
    found = {name: layer for name, layer in student.named_modules() if isinstance(layer, LAYERS)}
    return {
        name: layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for name, layer in found.items()
    }


def narrowed(widths: Mapping[str, int], fixed: Collection[str], left: float) -> dict[str, int]:
    """The channels of each layer if that share of them is left: the nearest multiple that vector instructions like. At least one goes, and one stays.

    Where layers are narrow, the multiple is smaller, so that they can be pruned at all.
    """
    narrowest = min((width for name, width in widths.items() if name not in fixed), default=1)
    multiple = 1
    while multiple < ROUNDED_MOST and multiple * 8 <= narrowest:
        multiple *= 2
    most = {name: (width - 1) // multiple for name, width in widths.items()}
    return {
        name: min(max(min(round(width * left / multiple), most[name]), 1) * multiple, width)
        for name, width in widths.items()
    }


def pruned(
    student: fx.GraphModule,
    example: Sequence[torch.Tensor],
    fixed: Sequence[str],
    wanted: Mapping[str, int],
    by_gradients: bool = False,
) -> list[Any]:
    """Remove channels until the layers have as many as are `wanted`, if they have more; what was removed, as torch-pruning can do it again.

    What a channel is worth is the size of its weights, or, `by_gradients`, what the gradients that they hold say.
    """
    importance = torch_pruning.importance
    layers = dict(student.named_modules())
    # torch-pruning rounds down what is left.
    shares = {layers[name]: max(1 - (wanted[name] + 0.5) / width, 0.0) for name, width in widths(student).items()}
    pruner = torch_pruning.pruner.BasePruner(
        student,
        tuple(example),
        importance=importance.GroupTaylorImportance() if by_gradients else importance.GroupMagnitudeImportance(p=2),
        pruning_ratio_dict=shares,
        ignored_layers=[layers[name] for name in fixed],
        root_module_types=list(LAYERS),
    )
    pruner.step()
    history: list[Any] = pruner.DG.pruning_history()
    return history


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
        dense, convolution = torch_pruning.prune_linear_out_channels, torch_pruning.prune_conv_out_channels
        group = graph.get_pruning_group(layer, dense if isinstance(layer, nn.Linear) else convolution, [0])
        if not graph.check_pruning_group(group):
            return False
        group.prune()
        with torch.no_grad():
            return [answer.shape for answer in call(trial, example)] == list(shapes)
    except Exception:  # a graph that computes with the number of channels fails in its own ways
        log.debug("%s keeps its channels", name, exc_info=True)
        return False
