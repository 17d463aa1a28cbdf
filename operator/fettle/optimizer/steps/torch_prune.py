"""Structured pruning in PyTorch: whole channels, heads or blocks are removed, and the rest is trained to give the original's answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from torch import fx

from fettle.api.training import DEFAULT_RATIO, PruneStep
from fettle.api.vocabulary import Importance, PruneUnit
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.training.blocks import Blocks
from fettle.optimizer.training.channels import Channels
from fettle.optimizer.training.export import save
from fettle.optimizer.training.heads import Heads
from fettle.optimizer.training.pace import BEFORE_TRAINING, least_for
from fettle.optimizer.training.program import Module
from fettle.optimizer.training.session import Phase, Training, parameters


class Unit(Protocol):
    """What goes as a whole, in one model. What was removed is written down in plain values, which a checkpoint holds."""

    def remove(self, student: fx.GraphModule, left: float, by_gradients: bool = False) -> list[Any]:
        """Remove units, the least important first, until that share of those that the model came with is left. Returns what went.

        Raises RecipeError where nothing can go.
        """
        ...

    def again(self, student: fx.GraphModule, history: list[Any]) -> None:
        """Remove the same once more from a model as it came."""
        ...

    def words(self, history: list[Any]) -> str:
        """What went or stayed, for a person."""
        ...


UNITS: dict[PruneUnit, Callable[[Training, fx.GraphModule], Unit]] = {
    PruneUnit.CHANNELS: Channels.of,
    PruneUnit.HEADS: Heads.of,
    PruneUnit.BLOCKS: Blocks.of,
}


def structured(work: Work[PruneStep]) -> Path:
    """Remove the least important units, and train. Raises RecipeError."""
    training, step = work.trained, work.step
    student = training.open(work.entry)
    unit = UNITS[step.unit](training, student)
    by_gradients = step.importance is Importance.TAYLOR
    history: list[Any] = []
    resumed = training.resumed
    first = int(resumed["stage"]) if resumed is not None else 0
    epochs = [_epochs(training, phase, step.iterations) for phase in range(step.iterations)]
    ratio = float(resumed["architecture"]["ratio"]) if resumed is not None else _ratio(work, student, unit)
    for phase in range(first, step.iterations):
        if resumed is not None and phase == first:
            history = resumed["architecture"]["history"]
            unit.again(student, history)
        else:
            if by_gradients:
                training.gradients(student)
            left = (1 - ratio) ** ((phase + 1) / step.iterations)
            history = [*history, *unit.remove(student, left, by_gradients)]
            student.zero_grad(set_to_none=True)
        architecture = {"ratio": ratio, "history": history}
        training.fit(student, phase=Phase(phase, epochs[phase], epochs[phase] / sum(epochs), architecture))
    work.notes.append(
        f"pruned from {parameters(training.teacher):,} to {parameters(student):,} parameters ({unit.words(history)})"
    )
    return save(student, training.example, training.signature, work.folder / "model.pt2")


def _ratio(work: Work[PruneStep], student: fx.GraphModule, unit: Unit) -> float:
    """The requested ratio, or the smallest that reaches the requested speed-up. Raises RecipeError."""
    training, wanted = work.trained, work.step.target_speedup
    if wanted is None:
        return work.step.ratio or DEFAULT_RATIO

    def changed(share: float) -> Module:
        trial = copy.deepcopy(student)
        with suppress(RecipeError):  # what cannot go makes nothing faster
            unit.remove(trial, 1 - share)
        return trial

    ratio = least_for(wanted, changed, student, training, work.folder / "timed")
    work.notes.append(f"a ratio of {ratio:.2f} is the smallest that was {wanted:g} times as fast {BEFORE_TRAINING}")
    return ratio


def _epochs(training: Training, phase: int, phases: int) -> int:
    """The epochs of a phase: half of all epochs are for the final model, the rest for the phases before it."""
    between = max(training.epochs // (2 * phases), 1)
    return between if phase < phases - 1 else max(training.epochs - between * (phases - 1), 1)
