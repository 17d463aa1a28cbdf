"""Metric Regression: how near are the numbers, in units of how much they differ from item to item?

With labels: R2, the mean over channels of the share of the labels' variance that is explained; MAE and RMSE are told beside it. As agreement: an
item agrees where each of its numbers is within a tenth of the spread that the original's answers have over the items, in that channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from fettle.api.data import AgreementSpec, EvaluationSpec
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.measure.agreement import FLOAT_NOISE
from fettle.optimizer.measure.chance import FEWEST
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Collected, Likeness, Pool, Scorer, TaskMetric, shapes, share
from fettle.optimizer.statistics import Indices, by_group, ratio, times
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

TOLERANCE = 0.1  # of a channel's spread over the items
CONSTANT = 0.01  # of its magnitude: what a channel without a spread may differ by
MIDDLE = (0.1, 0.9)  # the items between these quantiles tell a spread that a few outliers do not move
NORMAL = 2.5631  # by how much a normal distribution's quantiles of `MIDDLE` lie apart, in standard deviations
LEAST_SKILL = 0.5  # of what one number for all items gets wrong a candidate may get half as much wrong
MOST_NUMBERS = 2048  # of an item: all items' are held at once
SHOWN = 4  # channels of which figures are told one by one


class Regression(TaskMetric):
    """Numbers with a unit, as many for every item."""

    def __init__(self, sizes: dict[str, int], noise: Array, agreement: AgreementSpec) -> None:
        self._sizes, self._noise, self._agreement = sizes, noise, agreement
        self.outputs = frozenset(sizes)
        numbers = "a number" if len(noise) == 1 else f"{len(noise)} numbers"
        near = f"{TOLERANCE:g} of its spread over the items"
        if agreement.atol is not None or agreement.rtol is not None:
            near = f"{agreement.atol or 0:g} + {agreement.rtol or 0:g} of its size"
        self.told = f"{numbers} in {' and '.join(sizes)}: near where each is within {near}"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Take the output that is named, or every output where all are a few numbers, else the first. Raises DataError."""
        names = [spec.output] if spec.output is not None else [tensor.name for tensor in signature.outputs]
        if not all(_is_few_numbers(name, examples) for name in names):
            names = names[:1]
        first = examples[0]
        total = sum(first[name].size for name in names)
        if total > MOST_NUMBERS:
            names = names[:1]
        if not _is_few_numbers(names[0], examples):
            raise DataError(
                f"metric Regression finds no quantities in {shapes({names[0]: first[names[0]]})} (one item's answer): it needs 1 to {MOST_NUMBERS} "
                "floating-point numbers, as many for every item; name another output in data.evaluation.output, or use MeanSquaredError"
            )
        noise = [np.full(first[name].size, FLOAT_NOISE.get(first[name].dtype.name, (0.0, 0.0))[1]) for name in names]
        return cls({name: first[name].size for name in names}, np.concatenate(noise), spec.agreement)

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """A few numbers may be scores as well."""
        return Likeness.NONE

    def decode(self, answer: Answer) -> Array:
        """All numbers of an item, `[channels]`."""
        numbers = np.concatenate([answer[name].reshape(-1).astype(np.float64) for name in self._sizes])
        if len(numbers) != len(self._noise):
            raise ValueError(f"{len(numbers)} numbers, {len(self._noise)} expected")
        return numbers

    def read(self, label: Array, prediction: Array) -> Array:
        """The right numbers: of all outputs that are read, or of the first of them."""
        first = next(iter(self._sizes.values()))
        if label.size not in (first, len(self._noise)) or label.dtype.kind not in "iuf":
            expected = " or ".join(str(size) for size in sorted({first, len(self._noise)}))
            raise DataError(
                f"metric Regression needs {expected} numbers as the label of an item, found {label.dtype} {list(label.shape)}: "
                "check data.evaluation.labelKey and output; set metric: Accuracy if labels are classes"
            )
        numbers = label.reshape(-1).astype(np.float64)
        if not np.isfinite(numbers).all():
            raise DataError("a label is NaN or infinite, but metric Regression needs numbers: leave such items out")
        return np.asarray(numbers)

    def scorer(self, labelled: bool) -> Scorer:
        """R2 by labels, the share of items that are near the original's."""
        return Collected(explained if labelled else Near(self._noise, self._agreement, tuple(self._sizes.items())).pool)


