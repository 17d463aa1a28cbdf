"""Metric Text: how much of a text is read right: 1 - character error rate, over all characters of all items.

Scores for each step become a text by taking the best character of each step; where the model leaves out steps with a blank (CTC), repeated
characters are merged and blanks dropped. A. Graves et al., "Connectionist temporal classification", ICML 2006.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from rapidfuzz.distance import Levenshtein

from fettle.api.optimizedmodel import EvaluationSpec
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.labels.reader import as_text
from fettle.optimizer.measure.agreement import OVERSHOOT
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Pool, Scorer, item_of, ratio, shapes, sums
from fettle.store.comparison import is_float

Array = np.ndarray[Any, Any]
Letters = Sequence[Hashable]  # characters, or numbers of classes

BLANK_SHARE = (
    0.4  # of all changes of class are changes to the blank: half of them, but for characters without one between
)


class Text:
    """Letters, one after another."""

    one_scale = False

    def __init__(self, name: str, blank: int | None, classes: tuple[str, ...], scores: int) -> None:
        self._name, self._blank, self._classes, self._scores = name, blank, classes, scores
        self.outputs = frozenset({name})
        how = f"the best of {scores} characters at each step" if scores else "texts"
        ctc = f"; class {blank} is the blank of CTC: repeated characters are merged" if blank is not None else ""
        self.told = f"{how} in {name}{ctc}"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """See whether there is a blank. Raises DataError."""
        name = spec.output or signature.outputs[0].name
        answers = [item_of(answer[name], 2) for answer in examples]
        first = answers[0]
        if not is_float(first):
            return cls(name, None, spec.classes, 0)
        if first.ndim != 2 or first.shape[1] < 2:
            raise DataError(
                f"metric Text reads no characters in {shapes({name: first})} (an item's answer): it takes a score for each step and character, "
                "[steps, characters], numbers of characters, or texts"
            )
        return cls(
            name,
            _blank([np.argmax(answer, axis=-1) for answer in answers], first.shape[1]),
            spec.classes,
            first.shape[1],
        )

    def sure(self, examples: Sequence[Answer]) -> bool:
        """Probabilities for each step, with a blank between characters."""
        if self._blank is None:
            return False
        answers = [item_of(answer[self._name], 2).astype(np.float32) for answer in examples]
        sums_to_one = all(
            bool(np.allclose(answer.sum(axis=-1), 1, atol=1e-2)) and answer.min(initial=0) >= -OVERSHOOT
            for answer in answers
        )
        return sums_to_one and any(len(self.decode(answer)) for answer in examples)

    def decode(self, answer: Answer) -> Letters:
        """The letters: numbers of classes, names where data.evaluation.classes has them, or characters."""
        array = item_of(answer[self._name], 2)
        if array.dtype.kind in "OSU":
            return "\n".join(as_text(value) for value in array.reshape(-1).tolist())
        numbers = np.argmax(array, axis=-1) if is_float(array) else array.reshape(-1)
        if self._blank is not None:
            kept = np.append(True, numbers[1:] != numbers[:-1]) & (numbers != self._blank)
            numbers = numbers[kept]
        letters: list[Hashable] = numbers.tolist()
        if not self._classes:
            return letters
        return "".join(
            self._classes[number] if number < len(self._classes) else "\ufffd" for number in numbers.tolist()
        )

    def values(self, said: Letters) -> Array:
        """Characters that occur."""
        return np.array(list(said))

    def read(self, label: Array, answer: Answer) -> Letters:
        """A text, or numbers of classes; negative ones fill up."""
        if label.dtype.kind in "OSU":
            if not self._classes and self._scores:
                raise DataError(
                    "labels are texts, the model answers scores for characters: name the characters in data.evaluation.classes, in the order "
                    f"of the {self._scores} scores{', the blank as an empty text' if self._blank is not None else ''}"
                )
            return "\n".join(as_text(value) for value in label.reshape(-1).tolist())
        if label.dtype.kind not in "iu":
            raise DataError(f"metric Text needs texts or numbers of characters as labels, found {label.dtype}")
        numbers: list[int] = label.reshape(-1)[label.reshape(-1) >= 0].tolist()
        return "".join(self._classes[number] for number in numbers) if self._classes else numbers

    def scorer(self, labelled: bool) -> Scorer:
        """Edits and characters."""
        return Edits()


def _blank(steps: Sequence[Array], classes: int) -> int | None:
    """The first or the last class, where most characters are followed by it; None where there is no blank.

    A model with a blank puts it between characters; without one a character mostly follows another.
    """
    followed: Counter[int] = Counter()
    changes = 0
    for numbers in steps:
        after = numbers[1:][numbers[1:] != numbers[:-1]]
        followed.update(after.tolist())
        changes += len(after)
    blank = max((0, classes - 1), key=lambda each: followed[each])
    return blank if changes and followed[blank] >= BLANK_SHARE * changes else None


@dataclass
class Edits:
    """For each item the characters to be changed, and those there should be."""

    _scores: list[Array] = field(default_factory=list)

    def add(self, said: Letters, truth: Letters) -> None:
        """Compare two texts."""
        self._scores.append(np.array([Levenshtein.distance(said, truth), len(truth)], dtype=np.float64))

    def pool(self) -> Pool:
        """1 - character error rate. Raises DataError where there is no character at all."""
        if not any(score[1] for score in self._scores):
            raise DataError(f"the texts of all {len(self._scores)} items are empty: give items with something to read")
        return sums(self._scores, _read_right)


def _read_right(totals: Array) -> Array:
    edits, characters = totals[..., 0], totals[..., 1]
    return 1 - ratio(edits, characters, 0.0)
