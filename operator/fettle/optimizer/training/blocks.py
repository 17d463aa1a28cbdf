"""Residual blocks of a graph, x + f(x), which can be left out: what comes in goes on as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from fettle.errors import RecipeError
from fettle.optimizer.training.features import watched
from fettle.optimizer.training.layers import ADDS, SIZES
from fettle.optimizer.training.session import Training


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model that is pruned, so `many` as it came. Which matter least is found once for the same blocks, and by one process."""

    training: Training
    many: int
    rankings: dict[tuple[str, ...], list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, training: Training, student: fx.GraphModule) -> Blocks:
        """Those of `student`. Raises RecipeError where there are too few."""
        names = blocks(student, training.example)
        if len(names) < 2:
            raise RecipeError(
                f"prune unit Blocks: the model has {len(names)} residual blocks (x + f(x) of the same shape), so none can be left out"
            )
        made = cls(training, len(names))
        if training.resumed is None:
            made._ranked(student, names)  # here all processes are asked, and not only the one that looks for a share
        return made

    def remove(self, student: fx.GraphModule, left: float, by_gradients: bool = False) -> list[str]:
        """Leave out blocks until that share of them is left: those without which, each alone, the loss is the smallest. The names of their sums."""
        names = blocks(student, self.training.example)
        count = min(max(round(self.many * (1 - left)), 1), self.many - 1) - (self.many - len(names))
        gone = self._ranked(student, names)[:count] if count > 0 else []
        leave_out(student, self.training.example, gone)
        return gone

    def again(self, student: fx.GraphModule, history: Sequence[str]) -> None:
        """Leave out what `remove` did, one after the other: without one block, another sum may have become the end of one."""
        for name in history:
            leave_out(student, self.training.example, [name])

    def words(self, history: Sequence[str]) -> str:
        """What went."""
        return f"{len(history)} residual blocks were left out"

    def _ranked(self, student: fx.GraphModule, names: Sequence[str]) -> list[str]:
        def ranked() -> list[str]:
            losses = {}
            for name in names:
                trial = copy.deepcopy(student)
                leave_out(trial, self.training.example, [name])
                loss = self.training.loss_of(trial)
                losses[name] = loss if math.isfinite(loss) else math.inf
            return sorted(names, key=lambda name: losses[name])

        same = tuple(names)
        if same not in self.rankings:
            self.rankings[same] = self.training.group.agreed(ranked)
        return self.rankings[same]


def without_blocks(module: fx.GraphModule, example: Sequence[torch.Tensor], depth: float) -> str:
    """Leave out all but that share of the blocks, evenly spread; '2 of 8'. Raises RecipeError where there are no blocks."""
    found = blocks(module, example)
    going = len(found) - max(round(len(found) * depth), 1)
    if going < 1:
        raise RecipeError(
            f"distill.student.depth {depth:g}: the model has {len(found)} residual blocks, so none can be left out"
        )
    step = len(found) / going
    leave_out(module, example, {found[int(step * number + step / 2)] for number in range(going)})
    return f"{going} of {len(found)}"


def blocks(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> list[str]:
    """Names of the sums that end a block, in order."""
    return list(_blocks(module, example))


def leave_out(module: fx.GraphModule, example: Sequence[torch.Tensor], names: Collection[str]) -> None:
    """Leave out the blocks with these names: from the last, because what comes into one may be the sum of the one before it."""
    ends = {node.name: node for node in module.graph.nodes}
    for name, came_in in reversed(_blocks(module, example).items()):
        if name in names:
            ends[name].replace_all_uses_with(came_in)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _blocks(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> dict[str, fx.Node]:
    """Each addition of what came into a block to what the block made of it, in order; and what came in."""
    with torch.no_grad():
        shapes = {name: value.shape for name, value in watched(module, example)[1].items()}
    found = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in ADDS or len(node.args) < 2:
            continue
        pair = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        if len(pair) != 2:
            continue
        for came_in, made in (pair, pair[::-1]):
            same = node.name in shapes and shapes.get(came_in.name) == shapes[node.name]
            if same and _leads_to(came_in, made):
                found[node.name] = came_in
                break
    return found


def _leads_to(start: fx.Node, end: fx.Node) -> bool:
    """Whether `end` is computed from `start`, whatever else is: masks, sizes."""
    waiting, seen = [end], set()
    while waiting:
        node = waiting.pop()
        if node is start:
            return True
        if node not in seen and node.target not in SIZES:
            seen.add(node)
            waiting.extend(node.all_input_nodes)
    return False
