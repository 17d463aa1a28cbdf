"""Losses on labels, and how good answers are by them. Each is PyTorch's own, on the answers to a batch of items in the output that is judged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from fettle.api.labels import IGNORED
from fettle.api.training import CustomLossSpec
from fettle.api.vocabulary import TrainingLoss
from fettle.errors import RecipeError
from fettle.optimizer.own_code import Function, failure, guarded, load
from fettle.runtimes.base import Array

Tensors = Sequence[torch.Tensor]
TINY = 1e-7  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class Output:
    """How one output is compared: as classes along `axis` (of an item's answer), or as numbers in units of `scale`."""

    place: int
    batch_axis: int | None
    classes: bool
    probabilities: bool
    axis: int
    scale: float

    def items(self, answer: torch.Tensor) -> torch.Tensor:
        """With items along the first axis."""
        return answer.unsqueeze(0) if self.batch_axis is None else answer.movedim(self.batch_axis, 0)

    def flat(self, answer: torch.Tensor) -> torch.Tensor:
        """Items along the first axis, all of an item's numbers along the second."""
        items = self.items(answer)
        return items.reshape(len(items), -1)

    def scores(self, answer: torch.Tensor) -> torch.Tensor:
        """Logarithms of odds: [items, decisions, classes]."""
        moved = self.items(answer).movedim(self.axis, -1)
        flat = moved.reshape(len(moved), -1, moved.shape[-1])
        return flat.clamp_min(TINY).log() if self.probabilities else flat

    def explained(self, answer: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
        """Items, and for each 1 less the share of the variance that its error is. Both with items along the first axis."""
        errors = (answer.double() - truth.double()).square().reshape(len(answer), -1).mean(1)
        return float((1 - errors / self.scale**2).sum()), float(len(answer))


class LabelLoss(Protocol):
    """A loss on labels. `told`: which one it is; `words`: what its score is, for a person."""

    @property
    def told(self) -> str: ...

    @property
    def words(self) -> str: ...

    def loss(self, answers: Tensors, places: Sequence[int]) -> torch.Tensor:
        """The mean loss of the answers to these items."""
        ...

    def right(self, answers: Tensors, places: Sequence[int]) -> tuple[float, float]:
        """Points, and how many there could be."""
        ...


@dataclass(frozen=True)
class ClassLoss:
    """Cross-entropy of numbers of classes, [items, decisions]; IGNORED where none counts."""

    output: Output
    targets: Array
    told = TrainingLoss.CROSS_ENTROPY.value
    words = "share of held-out decisions that are right by the labels"

    def loss(self, answers: Tensors, places: Sequence[int]) -> torch.Tensor:
        """-log of the probability of the right class."""
        scores, wanted = self.output.scores(answers[self.output.place]), _those(self.targets, places)
        if not bool((wanted != IGNORED).any()):
            return scores.sum() * 0  # the mean of none is no number
        return functional.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)

    def right(self, answers: Tensors, places: Sequence[int]) -> tuple[float, float]:
        """Decisions for the right class."""
        wanted = _those(self.targets, places)
        decided, counted = self.output.scores(answers[self.output.place]).argmax(-1), wanted != IGNORED
        return float(((decided == wanted) & counted).sum()), float(counted.sum())


@dataclass(frozen=True)
class DecisionLoss:
    """Binary cross-entropy of yes (1) and no (0), [items, decisions]; IGNORED where none counts. An answer above `threshold` is a yes."""

    output: Output
    targets: Array
    threshold: float
    told = TrainingLoss.BINARY_CROSS_ENTROPY.value
    words = ClassLoss.words

    def loss(self, answers: Tensors, places: Sequence[int]) -> torch.Tensor:
        """Of probabilities, or of logarithms of odds."""
        flat, wanted = self.output.flat(answers[self.output.place]), _those(self.targets, places)
        counted, yes = wanted != IGNORED, wanted.clamp_min(0).to(flat.dtype)
        if self.output.probabilities:
            losses = functional.binary_cross_entropy(flat.clamp(TINY, 1 - TINY), yes, reduction="none")
        else:
            losses = functional.binary_cross_entropy_with_logits(flat, yes, reduction="none")
        return losses[counted].mean() if bool(counted.any()) else losses.sum() * 0

    def right(self, answers: Tensors, places: Sequence[int]) -> tuple[float, float]:
        """Decisions that are right."""
        flat, wanted = self.output.flat(answers[self.output.place]), _those(self.targets, places)
        counted = wanted != IGNORED
        return float((((flat > self.threshold) == (wanted > 0)) & counted).sum()), float(counted.sum())


@dataclass(frozen=True)
class NumberLoss:
    """The squared or the `absolute` error, in units of the labels' spread: the output's scale."""

    output: Output
    targets: Array
    absolute: bool = False
    words = "share of the held-out answers' variance that is right by the labels"

    @property
    def told(self) -> str:
        """Which of the two."""
        return (TrainingLoss.MEAN_ABSOLUTE_ERROR if self.absolute else TrainingLoss.MEAN_SQUARED_ERROR).value

    def loss(self, answers: Tensors, places: Sequence[int]) -> torch.Tensor:
        """The mean over all numbers."""
        flat = self.output.flat(answers[self.output.place])
        apart = flat - _those(self.targets, places).to(flat.dtype)
        return apart.abs().mean() / self.output.scale if self.absolute else apart.square().mean() / self.output.scale**2

    def right(self, answers: Tensors, places: Sequence[int]) -> tuple[float, float]:
        """Variance explained."""
        return self.output.explained(self.output.flat(answers[self.output.place]), _those(self.targets, places))


@dataclass(frozen=True)
class OwnLoss:
    """What a function of the user's own makes of a batch's outputs, by name, and its labels: numbers with items in front, or texts."""

    function: Function
    name: str
    sha256: str  # of its code
    outputs: tuple[str, ...]
    labels: Array
    words = "the held-out loss of train.custom, negated"

    @classmethod
    def of(cls, spec: CustomLossSpec, outputs: tuple[str, ...], labels: Array) -> OwnLoss:
        """Raises RecipeError if the code does not define the function, or if PyTorch has no such labels."""
        code = spec.code or ""
        if labels.dtype.kind not in "biufOSU":
            raise RecipeError(f"train.custom: expected labels that are numbers or texts, found {labels.dtype}")
        labels = labels.astype(labels.dtype.newbyteorder("="), copy=False)  # PyTorch takes only the machine's order
        function = load(code, spec.function, "train.custom", RecipeError)
        return cls(function, spec.function, hashlib.sha256(code.encode()).hexdigest(), outputs, labels)

    @property
    def told(self) -> str:
        """The function, and which code it is of."""
        return f"{self.name}() of train.custom, sha256 {self.sha256}"

    def loss(self, answers: Tensors, places: Sequence[int]) -> torch.Tensor:
        """What the function returns. Raises RecipeError if that is nothing that can be minimized."""
        given = self.labels[list(places)]
        labels = given.tolist() if given.dtype.kind in "OSU" else torch.from_numpy(np.ascontiguousarray(given))
        with guarded(lambda error: RecipeError(f"train.custom failed on a batch: {failure(error, self.function)}")):
            value = self.function(dict(zip(self.outputs, answers, strict=True)), labels)
        if not isinstance(value, torch.Tensor) or value.ndim or value.is_complex():
            found = type(value).__name__
            if isinstance(value, torch.Tensor):
                found = "a complex tensor" if value.is_complex() else f"a tensor of shape {list(value.shape)}"
            raise RecipeError(
                f"train.custom: {self.name}() returned {found}, expected a scalar tensor: reduce the losses of a batch with mean()"
            )
        if any(answer.requires_grad for answer in answers) and not value.requires_grad:
            raise RecipeError(
                f"train.custom: {self.name}() returned a tensor without a gradient: compute it from the outputs with PyTorch's differentiable "
                "operations, without NumPy, detach() and argmax()"
            )
        return value

    def right(self, answers: Tensors, places: Sequence[int]) -> tuple[float, float]:
        """The lower the loss, the better."""
        return -float(self.loss(answers, places)) * len(places), float(len(places))


def _those(targets: Array, places: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(targets[list(places)])
