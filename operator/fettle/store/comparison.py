"""When two answers to one item are the same: the rule that a measurement chose for an output, and that its artifact carries.

The optimizer judges candidates by it, the server compares a canary with the stable revision by it: one code, so that what was
measured is what is watched.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated

import numpy as np
from pydantic import Field

from fettle.api.base import ApiModel
from fettle.api.vocabulary import AgreementMode, Metric
from fettle.errors import DataError
from fettle.store.arrays import Array

MOST_CHANNELS = 4096  # along one axis: what a manifest holds of an output stays below about 25 kB


class Channels(ApiModel):
    """What share of `atol` each index along one axis may differ by: boxes in pixels and scores below 1 share a tensor, not a tolerance.

    `axis` is negative, an axis of one item's answer. A share is above 0 and at most 1.
    """

    axis: Annotated[int, Field(lt=0)]
    shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=2, max_length=MOST_CHANNELS)]

    def along(self, shape: tuple[int, ...]) -> Array | None:
        """The shares, to be multiplied with an answer of that shape; None where it has another size along the axis."""
        if len(shape) < -self.axis or shape[self.axis] != len(self.shares):
            return None
        places = [1] * len(shape)
        places[self.axis] = len(self.shares)
        return np.asarray(self.shares, np.float64).reshape(places)


class Comparison(ApiModel):
    """How one output's answers are compared. `mode` is never Auto. `rtol` and `atol` are Elementwise's.

    `atol` is the largest that any number of the output may differ by; `channels` narrow it along up to two axes, whose shares are
    multiplied. Absent where the whole output has one tolerance, as in artifacts that were written before there were channels.

    `margin` is TopOne's: a decision that the model takes by a smaller margin is one it is not sure of. Measuring counts those
    decisions like any other unless it is told to skip them; on live inputs, which nobody has labelled, they say nothing about who is right.

    `judged_by`: the task's metric that certified what this output says, as a detector's boxes. Its numbers may differ where it says the
    same, so that live answers are not compared by this rule.
    """

    mode: AgreementMode
    axis: int = -1
    min_cosine: float = 0.99
    rtol: float = 0.0
    atol: float = 0.0
    threshold: float = 0.0
    margin: float = 0.0
    channels: Annotated[tuple[Channels, ...], Field(max_length=2)] | None = None
    judged_by: Metric | None = None

    def tolerance(self, shape: tuple[int, ...]) -> float | Array:
        """The absolute tolerance of each number of an answer of that shape, or of all of them.

        An axis along which the answer has another size than those that were measured is not told apart.
        """
        return narrowed(self.atol, self.channels or (), shape)

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
            # NaN and infinity have no direction, but may be the answer.
            same = np.array_equal(left, right, equal_nan=True)
            return same or bool(np.all(cosine(left, right, self.axis) >= self.min_cosine))
        return close(left, right, self.rtol, self.tolerance(left.shape))

    def agrees_where_sure(self, original: Array, candidate: Array) -> bool | None:
        """As `agrees`, of the decisions that the original is sure of; None where it is sure of none."""
        if self.mode != AgreementMode.TOP_ONE or not is_float(original) or original.shape != candidate.shape:
            return self.agrees(original, candidate)
        if not original.size:
            return True  # nothing was found, by both
        sure = self.counts(original)
        if not sure.any():
            return None
        if is_float(candidate) and np.isnan(candidate.astype(np.float64)).any():
            return False  # the highest score of an answer with NaN in it is whichever comes first
        left = decisions(original, self.axis, self.threshold)
        return bool(np.array_equal(left[sure], decisions(candidate, self.axis, self.threshold)[sure]))

    def counts(self, original: Array) -> Array:
        """Which decisions of an answer the original is sure of, flat; none of an answer without decisions."""
        if self.mode != AgreementMode.TOP_ONE or not is_float(original) or not original.size:
            return np.empty(0, bool)
        return np.asarray(margins(original, self.axis, self.threshold) >= self.margin)


class Outcome(Enum):
    """What comparing a canary's answer to one item with the stable revision's said."""

    AGREED = "agreed"
    DISAGREED = "disagreed"
    UNSURE = "unsure"  # the stable revision itself was not sure: not evidence of either


def agreeing(
    rules: Mapping[str, Comparison], original: Mapping[str, Array], other: Mapping[str, Array]
) -> dict[str, bool] | None:
    """By output, whether two answers to one item are the same in what the original is sure of; None if the item says nothing.

    It does so as soon as the original is unsure in one output: outputs of one model decide together (a class, and the scores that it was
    taken from). The one definition of an item that does not count, for a canary beside stable and for a candidate beside the original.
    Raises KeyError for an output that a side lacks, DataError where a rule does not fit.
    """
    agrees: dict[str, bool] = {}
    for name, rule in rules.items():
        if rule.judged_by is not None:
            continue
        same = rule.agrees_where_sure(original[name], other[name])
        if same is None:
            return None
        agrees[name] = same
    return agrees


def compare(rules: Mapping[str, Comparison], stable: Mapping[str, Array], canary: Mapping[str, Array]) -> Outcome:
    """Compare the answers to one item by the stable artifact's rules, one for each output whose numbers count.

    Raises as `agreeing` does.
    """
    agrees = agreeing(rules, stable, canary)
    if agrees is None:
        return Outcome.UNSURE
    return Outcome.AGREED if all(agrees.values()) else Outcome.DISAGREED


def narrowed(atol: float, channels: tuple[Channels, ...], shape: tuple[int, ...]) -> float | Array:
    """`atol` times the shares that fit an answer of that shape."""
    tolerance: float | Array = atol
    for channel in channels:
        shares = channel.along(shape)
        if shares is not None:
            tolerance = tolerance * shares
    return tolerance


def close(original: Array, candidate: Array, rtol: float, atol: float | Array) -> bool:
    """Whether |candidate - original| <= atol + rtol * |original| everywhere; NaN is NaN, infinity the same infinity.

    Both are float64, of one shape.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.all(np.isclose(candidate, original, rtol=rtol, atol=atol, equal_nan=True)))


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
    if not answer.size:
        return np.empty(0, np.int64)
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
    with np.errstate(invalid="ignore"):
        return np.asarray(highest - next_one).reshape(-1)


def _classes(answer: Array, axis: int) -> int:
    count = class_count(answer, axis)
    if count == 0:
        raise DataError(f"an output of shape {list(answer.shape)} has no class axis {axis}: set agreement.axis")
    return count


def cosine(left: Array, right: Array, axis: int) -> Array:
    """Cosine similarities along `axis`; two zero vectors are alike, one zero vector is like nothing."""
    if left.ndim == 0 or not -left.ndim <= axis < left.ndim:
        left, right, axis = left.reshape(-1), right.reshape(-1), 0
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(left, axis=axis) * np.linalg.norm(right, axis=axis)
        both_zero = ~left.any(axis=axis) & ~right.any(axis=axis)
        dots = np.sum(left * right, axis=axis)
        return np.where(both_zero, 1.0, dots / np.where(norms > 0, norms, 1.0))