def _is_few_numbers(name: str, examples: Sequence[Answer]) -> bool:
    first = examples[0][name]
    same = all(answer[name].shape == first.shape for answer in examples)
    return same and is_float(first) and 0 < first.size <= MOST_NUMBERS


# --------------------------------------------------------------------------------------------------------------------- labels


def explained(prediction: Sequence[Array], truth: Sequence[Array]) -> Pool:
    """R2, mean over the channels in which labels vary; labels may speak of the first channels only. Raises DataError where they vary in none,
    or answers are not numbers."""
    labels = np.stack(truth)
    numbers = np.stack(prediction)[:, : labels.shape[1]]
    if not np.isfinite(numbers).all():
        broken = int((~np.isfinite(numbers)).any(axis=1).sum())
        raise DataError(f"answers to {broken} of {len(numbers)} items hold NaN or infinity, R2 needs numbers")
    centred = labels - labels.mean(axis=0)
    varies = np.ptp(labels, axis=0) > 0
    if not varies.any():
        raise DataError("all labels are the same: Regression measures how much of their variance a model explains")
    errors = (numbers - labels)[:, varies] ** 2
    channels = errors.shape[1]
    totals = by_group(np.concatenate([errors, centred[:, varies], centred[:, varies] ** 2], axis=1))
    sizes = by_group(np.ones(len(labels)))

    def value(drawn: Indices) -> Array:
        weights = times(drawn, len(totals))
        sums = weights @ totals
        squares = sums[..., channels : 2 * channels] ** 2 / (weights @ sizes)[..., None]
        variance = sums[..., 2 * channels :] - squares
        return np.asarray((1 - ratio(sums[..., :channels], variance, 1.0)).mean(axis=-1))

    absolute = np.abs(numbers - labels)
    squared = np.sqrt(np.mean(absolute**2, axis=0))
    told = f"MAE {amounts(absolute.mean(axis=0))}, RMSE {amounts(squared)} in the label's unit"
    return Pool(len(labels), len(totals), errors, value, constant=0.0, details=told)


# ------------------------------------------------------------------------------------------------------------------ agreement


