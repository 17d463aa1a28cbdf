"""Metric Text: how much of a text is read right: 1 - character error rate, over all characters of all items.

Scores for each step become a text by taking the best character of each step; where the model leaves out steps with a blank (CTC), repeated
characters are merged and blanks dropped. A. Graves et al., "Connectionist temporal classification", ICML 2006.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from rapidfuzz.distance import Levenshtein

from fettle.api.data import EvaluationSpec
from fettle.api.labels import not_counted
from fettle.api.signature import Signature
from fettle.api.vocabulary import AgreementMode
from fettle.errors import DataError
from fettle.optimizer.measure.agreement import OVERSHOOT
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import (
    Likeness,
    Pool,
    Scorer,
    TaskMetric,
    require_in_range,
    require_names,
    shapes,
    sums,
    whole_numbers,
)
from fettle.optimizer.statistics import ratio
from fettle.runtimes.base import Array, as_text
from fettle.store.comparison import Comparison, is_float

Letters = Sequence[Hashable]  # characters, or numbers of classes

# The share of all changes of class that are changes to the blank: half of them, but for characters without one between.
BLANK_SHARE = 0.4


class Text(TaskMetric):
    """Letters, one after another."""

    def __init__(self, name: str, blank: int | None, scores: int, spec: EvaluationSpec) -> None:
        self._name, self.blank, self.scores = name, blank, scores
        self.classes, self._offset, self._ignored = spec.classes, spec.label_offset, not_counted(spec)
        self._numbered = bool(spec.label_offset) or spec.ignore_label is not None  # labels must be numbers
        self.outputs = frozenset({name})
        how = f"the best of {scores} characters at each step" if scores else "texts"
        ctc = f"; class {blank} is the blank of CTC: repeated characters are merged" if blank is not None else ""
        self.told = f"{how} in {name}{ctc}"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """See whether there is a blank. Raises DataError."""
        name = signature.judged_output(spec.output)
        answers = [by_step(answer[name]) for answer in examples]
        first = answers[0]
        if first.dtype.kind in "OSU" and (spec.classes or spec.label_offset):
            raise DataError(
                f"the output {name} holds texts: leave out data.evaluation.classes and labelOffset, which are for scores or numbers of characters"
            )
        if not is_float(first):
            return cls(name, None, 0, spec)
        if first.ndim != 2 or first.shape[1] < 2:
            raise DataError(
                f"metric Text finds no characters in {shapes({name: first})} (one item's answer): it needs a score for each step and character "
                "([steps, characters] or [steps, 1, characters]), numbers of characters, or texts"
            )
        require_names("Text", spec, first.shape[1])
        blank = _blank([np.argmax(answer, axis=-1) for answer in answers], first.shape[1])
        return cls(name, blank, first.shape[1], spec)

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """Probabilities for each step, with a blank between characters. Tags of words look the same: only a name that is empty makes sure."""
        if self.blank is None or not any(len(self.decode(answer)) for answer in examples):
            return Likeness.NONE
        for example in examples:
            answer = by_step(example[self._name]).astype(np.float32)
            if answer.min(initial=0) < -OVERSHOOT or not np.allclose(answer.sum(axis=-1), 1, atol=1e-2):
                return Likeness.NONE
        named = bool(self.classes) and self.classes[self.blank] == ""
        return Likeness.SURE if named else Likeness.LIKELY

    def decode(self, answer: Answer) -> Letters:
        """The letters: numbers of classes, names where data.evaluation.classes has them, or characters."""
        array = by_step(answer[self._name])
        if array.dtype.kind in "OSU":
            return "\n".join(as_text(value) for value in array.reshape(-1).tolist())
        numbers = np.argmax(array, axis=-1) if is_float(array) else array.reshape(-1)
        if self.blank is not None:
            kept = np.append(True, numbers[1:] != numbers[:-1]) & (numbers != self.blank)
            numbers = numbers[kept]
        letters: list[Hashable] = numbers.tolist()
        if not self.classes:
            return letters
        return "".join(
            self.classes[number] if 0 <= number < len(self.classes) else "\ufffd" for number in numbers.tolist()
        )

    def read(self, label: Array, prediction: Letters) -> Letters:
        """A text, or numbers of classes; negative ones, blanks and the one that is ignored fill up."""
        if label.dtype.kind in "OSU":
            if not self.classes and self.scores:
                raise DataError(
                    "labels are texts, but the model outputs scores for characters: list the characters in data.evaluation.classes, in the order "
                    f"of the {self.scores} scores{', the blank as an empty text' if self.blank is not None else ''}"
                )
            if self._numbered:
                raise DataError(
                    "labels are texts: leave out labelOffset and ignoreLabel, which are for numbers of characters"
                )
            return "\n".join(as_text(value) for value in label.reshape(-1).tolist())
        numbers = whole_numbers(label.reshape(-1))
        if numbers is None:
            raise DataError(f"metric Text needs texts or numbers of characters as labels, found {label.dtype}")
        fills = (numbers < min(self._offset, 0)) | np.isin(numbers, self._ignored)
        numbers = numbers[~fills] - self._offset
        numbers = numbers[numbers != self.blank] if self.blank is not None else numbers
        require_in_range(numbers, len(self.classes) or self.scores or None, self._offset, "characters")
        letters: list[int] = numbers.tolist()
        return "".join(self.classes[letter] for letter in letters) if self.classes else letters

    def scorer(self, labelled: bool) -> Scorer:
        """Edits and characters."""
        return Edits()

    def kept(self, prediction: Letters, truth: Letters) -> Mapping[Hashable, bool]:
        """Characters of which at least half are read."""
        there, found = Counter(truth), Counter[Hashable]()
        for step in Levenshtein.opcodes(truth, prediction):
            if step.tag == "equal":
                found.update(truth[step.src_start : step.src_end])
        return {letter: 2 * found[letter] >= times for letter, times in there.items()}

    def pairs(self, prediction: Letters, truth: Letters) -> Iterable[tuple[Hashable, Hashable]]:
        """Characters of a label with those that are read in their place."""
        return [
            pair
            for step in Levenshtein.opcodes(truth, prediction)
            if step.tag in ("equal", "replace")
            for pair in zip(
                truth[step.src_start : step.src_end], prediction[step.dest_start : step.dest_end], strict=False
            )
        ]

    def live(self, rule: Comparison) -> Comparison | None:
        """Texts are the same or not; scores may say the same at other steps."""
        return rule if rule.mode == AgreementMode.EXACT else None


def by_step(answer: Array) -> Array:
    """An item's scores as [steps, characters]. Frameworks that put the steps first answer [steps, 1, characters], others [1, steps, characters],
    where no batch axis was proved.

    Of any other form, the answer itself comes back.
    """
    *steps, characters = answer.shape or (0,)
    if answer.ndim <= 2 or sum(size != 1 for size in steps) > 1:
        return answer
    return answer.reshape(math.prod(steps), characters)  # not -1: NumPy cannot divide where there are no characters


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

    def add(self, prediction: Letters, truth: Letters) -> None:
        """Compare two texts."""
        self._scores.append(np.array([Levenshtein.distance(prediction, truth), len(truth)], dtype=np.float64))

    def pool(self) -> Pool:
        """1 - character error rate. Raises DataError where there is no character at all."""
        if not any(score[1] for score in self._scores):
            raise DataError(f"the texts of all {len(self._scores)} items are empty: give items with something to read")
        return sums(self._scores, _read_right)


def _read_right(totals: Array) -> Array:
    edits, characters = totals[..., 0], totals[..., 1]
    return 1 - ratio(edits, characters, 0.0)
