"""CTC: texts from a score for each step and character, with a blank between (A. Graves et al., "Connectionist temporal classification", 2006)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch.nn import functional

from fettle.api.vocabulary import TrainingLoss
from fettle.errors import DataError
from fettle.optimizer.measure.tasks.text import Letters, Text
from fettle.optimizer.training.losses import Output, Tensors
from fettle.runtimes.base import Array


@dataclass(frozen=True)
class LetterLoss:
    """The loss of texts, as metric Text reads answers and labels. `letters`: numbers of classes, by item."""

    output: Output
    name: str
    text: Text
    blank: int
    truths: tuple[Letters, ...]
    letters: tuple[tuple[int, ...], ...]
    told = TrainingLoss.CTC.value
    words = "share of held-out characters that are right by the labels"

    def loss(self, answers: Tensors, places: Sequence[int]) -> torch.Tensor:
        """-log of the probability of all ways in which the steps spell the text, by its length."""
        chances = functional.log_softmax(self.output.scores(answers[self.output.place]), -1)  # [items, steps, classes]
        wanted = [self.letters[place] for place in places]
        targets = torch.tensor([letter for letters in wanted for letter in letters], dtype=torch.int64)
        steps = torch.full((len(wanted),), chances.shape[1])
        sizes = torch.tensor([len(letters) for letters in wanted])
        return functional.ctc_loss(chances.transpose(0, 1), targets, steps, sizes, blank=self.blank)

    def right(self, answers: Tensors, places: Sequence[int]) -> tuple[float, float]:
        """Characters, less those that would have to be changed."""
        said = self.output.items(answers[self.output.place].detach())
        read = [self.text.decode({self.name: item.numpy()}) for item in said]
        truths = [self.truths[place] for place in places]
        edits = sum(Levenshtein.distance(*pair) for pair in zip(read, truths, strict=True))
        possible = sum(len(truth) for truth in truths)
        return float(possible - edits), float(possible)


def letter_loss(output: Output, name: str, text: Text, steps: int, labels: Array) -> LetterLoss:
    """The loss of `labels`, which `text` reads, on an output of so many steps. Raises DataError."""
    if text.blank is None:
        raise DataError(
            f"the output {name} shows no blank: in the original's answers, neither the first nor the last class comes between characters"
        )
    truths = tuple(text.read(np.asarray(label), []) for label in labels)
    letters = tuple(_numbers(truth, text) for truth in truths)
    for truth, numbers in zip(truths, letters, strict=True):
        needed = len(numbers) + sum(one == other for one, other in pairwise(numbers))
        if needed > steps:
            raise DataError(
                f"the label {truth!r} needs {needed} steps (a character each, and a blank between equal ones), and the output {name} has {steps}: "
                "leave such items out of data.training"
            )
    return LetterLoss(output, name, text, text.blank, truths, letters)


def _numbers(truth: Letters, text: Text) -> tuple[int, ...]:
    """Numbers of classes. Raises DataError for what is no class."""
    numbers: dict[Hashable, int] = {letter: number for number, letter in enumerate(text.classes or range(text.scores))}
    strange = next((letter for letter in truth if numbers.get(letter, text.blank) == text.blank), None)
    if strange is not None:
        raise DataError(
            f"the label {truth!r} has {strange!r}, which is not a single character of data.evaluation.classes"
        )
    return tuple(numbers[letter] for letter in truth)