@dataclass(frozen=True)
class Near:
    """When answers are near the original's. `noise`: what arithmetic may change of a number, as a share of its channel's largest."""

    noise: Array
    agreement: AgreementSpec = field(default_factory=AgreementSpec)
    outputs: tuple[tuple[str, int], ...] = ()

    def pool(self, answers: Sequence[Array], original: Sequence[Array]) -> Pool:
        """Share of items that are near in every channel. Raises DataError where one number for all of them would be.

        The systematic part of a channel's errors counts twice, so that it is held to half the tolerance: noise averages out over the
        items of whoever compares means, a shift of all answers does not.
        """
        prediction, truth = np.stack(answers), np.stack(original)
        limits = self._tolerances(truth)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            same = (prediction == truth) | (np.isnan(prediction) & np.isnan(truth))
            errors = np.where(same, 0.0, np.nan_to_num(prediction - truth, nan=np.inf, posinf=np.inf, neginf=-np.inf))
        bias = np.clip(errors, -limits, limits).mean(axis=0)
        near = np.abs(errors) + np.abs(bias) <= limits * (1 + 1e-9)
        constant = _far_from_one_number(truth, limits)
        if len(truth) >= FEWEST and not constant.any():
            raise DataError(
                f"one number for all {len(truth)} items would be within the tolerance of the original's answers in every channel: such items "
                "prove nothing"
            )
        finite = np.where(np.isfinite(errors), errors, 0)
        typical = amounts(np.nanmedian(np.where(np.isfinite(truth), limits, np.nan), axis=0))
        told = f"within {typical} of the original's; MAE {amounts(np.abs(finite).mean(axis=0))}, bias {amounts(finite.mean(axis=0))}"
        lost = self._lost((~near).sum(axis=0), constant, len(truth))
        return replace(share(near.all(axis=1)), gone=lost, details=told)

    def _tolerances(self, truth: Array) -> Array:
        """How far each number may differ: `[items, channels]`."""
        spec = self.agreement
        if spec.atol is not None or spec.rtol is not None:
            return (spec.atol or 0.0) + (spec.rtol or 0.0) * np.nan_to_num(np.abs(truth), posinf=0)
        return np.broadcast_to(tolerances(truth, self.noise), truth.shape)

    def _lost(self, wrong: Array, constant: Array, items: int) -> str | None:
        """The channel that follows its input no more than half way, for a person."""
        lost = np.flatnonzero((wrong > LEAST_SKILL * constant) & (constant > 0))
        if not len(lost):
            return None
        worst = int(lost[np.argmax(wrong[lost] / constant[lost])])
        return (
            f"{self._place(worst)} is too far from the original's in {int(wrong[worst])} of {items} items, and one number for all of them "
            f"would be in {int(constant[worst])}: it hardly depends on its input any more; quantize fewer operators"
        )

    def _place(self, channel: int) -> str:
        for name, size in self.outputs:
            if channel < size:
                return name if size == 1 else f"number {channel} of {name}"
            channel -= size
        return f"number {channel}"


def tolerances(truth: Array, noise: Array) -> Array:
    """How far the numbers of each channel may differ, from the original's, `[items, channels]` -> `[channels]`.

    A tenth of the spread: the smaller of the standard deviation and of what the middle items say, for one outlier makes the former as
    large as itself. Where the middle items are all alike, the others are what varies. A channel that never moves has no spread.
    """
    numbers = np.where(np.isfinite(truth), truth, np.nan)
    known = np.isfinite(numbers).any(axis=0)
    numbers = np.where(known, numbers, 0.0)
    magnitude = np.nanquantile(np.abs(numbers), MIDDLE[1], axis=0)
    floor = noise * magnitude
    deviation = np.nanstd(numbers, axis=0)
    low, high = np.nanquantile(numbers, MIDDLE, axis=0)
    middle = (high - low) / NORMAL
    spread = np.where(middle > floor, np.minimum(middle, deviation), deviation)
    varies = spread > floor
    near = np.maximum(TOLERANCE * spread, floor)
    least = near[varies].min() if varies.any() else 0.0
    return np.where(varies, near, np.maximum(CONSTANT * magnitude, least or 1e-6))


def _far_from_one_number(truth: Array, limits: Array) -> Array:
    """In how many items at least any one number would be too far from the original's, by channel."""
    far = np.zeros(truth.shape[1], dtype=np.int64)
    for channel in range(truth.shape[1]):
        finite = np.isfinite(truth[:, channel])
        ends = np.sort(truth[finite, channel] + limits[finite, channel])
        starts = np.sort(truth[finite, channel] - limits[finite, channel])
        # At each start, the intervals that began, less those that ended before: as many items one number there is near to.
        begun = np.arange(1, len(starts) + 1)
        near = (begun - np.searchsorted(ends, starts, side="left")).max(initial=0)
        far[channel] = int(finite.sum()) - near
    return far


def amounts(values: Array) -> str:
    """Figures of the channels, for a person: one by one where they are few."""
    if len(values) > SHOWN:
        return f"{values.min():.3g} to {values.max():.3g}"
    return ", ".join(f"{value:.3g}" for value in values) if len(values) > 1 else f"{values[0]:.3g}"
