"""Structured pruning in PyTorch: whole channels are removed (torch-pruning), and the rest is trained to give the original's answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import fx

from fettle.api.training import PruneStep
from fettle.api.vocabulary import Importance
from fettle.errors import RecipeError
from fettle.optimizer.steps import Work
from fettle.optimizer.training.channels import fixed_layers, pruned, pruned_again
from fettle.optimizer.training.export import save
from fettle.optimizer.training.pace import BEFORE_TRAINING, least_for
from fettle.optimizer.training.program import Module
from fettle.optimizer.training.session import Phase, Training, parameters

RATIO = 0.5


def structured(work: Work[PruneStep]) -> Path:
    """Remove the least important channels of each layer, and train. Raises RecipeError."""
    training, step = work.trained, work.step
    student = training.open(work.entry)
    fixed = fixed_layers(student, training.example)
    by_gradients = step.importance is Importance.TAYLOR
    history: list[Any] = []
    resumed = training.resumed
    first = int(resumed["stage"]) if resumed is not None else 0
    epochs = [_epochs(training, phase, step.iterations) for phase in range(step.iterations)]
    ratio = float(resumed["architecture"]["ratio"]) if resumed is not None else _ratio(work, student, fixed)
    for phase in range(first, step.iterations):
        if resumed is not None and phase == first:
            history = resumed["architecture"]["history"]
            pruned_again(student, training.example, history)
        else:
            left = (1 - ratio) ** ((phase + 1) / step.iterations) / (1 - ratio) ** (phase / step.iterations)
            if by_gradients:
                training.gradients(student)
            history = [*history, *pruned(student, training.example, fixed, 1 - left, by_gradients)]
            student.zero_grad(set_to_none=True)
        architecture = {"ratio": ratio, "history": history}
        training.fit(student, phase=Phase(phase, epochs[phase], epochs[phase] / sum(epochs), architecture))
    work.notes.append(
        f"pruned from {parameters(training.teacher):,} to {parameters(student):,} parameters ({len(fixed)} layers keep their channels)"
    )
    return save(student, training.example, training.signature, work.folder / "model.pt2")


def _ratio(work: Work[PruneStep], student: fx.GraphModule, fixed: Sequence[str]) -> float:
    """The requested ratio, or the smallest that reaches the requested speed-up. Raises RecipeError."""
    training, wanted = work.trained, work.step.target_speedup
    if wanted is None:
        return work.step.ratio or RATIO

    def changed(share: float) -> Module:
        trial = copy.deepcopy(student)
        with suppress(RecipeError):  # so small a share of few channels is none
            pruned(trial, training.example, fixed, share)
        return trial

    ratio = least_for(wanted, changed, student, training, work.folder / "timed")
    work.notes.append(f"a ratio of {ratio:.2f} is the smallest that was {wanted:g} times as fast {BEFORE_TRAINING}")
    return ratio


def _epochs(training: Training, phase: int, phases: int) -> int:
    """The epochs of a phase: half of all epochs are for the final model, the rest for the phases before it."""
    between = max(training.epochs // (2 * phases), 1)
    return between if phase < phases - 1 else max(training.epochs - between * (phases - 1), 1)
