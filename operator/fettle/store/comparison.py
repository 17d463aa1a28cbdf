"""When two answers to one item are the same: the rule that a measurement chose for an output, and that its artifact carries.

The optimizer judges candidates by it, the server compares a canary with the stable revision by it: one code, so that what was
measured is what is watched.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np

from fettle.api.base import ApiModel
from fettle.api.vocabulary import AgreementMode
from fettle.errors import DataError

Array = np.ndarray[Any, Any]


class Comparison(ApiModel):
    """How one output's answers are compared. `mode` is never Auto. `rtol` and `atol` are Elementwise's.

    `margin` is TopOne's: a decision that the model takes by a smaller margin is one it is not sure of. Measuring counts those
    decisions like any other; on live inputs, which nobody has labelled, they say nothing about who is right.
    """

    mode: AgreementMode
    axis: int = -1
    min_cosine: float = 0.99
    rtol: float = 0.0
    atol: float = 0.0
    threshold: float = 0.0
    margin: float = 0.0

    def agrees(self, original: Array, candidate: Array) -> bool:
        """Whether these answers to one item are the same. Different shapes never are."""
        if original.shape != candidate.shape:
            return False
        if self.mode == AgreementMode.EXACT:
            return bool(np.array_equal(original, candidate, equal_nan=is_float(original)))
        if self.mode == AgreementMode.TOP_ONE:
            left = decisions(original, self.axis, self.threshold)
            return bool(np.array_equal(left, decisions(candidate, self.axis, self.threshold)))
        left, right = original.astype(np.float64), candidate.astype(np.float64)
        if self.mode == AgreementMode.COSINE:
            return bool(np.min(cosine(left, right, self.axis)) >= self.min_cosine)
        return bool(np.allclose(right, left, rtol=self.rtol, atol=self.atol, equal_nan=True))

    def agrees_where_sure(self, original: Array, candidate: Array) -> bool | None:
        """As `agrees`, of the decisions that the original is sure of; None where it is sure of none."""
        if self.mode != AgreementMode.TOP_ONE or not is_float(original) or original.shape != candidate.shape:
            return self.agrees(original, candidate)
        sure = margins(original, self.axis, self.threshold) >= self.margin
        if not sure.any():
            return None
        if is_float(candidate) and np.isnan(candidate.astype(np.float64)).any():
            return False  # the highest score of an answer with NaN in it is whichever comes first
        left = decisions(original, self.axis, self.threshold)
        return bool(np.array_equal(left[sure], decisions(candidate, self.axis, self.threshold)[sure]))


class Outcome(Enum):
    """What comparing a canary's answer to one item with the stable revision's said."""

    AGREED = "agreed"
    DISAGREED = "disagreed"
    UNSURE = "unsure"  # the stable revision itself was not sure: not evidence of either


def compare(rules: Mapping[str, Comparison], stable: Mapping[str, Array], canary: Mapping[str, Array]) -> Outcome:
    """Compare the answers to one item by the stable artifact's rules, one for each output that counts.

    The item says nothing as soon as stable is unsure in one of them: outputs of one model decide together (a class, and the
    scores that it was taken from). Raises KeyError for an output that a side lacks, DataError where a rule does not fit.
    """
    said = [rule.agrees_where_sure(stable[name], canary[name]) for name, rule in rules.items()]
    if any(one is None for one in said):
        return Outcome.UNSURE
    return Outcome.AGREED if all(said) else Outcome.DISAGREED


def is_float(array: Array) -> bool:
    """Whether an array holds floating-point numbers, bfloat16 included."""
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def has_nan(array: Array) -> bool:
    """Whether an answer holds NaN, which is no answer. Infinity may be one: a masked score is minus infinity."""
    return is_float(array) and bool(np.isnan(array.astype(np.float64)).any())


def class_count(answer: Array, axis: int) -> int:
    """Size of the axis of classes; 1 for a single score, 0 where the answer has no such axis."""
    if answer.ndim == 0:
        return 1
    return int(answer.shape[axis]) if -answer.ndim <= axis < answer.ndim else 0


def decisions(answer: Array, axis: int, threshold: float) -> Array:
    """What an answer decides, flat: the classes with the highest scores; yes or no of a single score; ints and texts as they are."""
    if not is_float(answer):
        return answer.reshape(-1)
    if _classes(answer, axis) == 1:
        return (answer.reshape(-1) > threshold).astype(np.int64)
    return np.asarray(np.argmax(answer, axis=axis)).reshape(-1)


def margins(answer: Array, axis: int, threshold: float) -> Array:
    """By how much each decision of a floating-point answer was taken, flat, in `decisions`' order: the highest score minus the
    next one; a single score's distance from the threshold."""
    scores = answer.astype(np.float64)
    if _classes(answer, axis) == 1:
        return np.asarray(np.abs(scores - threshold)).reshape(-1)
    two = np.partition(scores, -2, axis=axis)
    highest, next_one = np.take(two, -1, axis=axis), np.take(two, -2, axis=axis)
    return np.asarray(highest - next_one).reshape(-1)


def _classes(answer: Array, axis: int) -> int:
    count = class_count(answer, axis)
    if count == 0:
        raise DataError(f"an answer of shape {list(answer.shape)} has no axis {axis} of classes: set agreement.axis")
    return count


def cosine(left: Array, right: Array, axis: int) -> Array:
    """Cosine similarities along `axis`; two zero vectors are alike, one zero vector is like nothing."""
    if left.ndim == 0 or not -left.ndim <= axis < left.ndim:
        left, right, axis = left.reshape(-1), right.reshape(-1), 0
    norms = np.linalg.norm(left, axis=axis) * np.linalg.norm(right, axis=axis)
    both_zero = ~left.any(axis=axis) & ~right.any(axis=axis)
    dots = np.sum(left * right, axis=axis)
    return np.where(both_zero, 1.0, dots / np.where(norms > 0, norms, 1.0))
