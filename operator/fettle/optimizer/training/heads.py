"""Heads of attention, taken out of a graph for good.

A graph has no attention layers: it has dense layers for queries, keys and values, whose outputs it cuts into heads, and a dense layer behind them. A
head is rows of the first ones and columns of the last one, and its number is written in the shapes between them. What is found is tried on a copy,
which has to answer as the model does without what that head adds. So it does not matter how a graph cuts its heads: where another form is cut
otherwise, that attention keeps its heads.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from fettle.errors import RecipeError
from fettle.optimizer.training.features import watched
from fettle.optimizer.training.layers import SIZES, aten
from fettle.optimizer.training.program import call
from fettle.optimizer.training.session import Training

FUSED = (aten.scaled_dot_product_attention.default,)
PRODUCTS = (aten.matmul.default, aten.bmm.default, torch.matmul, torch.bmm, operator.matmul)
CUTS = (aten.split.Tensor, aten.slice.Tensor)
SHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.unflatten.int,
    aten.split_with_sizes.default,
)
SOFTMAX = (aten.softmax.int, aten._softmax.default)
TOLERANCE = 1e-4  # of the largest answer: sums in another order
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attention:
    """The attention in front of the dense layer `behind`, whose heads have `size` numbers each. `sources`: dense layers that make queries, keys and
    values; `between`: what lies between them, by name."""

    behind: str
    sources: tuple[str, ...]
    heads: int
    size: int
    between: frozenset[str]

    @property
    def width(self) -> int:
        """Numbers of all heads."""
        return self.heads * self.size


@dataclass(frozen=True)
class Heads:
    """The heads of a model that is pruned. `able`: for each dense layer behind heads that can go, how many there were as the model came."""

    training: Training
    able: Mapping[str, int]

    @classmethod
    def of(cls, training: Training, student: fx.GraphModule) -> Heads:
        """Those of `student`. Raises RecipeError where none can go."""
        found = attentions(student, training.example)
        able = {one.behind: one.heads for one in found if _can_go(student, one, [one.heads - 1], training.example)}
        if not able:
            raise RecipeError(
                "prune unit Heads: no heads can be removed: the model has no attention with several heads whose queries, keys and values come "
                "from dense layers of the same width and which goes into a dense layer, or its graph computes with their number"
            )
        return cls(training, able)

    def remove(self, student: fx.GraphModule, left: float, by_gradients: bool = False) -> list[list[Any]]:
        """Remove heads until that share of those of each attention is left, but at least one. The layers behind, each with the heads that went.

        Raises RecipeError where none of those can go.
        """
        gone: list[list[Any]] = []
        refused = False
        for attention in self._attentions(student):
            first = self.able[attention.behind]
            count = min(max(round(first * (1 - left)), 1), first - 1) - (first - attention.heads)
            if count < 1:
                continue
            worth = _worth(student, attention, by_gradients)
            heads = sorted(sorted(range(attention.heads), key=lambda head: worth[head])[:count])
            # Tried each time: once heads are gone, all their numbers together may be as many as something else in the graph.
            if _can_go(student, attention, heads, self.training.example):
                without_heads(student, attention, heads)
                gone.append([attention.behind, heads])
            else:
                refused = True
        if refused and not gone:
            raise RecipeError("prune unit Heads: no further heads can be removed: lower ratio or iterations")
        return gone

    def again(self, student: fx.GraphModule, history: Sequence[list[Any]]) -> None:
        """Remove what `remove` did, in all of its rounds."""
        for behind, heads in history:
            without_heads(student, next(one for one in self._attentions(student) if one.behind == behind), heads)

    def words(self, history: Sequence[list[Any]]) -> str:
        """What went."""
        return f"{sum(len(heads) for _, heads in history)} heads of attention were removed"

    def _attentions(self, student: fx.GraphModule) -> list[Attention]:
        return [one for one in attentions(student, self.training.example) if one.behind in self.able]


def attentions(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> list[Attention]:
    """Those with several heads, in order."""
    with torch.no_grad():
        values = watched(module, example)[1]
    found = (_attention(module, node, values) for node in module.graph.nodes if _attends(node))
    return [one for one in found if one is not None]


def without_heads(module: fx.GraphModule, attention: Attention, gone: Sequence[int]) -> None:
    """Remove these heads."""
    kept = [head for head in range(attention.heads) if head not in gone]
    places = torch.cat([torch.arange(attention.size) + head * attention.size for head in kept])
    for name in attention.sources:
        layer = module.get_submodule(name)
        starts = range(0, layer.out_features, attention.width)
        rows = torch.cat([places + start for start in starts])
        layer.weight, layer.out_features = _part(layer.weight, rows, 0), len(rows)
        if layer.bias is not None:
            layer.bias = _part(layer.bias, rows, 0)
    behind = module.get_submodule(attention.behind)
    behind.weight, behind.in_features = _part(behind.weight, places, 1), len(places)
    _reshape(module, attention, len(kept))


def _part(weight: nn.Parameter, places: torch.Tensor, axis: int) -> nn.Parameter:
    return nn.Parameter(weight.detach().index_select(axis, places).contiguous(), weight.requires_grad)


# -------------------------------------------------------------------------------------------------------------------- finding


def _attends(node: fx.Node) -> bool:
    """Whether it makes what heads answer: weights that a softmax made, times values."""
    if node.target in FUSED:
        return True
    made = node.args[0] if node.target in PRODUCTS else None
    for _ in range(4):  # dropout, a cast
        if not isinstance(made, fx.Node) or made.target in SOFTMAX:
            break
        made = made.args[0] if made.args else None
    return isinstance(made, fx.Node) and made.target in SOFTMAX


def _attention(module: fx.GraphModule, node: fx.Node, values: dict[str, torch.Tensor]) -> Attention | None:
    """That of which `node` makes the answers; None if it has not the form that it needs."""
    behind, after = _behind(module, node)
    sources, before = _sources(module, node)
    if behind is None or node.name not in values:
        return None
    size, width = values[node.name].shape[-1], module.get_submodule(behind).in_features
    widths = [module.get_submodule(name).out_features for name in sources]
    alike = all(own == width for own in widths) or widths == [3 * width]
    if not sources or not alike or width % size or width // size < 2:
        return None
    return Attention(behind, tuple(sources), width // size, size, frozenset({*before, node.name, *after}))


def _behind(module: fx.GraphModule, node: fx.Node) -> tuple[str | None, list[str]]:
    """The dense layer that takes the answers of all heads, and what lies before it; None if they go elsewhere."""
    between: list[str] = []
    while True:
        users = [user for user in node.users if user.target not in SIZES]
        if len(users) != 1 or users[0].op == "output":
            return None, between
        node = users[0]
        if _dense(module, node):
            return str(node.target), between
        between.append(node.name)


def _sources(module: fx.GraphModule, node: fx.Node) -> tuple[list[str], list[str]]:
    """The dense layers that make queries, keys and values, and what lies behind them."""
    waiting, sources, between = list(node.all_input_nodes), dict[str, None](), dict[str, None]()
    while waiting:
        found = waiting.pop()
        if _dense(module, found):
            sources[str(found.target)] = None
        elif found.op in ("call_function", "call_module") and found.target not in SIZES and found.name not in between:
            between[found.name] = None
            waiting.extend(found.all_input_nodes)
    return list(sources), list(between)


def _dense(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.Linear)


def _can_go(
    module: fx.GraphModule, attention: Attention, heads: Sequence[int], example: Sequence[torch.Tensor]
) -> bool:
    """Whether a copy without `heads` answers as one in which the layer behind ignores them. Each layer has to be called once."""
    names = (*attention.sources, attention.behind)
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    if any(calls.count(name) != 1 for name in names):
        return False
    without, ignoring = copy.deepcopy(module), copy.deepcopy(module)
    try:
        with torch.no_grad():
            weight = ignoring.get_submodule(attention.behind).weight
            for head in heads:
                weight[:, head * attention.size : (head + 1) * attention.size] = 0
            without_heads(without, attention, heads)
            pairs = zip(call(without, example), call(ignoring, example), strict=True)
            return all(_same(found, wanted) for found, wanted in pairs)
    except Exception:  # a graph that computes with the number of heads fails in its own ways
        log.debug("%s keeps its heads", attention.behind, exc_info=True)
        return False


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    return bool(torch.allclose(found.double(), wanted.double(), rtol=0, atol=TOLERANCE * max(largest, 1e-6)))


# ------------------------------------------------------------------------------------------------------------------- removing


def _reshape(module: fx.GraphModule, attention: Attention, heads: int) -> None:
    """Write the new number of heads into the shapes."""
    for node in list(module.graph.nodes):
        if node.name not in attention.between:
            continue
        if node.target in CUTS:  # queries, keys and values that one layer makes
            node.args = tuple(
                _in_all(argument, attention, heads) if isinstance(argument, int) else argument for argument in node.args
            )
        elif node.target in SHAPES:
            node.args = tuple(
                _sizes(module, argument, attention, heads) if isinstance(argument, (list, tuple)) else argument
                for argument in node.args
            )
    module.recompile()


def _sizes(module: fx.GraphModule, given: Sequence[Any], attention: Attention, heads: int) -> list[Any]:
    """A shape with the new number of heads, which is in front of their size or behind the number of items, or with that of all their numbers."""
    own_size = (attention.size, -1)
    pairs = [
        place
        for place, (size, after) in enumerate(pairwise(given))
        if size == attention.heads and not isinstance(after, fx.Node) and after in own_size
    ]
    place = pairs[-1] if pairs else 1 if len(given) == 4 and given[1] == attention.heads else None
    sizes = [
        _product(module, size, attention.heads, heads) if isinstance(size, fx.Node) else _in_all(size, attention, heads)
        for size in given
    ]
    if place is not None:
        sizes[place] = heads
    return sizes


def _in_all(size: int, attention: Attention, heads: int) -> int:
    """A number of all heads' numbers, one to three times."""
    times = (attention.width, 2 * attention.width, 3 * attention.width)
    return size // attention.heads * heads if size in times else size


def _product(module: fx.GraphModule, size: fx.Node, before: int, heads: int) -> fx.Node:
    """The number of items times that of heads, where it is computed."""
    if size.target is not operator.mul or before not in size.args:
        return size
    with module.graph.inserting_before(size):
        factors = tuple(heads if factor == before else factor for factor in size.args)
        return module.graph.call_function(operator.mul, factors)


def _worth(module: fx.GraphModule, attention: Attention, by_gradients: bool) -> list[float]:
    """For each head, the size of its weights, or how much the loss would change without them (first order)."""
    layers = [*attention.sources, attention.behind]
    total = torch.zeros(attention.heads)
    for name in layers:
        weight = module.get_submodule(name).weight
        worth = weight.detach() * (weight.grad if by_gradients and weight.grad is not None else weight.detach())
        rows = worth.T if name == attention.behind else worth
        total += rows.reshape(-1, attention.heads, attention.size * rows.shape[1]).sum((0, 2))
    return [float(worth) for worth in total.abs()]
