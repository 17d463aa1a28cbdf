"""What a model computes on the way to its answers, as further answers: a student learns it from its teacher (FitNets, Romero et al., 2015)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import fx, nn

from fettle.api.text import joined
from fettle.api.training import FeaturePair, FeaturesSpec
from fettle.errors import RecipeError
from fettle.optimizer.training.layers import ADDS
from fettle.optimizer.training.program import Module, as_tuple, call

LARGEST = 1e18  # whose square is a float32: masks put -inf or the least number there is in front of a softmax
SHOWN = 8  # names in a message; the log has all of them
OWN = "module."  # in front of the names of a user's own student (`torch_distill._Flat`)
Values = Mapping[str, torch.Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A value of the teacher and its counterpart in the student, with their shapes."""

    teacher: str
    student: str
    wanted: torch.Size
    own: torch.Size

    @property
    def fits(self) -> bool:
        """Whether at most one size differs, and not the number of items."""
        return len(self.wanted) == len(self.own) and len(self._apart) <= 1

    @property
    def words(self) -> str:
        """'add_1', or 'layer1_0_conv by conv'."""
        own = self.student.removeprefix(OWN)
        return self.teacher if self.teacher == own else f"{self.teacher} by {own}"

    def projection(self) -> nn.Module:
        """What brings the student's value to the teacher's size, untrained."""
        axis = next(iter(self._apart), None)
        return nn.Identity() if axis is None else Projection(axis, self.own[axis], self.wanted[axis])

    @property
    def _apart(self) -> list[int]:
        sizes = zip(self.wanted, self.own, strict=True)
        return [axis for axis, (wanted, own) in enumerate(sizes) if axis and wanted != own]


class Revealing(nn.Module):
    """A model that answers, behind its outputs, with the values that it computes under `names`, each through its projection."""

    def __init__(self, module: Module, names: Sequence[str], projections: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)
        self.projections = nn.ModuleList(projections or [nn.Identity() for _ in names])

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, and then the values."""
        answers, values = watched(self.module, inputs, self.names)
        shown = (project(values[name]) for project, name in zip(self.projections, self.names, strict=True))
        return (*answers, *shown)


class Projection(nn.Module):
    """A linear map along one axis to another size: a 1x1 convolution, where the axis is that of channels."""

    def __init__(self, axis: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.axis, self.map = axis, nn.Linear(inputs, outputs)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """With the other size."""
        mapped: torch.Tensor = self.map(value.movedim(self.axis, -1))
        return mapped.movedim(-1, self.axis)


def watched(
    module: Module, inputs: Sequence[torch.Tensor], names: Sequence[str] | None = None
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """The answers, and the tensors of floats computed under `names` (None: all): nodes of a graph, or layers of a module without one."""
    if isinstance(module, fx.GraphModule):
        watcher = _Watcher(module, names)
        return as_tuple(watcher.run(*inputs)), watcher.values
    values: dict[str, torch.Tensor] = {}

    def keeping(name: str) -> Any:
        def keep(_layer: nn.Module, _given: Any, value: Any) -> None:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                values[name] = value

        return keep

    layers = {name: layer for name, layer in module.named_modules() if name and (names is None or name in names)}
    hooks = [layer.register_forward_hook(keeping(name)) for name, layer in layers.items()]
    try:
        return call(module, inputs), values
    finally:
        for hook in hooks:
            hook.remove()


class _Watcher(fx.Interpreter):
    """Runs a graph, and keeps what its nodes compute."""

    def __init__(self, module: fx.GraphModule, names: Sequence[str] | None) -> None:
        super().__init__(module)
        self.names, self.values = names, dict[str, torch.Tensor]()

    def run_node(self, node: fx.Node) -> Any:
        """See `fx.Interpreter`."""
        value = super().run_node(node)
        asked = node.op != "output" and (self.names is None or node.name in self.names)
        if asked and isinstance(value, torch.Tensor) and value.is_floating_point():
            self.values[node.name] = value
        return value


def paired(
    spec: FeaturesSpec, teacher: fx.GraphModule, student: Module, example: Sequence[torch.Tensor], items: int | None
) -> list[Pair]:
    """What is compared with what. `items`: how many the first axis of a value must have. Raises RecipeError."""
    with torch.no_grad():
        theirs, ours = (_comparable(watched(module, example)[1], items) for module in (teacher, student))
    if spec.pairs:
        return [_asked(pair, theirs, ours) for pair in spec.pairs]
    found = _by_name(teacher, theirs, ours)
    if not found:
        raise RecipeError(
            "distill.features: no layer or sum of the original has a counterpart of the same name and a matching shape in the student: set "
            f"features.pairs; the original has {_listed(theirs)}; the student has {_listed(ours)}"
        )
    return found


def _comparable(values: Values, items: int | None) -> dict[str, torch.Size]:
    """The shapes of values that have an item in each row, and no number too large for a mean squared error."""
    return {
        name: value.shape
        for name, value in values.items()
        if f"{name}." != OWN
        and value.ndim >= 2
        and (items is None or value.shape[0] == items)
        and bool((value.abs() < LARGEST).all())
    }


def _asked(asked: FeaturePair, theirs: Mapping[str, torch.Size], ours: Mapping[str, torch.Size]) -> Pair:
    """A pair that a recipe names. Raises RecipeError."""
    names = []
    for whose, name, shapes in (("original", asked.teacher, theirs), ("student", asked.student or asked.teacher, ours)):
        known = {_plain(each): each for each in shapes}
        if _plain(name) not in known:
            raise RecipeError(
                f"distill.features: the {whose} computes no finite value {name} with an item in each row; it has {_listed(shapes, name)}"
            )
        names.append(known[_plain(name)])
    pair = Pair(names[0], names[1], theirs[names[0]], ours[names[1]])
    if not pair.fits:
        raise RecipeError(
            f"distill.features: {names[0]} of the original has the shape {list(pair.wanted)}, and {names[1]} of the student {list(pair.own)}: only "
            "one size, that of channels, may differ"
        )
    return pair


def _by_name(teacher: fx.GraphModule, theirs: Mapping[str, torch.Size], ours: Mapping[str, torch.Size]) -> list[Pair]:
    """For each shape of the teacher's layers and sums, the last that the student has too. Outputs are compared anyway."""
    known = {_plain(name): name for name in ours}
    outputs = {node for node in teacher.graph.nodes for user in node.users if user.op == "output"}
    found: dict[torch.Size, Pair] = {}
    for node in teacher.graph.nodes:
        own = known.get(_plain(node.name))
        if own is None or node.name not in theirs or node in outputs:
            continue
        pair = Pair(node.name, own, theirs[node.name], ours[own])
        if (node.op == "call_module" or node.target in ADDS) and pair.fits:
            found[pair.wanted] = pair
    return list(found.values())


def _plain(name: str) -> str:
    """A name as graphs and modules have in common: `layer1.0.conv`, `layer1_0_conv_layer`."""
    return name.removeprefix(OWN).replace(".", "_").removesuffix("_layer").lstrip("_")


def _listed(shapes: Mapping[str, torch.Size], asked: str = "") -> str:
    """Some of the names, those first that are most like what was asked for."""
    names = [name.removeprefix(OWN) for name in shapes]
    log.info("values: %s", ", ".join(names))
    near = sorted(names, key=lambda name: SequenceMatcher(None, _plain(asked), _plain(name)).ratio(), reverse=True)
    more = [f"{len(names) - SHOWN} more, which the log lists"] if len(names) > SHOWN else []
    return joined([*near[:SHOWN], *more])
