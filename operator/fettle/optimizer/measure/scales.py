"""The scales of an output's numbers, learned from the original's answers, axis by axis.

One tensor may hold boxes of 0 to 640 pixels and scores of 0 to 1. A tolerance that is a share of the whole range is useless for
the scores, so each index along an axis whose slices differ in scale gets its own tolerance (docs/design/agreement.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fettle.runtimes.base import Array
from fettle.store.comparison import MOST_CHANNELS, Channels, narrowed

DIFFERENT = 4.0  # times another slice's range, in each half of the items: another scale
RANGE_SHARE = 0.01  # Elementwise without tolerances: within 1 % of the range of the original's answers
MOST_ELEMENTS = 1 << 17  # of an item's answer that are looked at: a few MB for each output, however large it is
# The most slices of a second axis: steps of a forecast, not the pixels of a picture or the anchors of a detector.
MOST_OF_SECOND = 64


@dataclass(frozen=True)
class Tolerances:
    """An absolute tolerance for each number of an output: `atol` is the largest, and `channels` reduce it along axes."""

    atol: float
    channels: tuple[Channels, ...] = ()

    def of(self, shape: tuple[int, ...]) -> float | Array:
        """For an answer of that shape."""
        return narrowed(self.atol, self.channels, shape)


class Scales:
    """The range and the mean of each element of an item's answer, over the items. Fed answer by answer.

    If two answers differ in size along an axis, its positions count from then on as observations of one element.
    Very large answers are sampled: every n-th position of the longest axes. Such an axis has no separate tolerances.
    """

    def __init__(self) -> None:
        # The sizes in all answers so far; an axis that varies has 1 in the grids.
        self._sizes: list[int] | None = None
        self._varying: tuple[int, ...] = ()
        self._steps: tuple[int, ...] = ()
        self._count = 0
        self._comparable = True
        self._low = self._high = np.empty((2, 0))  # by half of the items, then the elements
        self._total = self._seen = np.empty(0)

    def add(self, values: Array) -> None:
        """Add one item's answer: float64, NaN and infinities included."""
        if self._sizes is None:
            self._begin(values.shape)
        if self._sizes is None or len(values.shape) != len(self._sizes):
            self._comparable = False  # of another rank: nothing can be told apart
            return
        for axis, size in enumerate(values.shape):
            if axis not in self._varying and size != self._sizes[axis]:
                self._merge(axis)
        half, self._count = self._count % 2, self._count + 1
        looked_at = self.thin(values)
        finite = np.isfinite(looked_at)
        low = np.where(finite, looked_at, np.inf).min(axis=self._varying, keepdims=True, initial=np.inf)
        high = np.where(finite, looked_at, -np.inf).max(axis=self._varying, keepdims=True, initial=-np.inf)
        self._low[half] = np.minimum(self._low[half], low)
        self._high[half] = np.maximum(self._high[half], high)
        self._total += np.where(finite, looked_at, 0).sum(axis=self._varying, keepdims=True)
        self._seen += finite.sum(axis=self._varying, keepdims=True)

    def thin(self, values: Array) -> Array:
        """The sampled positions of an answer."""
        steps = (1 if axis in self._varying else step for axis, step in enumerate(self._steps))
        return values[tuple(slice(None, None, step) for step in steps)]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an answer of that shape has the same sizes as the answers that were added."""
        sizes = self._sizes or []
        return len(shape) == len(sizes) and all(
            axis in self._varying or size == sizes[axis] for axis, size in enumerate(shape)
        )

    @property
    def usable(self) -> bool:
        """Whether there were answers, all of one rank, with numbers in them."""
        return self._comparable and self._sizes is not None and self._total.size > 0

    @property
    def rank(self) -> int:
        """Axes of an item's answer."""
        return len(self._sizes or ())

    @property
    def varying(self) -> tuple[int, ...]:
        """Axes along which answers differed in size."""
        return self._varying

    @property
    def mean(self) -> Array:
        """The mean of each element over all items, with size 1 along an axis that varies; 0 if there was no number."""
        return np.asarray(self._total / np.maximum(self._seen, 1))

    def channel_axes(self) -> list[int]:
        """Axes of which no index was skipped, and that are short enough for separate tolerances."""
        sizes = self._sizes or []
        return [
            axis
            for axis, size in enumerate(sizes)
            if axis not in self._varying and self._steps[axis] == 1 and 2 <= size <= MOST_CHANNELS
        ]

    def magnitudes(self, axis: int) -> Array:
        """Largest absolute number of each slice along `axis`."""
        others = tuple(place for place in range(self.rank) if place != axis)
        low, high = self._low.min(axis=0).min(axis=others), self._high.max(axis=0).max(axis=others)
        return np.where(np.isfinite(low), np.maximum(np.abs(low), np.abs(high)), 0.0)

    def tolerances(self, noise: float) -> Tolerances | None:
        """1 % of the range of each slice along the axis whose slices differ most in scale, and along a second axis within it.

        `noise`: the relative error of the arithmetic. None if no axis has slices of different scales.
        """
        if not self.usable:
            return None
        axis, spread = self._widest(self.channel_axes(), lambda candidate_axis: self._ranges(candidate_axis, noise))
        if axis is None or spread <= DIFFERENT:
            return None
        whole = np.stack([self._low.min(axis=0)]), np.stack([self._high.max(axis=0)])
        slice_tolerances = RANGE_SHARE * _slice_ranges(*whole, axis)[0]
        # A slice that is constant has no scale of its own.
        slice_tolerances[slice_tolerances <= RANGE_SHARE * 2 * noise * self.magnitudes(axis)] = 0
        least = slice_tolerances[slice_tolerances > 0].min()
        atols = np.where(slice_tolerances > 0, slice_tolerances, np.maximum(least, noise * self.magnitudes(axis)))
        channels = [_channels(axis - self.rank, atols)]
        second = self._second(axis, noise)
        return Tolerances(float(f"{atols.max():.3g}"), (*channels, *([second] if second is not None else [])))

    def _second(self, first: int, noise: float) -> Channels | None:
        """Shares along a second, short axis: the range of each slice's elements, in units of the largest range in their channel."""
        with np.errstate(invalid="ignore"):
            moved = np.nan_to_num(np.maximum(self._high - self._low, 0), posinf=0)
        others = tuple(place + 1 for place in range(self.rank) if place != first)
        largest = moved.max(axis=others, keepdims=True).max(axis=0, keepdims=True)
        share = moved / np.where(largest > 0, largest, 1)
        short = [axis for axis in self.channel_axes() if axis != first and moved.shape[axis + 1] <= MOST_OF_SECOND]

        def ranges(axis: int) -> Array:
            largest_share = share.max(axis=tuple(place + 1 for place in range(self.rank) if place != axis))
            return np.where(largest_share > noise, largest_share, 0)

        axis, spread = self._widest(short, ranges)
        if axis is None or spread <= DIFFERENT:
            return None
        shares = ranges(axis).max(axis=0)
        return _channels(axis - self.rank, np.where(shares > 0, shares, shares[shares > 0].min()))

    def _ranges(self, axis: int, noise: float) -> Array:
        """Range of each slice along `axis` in each half of the items; 0 if it is only noise."""
        slice_ranges = _slice_ranges(self._low, self._high, axis)
        return np.where(slice_ranges > 2 * noise * self.magnitudes(axis), slice_ranges, 0)

    @staticmethod
    def _widest(axes: list[int], ranges: Any) -> tuple[int | None, float]:
        """The axis whose slices differ most, and by what factor: one that both halves of the items show.

        The factor of one half alone may be due to chance.
        """
        best: tuple[int | None, float] = (None, 1.0)
        for axis in axes:
            by_half = ranges(axis)
            by_half = by_half[:, (by_half > 0).all(axis=0)]
            if by_half.shape[1] < 2:
                continue
            spread = float(by_half.min(axis=0).max() / by_half.max(axis=0).min())
            if spread > best[1]:
                best = (axis, spread)
        return best

    def _begin(self, shape: tuple[int, ...]) -> None:
        self._sizes = list(shape)
        steps = [1] * len(shape)
        while math.prod(-(-size // step) for size, step in zip(shape, steps, strict=True)) > MOST_ELEMENTS:
            longest = max(range(len(shape)), key=lambda axis: -(-shape[axis] // steps[axis]))
            steps[longest] += 1
        self._steps = tuple(steps)
        grid = tuple(-(-size // step) for size, step in zip(shape, steps, strict=True))
        self._low, self._high = np.full((2, *grid), np.inf), np.full((2, *grid), -np.inf)
        self._total, self._seen = np.zeros(grid), np.zeros(grid)

    def _merge(self, axis: int) -> None:
        """Merge the positions along `axis` into one element."""
        self._varying = (*self._varying, axis)
        self._low = self._low.min(axis=axis + 1, keepdims=True, initial=np.inf)
        self._high = self._high.max(axis=axis + 1, keepdims=True, initial=-np.inf)
        self._total = self._total.sum(axis=axis, keepdims=True)
        self._seen = self._seen.sum(axis=axis, keepdims=True)


def _slice_ranges(low: Array, high: Array, axis: int) -> Array:
    """Range of each slice along an element's `axis`; the first axis of both is kept. 0 where there was no number."""
    others = tuple(place + 1 for place in range(low.ndim - 1) if place != axis)
    with np.errstate(invalid="ignore", over="ignore"):
        extent = high.max(axis=others) - low.min(axis=others)
    return np.where(np.isfinite(extent), np.maximum(extent, 0), 0.0)


def _channels(axis: int, tolerances: Array) -> Channels:
    """Tolerances along `axis`, as shares rounded to two digits, so that a last bit does not change an artifact's digest."""
    shares = tolerances / tolerances.max()
    return Channels(axis=axis, shares=tuple(float(f"{share:.2g}") for share in shares))
