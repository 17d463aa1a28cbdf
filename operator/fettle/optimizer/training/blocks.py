"""Residual blocks of a graph, x + f(x), which can be left out: what comes in goes on as it is."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from fettle.errors import RecipeError
from fettle.optimizer.training.program import call

_ADDS = (operator.add, torch.add, torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor, operator.iadd)


def without_blocks(module: fx.GraphModule, example: Sequence[torch.Tensor], depth: float) -> str:
    """Leave out all but that share of the blocks, evenly spread; '2 of 8'. Raises RecipeError where there are no blocks."""
    found = _blocks(module)
    going = len(found) - max(round(len(found) * depth), 1)
    if going < 1:
        raise RecipeError(
            f"distill.student.depth {depth:g}: the model has {len(found)} residual blocks, so none can be left out"
        )
    step = len(found) / going
    for place in sorted({int(step * number + step / 2) for number in range(going)}):
        added, came_in = found[place]
        added.replace_all_uses_with(came_in)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    with torch.no_grad():
        call(module, example)
    return f"{going} of {len(found)}"


def _blocks(module: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    """Each addition of what came into a block to what the block made of it, in order; and what came in."""
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in _ADDS or len(node.args) < 2:
            continue
        pair = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        if len(pair) != 2:
            continue
        for came_in, made in (pair, pair[::-1]):
            if _leads_to(came_in, made):
                found.append((node, came_in))
                break
    return found


def _leads_to(start: fx.Node, end: fx.Node) -> bool:
    """Whether `end` is computed from `start` and from no other value of the model's than weights."""
    waiting, seen, met = [end], set(), False
    while waiting:
        node = waiting.pop()
        if node is start:
            met = True
            continue
        if node in seen or node.op == "get_attr":
            continue
        if node.op == "placeholder":
            return False
        seen.add(node)
        waiting.extend(node.all_input_nodes)
    return met
