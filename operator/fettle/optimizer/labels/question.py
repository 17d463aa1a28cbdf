"""The input for the interpretation of labels: the labels, the original's answers, and the message if they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading, not_counted
from fettle.errors import DataError
from fettle.runtimes.base import Array, as_text, as_texts
from fettle.store.comparison import class_count, decisions, is_float

SHOWN = 3
LARGEST_WHOLE = 2.0**53  # beyond, floats skip integers


class Values(Enum):
    """The kinds of label values."""

    WHOLE = "whole numbers"  # integers, booleans, floats without fractions
    FRACTIONS = "numbers with fractions"
    TEXTS = "texts"


class Answers(Enum):
    """What an output contains for each decision."""

    SCORES = "a score for each class"
    SCORE = "one score"
    NUMBERS = "a whole number"
    TEXTS = "a text"


@dataclass(frozen=True)
class Answered:
    """The original's answers to the first items, in the output that the labels are for.

    `examples` have no batch axis; `axis` is their axis of classes, counted from the end; a score above `threshold` means yes.
    """

    name: str
    examples: Sequence[Array]
    axis: int = -1
    threshold: float = 0.0
    softmax: bool = False

    @property
    def kind(self) -> Answers:
        """What the output contains for each decision."""
        first = self.examples[0]
        if first.dtype.kind in "OSU":
            return Answers.TEXTS
        if not is_float(first):
            return Answers.NUMBERS
        return Answers.SCORES if self.classes > 1 else Answers.SCORE

    @property
    def classes(self) -> int:
        """The number of scores for a decision; 0 if there is no axis of classes."""
        return class_count(self.examples[0], self.axis)

    def decided_shape(self) -> tuple[int, ...]:
        """The shape of one item's decisions, without dimensions of size 1."""
        first = self.examples[0]
        if self.kind is not Answers.SCORES:
            return squeezed(first.shape)
        place = self.axis % first.ndim
        return squeezed(size for axis, size in enumerate(first.shape) if axis != place)


@dataclass(frozen=True)
class Question:
    """The labels, the answers and the spec, from which the interpretation is decided."""

    labels: Array
    answered: Answered
    spec: EvaluationSpec

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one item's label, without dimensions of size 1."""
        return squeezed(self.labels.shape[1:])

    @property
    def ignored(self) -> tuple[int, ...]:
        """The label values that are ignored: `ignoreLabel`, and -100 if it occurs."""
        whole, asked = self.values is Values.WHOLE, self.spec.ignore_label
        return tuple(
            each for each in not_counted(self.spec) if each == asked or (whole and np.any(self.labels == each))
        )

    @property
    def uncounted(self) -> Array:
        """Where `labels` are ignored."""
        ignored = np.array(self.ignored)
        if self.values is Values.TEXTS:
            return np.isin(as_texts(self.labels), as_texts(ignored)).reshape(self.labels.shape)
        return np.isin(self.labels, ignored)

    @property
    def values(self) -> Values:
        """The kind of the label values. Raises DataError for values that cannot be labels."""
        kind = self.labels.dtype.kind
        if kind in "OSU":
            return Values.TEXTS
        if kind in "biu":
            return Values.WHOLE
        if kind == "f":
            whole = (self.labels == np.floor(self.labels)) & (np.abs(self.labels) < LARGEST_WHOLE)
            return Values.WHOLE if bool(np.all(whole)) else Values.FRACTIONS
        raise DataError(f"labels of type {self.labels.dtype} are neither numbers nor texts")

    def counted(self) -> Array:
        """The distinct label values that count, sorted. Raises DataError if there are none."""
        values = np.unique(self.labels).astype(np.int64)
        kept = values[~np.isin(values, self.ignored)]
        if not len(kept):
            raise self.misfit(f"every label is {_either(self.ignored)}, which is ignored", "give labels")
        return kept

    def misfit(self, why: str, advice: str) -> DataError:
        """The error for labels that do not fit: some of them next to the answers, the cause, and what to do."""
        pairs = "; ".join(
            f"{_shown_label(label)} beside {_shown_answer(answer, self.answered)}"
            for label, answer in zip(self.labels[:SHOWN], self.answered.examples[:SHOWN], strict=False)
        )
        where = f"labels {self.spec.label_key!r} do not fit the output {self.answered.name!r}"
        return DataError(f"{where} (label beside answer: {pairs}): {why}; {advice}")

    def found(self, form: LabelForm, told: str, **read: Any) -> LabelReading:
        """The interpretation, including the ignored values."""
        ignored = self.ignored
        if ignored and self.values is Values.WHOLE:
            count = int(np.sum(self.uncounted))
            told += f"; {count} of {self.labels.size} are {_either(ignored)} and do not count"
        return LabelReading(form=form, told=told, classes=self.answered.classes, ignored=ignored, **read)


def _either(values: tuple[int, ...]) -> str:
    return " or ".join(map(str, values))


def squeezed(sizes: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes if size != 1)


def _shown_label(label: Any) -> str:
    return _shown(np.asarray(label).reshape(-1).tolist())


def _shown_answer(answer: Array, answered: Answered) -> str:
    if answered.kind is Answers.SCORES:
        decided = decisions(answer, answered.axis, answered.threshold).tolist()
        return f"class {_shown(decided)} of {answered.classes}"
    return _shown(answer.reshape(-1).tolist())


def _shown(values: list[Any]) -> str:
    texts = [_shown_value(value) for value in values[:SHOWN]]
    return texts[0] if len(values) == 1 else f"[{', '.join(texts)}{', …' if len(values) > SHOWN else ''}]"


def _shown_value(value: Any) -> str:
    if isinstance(value, bytes | str):
        text = as_text(value)
        return repr(text if len(text) <= 24 else text[:24] + "…")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
