"""How much of an output's information a candidate keeps: the variance over items that remains in each channel.

A tolerance limits the distance between two answers. It cannot distinguish an answer that follows its input from one that no longer
does but stays close: a score that is 0 for nearly every item, or a box whose corners move by less than the tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fettle.api.signature import Tensor
from fettle.optimizer.measure.scales import DIFFERENT, Scales
from fettle.runtimes.base import Array
from fettle.store.comparison import Channels, narrowed

LEAST_KEPT = 0.5  # of a channel's variance: below, its errors are as large as what it says
DEAD = 0.01  # of the original's variance: a candidate whose own is less answers one number to everything
LEAST_ITEMS = 10.0  # that must carry a channel's variance: what one item alone says may be gone by chance
REAL = 10.0  # times the noise of arithmetic: a channel that moves less says nothing


@dataclass(frozen=True)
class Kept:
    """What remains of one channel. `place` is written as in NumPy: `boxes[:, 4, :]` is index 4 of the model's axis 1.

    `share`: 1 - var(candidate - original) / var(original) over items, at most 1; `own`: var(candidate) / var(original).
    """

    place: str
    share: float
    own: float

    @property
    def dead(self) -> bool:
        """Whether the candidate's answers stay the same where the original's vary."""
        return self.own < DEAD

    @property
    def lost(self) -> bool:
        """Whether less than half of it remains."""
        return self.share < LEAST_KEPT


class Variance:
    """Sums over the items of one output, for the original and the candidate. Each element's mean over the items is subtracted.

    Along axes with separate tolerances (`channels`), elements are measured in units of these, so that no channel outweighs another.
    `noise`: the relative error of the arithmetic. `competing`: the numbers compete, as scores of classes do, so a channel that varies
    far less than the others decides nothing.
    """

    def __init__(
        self, tensor: Tensor, scales: Scales, channels: tuple[Channels, ...], noise: float, competing: bool
    ) -> None:
        self._tensor, self._scales, self._noise, self._competing = tensor, scales, noise, competing
        self._told_apart = {channel.axis + scales.rank for channel in channels}
        self._mean = scales.mean
        self._unit = narrowed(1.0, channels, self._mean.shape)
        self._seen, self._moved, self._gap = (np.zeros_like(self._mean) for _ in range(3))
        self._original, self._error, self._both = (np.zeros_like(self._mean) for _ in range(3))
        # By axis: sums of each item's squares, and of their squares, from which follows how many items carry them.
        self._axes: dict[int | None, Array] = {None: np.zeros((2, 1))}
        self._axes |= {axis: np.zeros((2, self._mean.shape[axis])) for axis in scales.channel_axes()}

    def add(self, original: Array, candidate: Array) -> None:
        """Add the answers to one item. Answers are ignored if their shapes differ from each other or from the scales' shape."""
        if original.shape != candidate.shape or not self._scales.fits(original.shape):
            return
        left, right = (self._scales.thin(answer).astype(np.float64) for answer in (original, candidate))
        valid = np.isfinite(left) & np.isfinite(right)
        unit = np.broadcast_to(self._unit, self._mean.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            moved = np.where(valid, (left - self._mean) / unit, 0)
            gap = np.where(valid, (right - left) / unit, 0)
            squares = self._sum(moved**2)
            self._seen += self._sum(valid)
            self._moved += self._sum(moved)
            self._gap += self._sum(gap)
            self._original += squares
            self._error += self._sum(gap**2)
            self._both += self._sum(moved * gap)
        for axis, sums in self._axes.items():
            by_slice = _slices(squares, axis)
            sums += np.stack([by_slice, by_slice**2])

    def worst(self) -> tuple[Kept | None, Kept | None]:
        """The channel with the least `share`, and the one with the least `own`; None if no channel is informative.

        If several have nothing left, one along an axis of channels is preferred, since that is what people call a channel.
        """
        axes = sorted(self._axes, key=lambda axis: (axis not in self._told_apart, axis is None))
        channels = [kept for axis in axes for kept in self._channels(axis)]
        if not channels:
            return None, None
        return min(channels, key=lambda channel: round(max(channel.share, 0), 4)), min(
            channels, key=lambda channel: round(max(channel.own, 0), 4)
        )

    def _channels(self, axis: int | None) -> list[Kept]:
        """Every informative channel along `axis`; if it is None, the whole output is one channel."""
        seen = np.maximum(self._seen, 1)
        # The mean that is taken off is that of all items of the scales; what is judged may be others.
        original = _slices(self._original - self._moved**2 / seen, axis)
        error = _slices(self._error - self._gap**2 / seen, axis)
        own = original + error + 2 * _slices(self._both - self._moved * self._gap / seen, axis)
        counted = self._says_something(axis, original / np.maximum(_slices(self._seen, axis), 1))
        return [
            Kept(
                self._place(axis, index),
                1 - error[index] / original[index],
                own[index] / original[index],
            )
            for index in np.flatnonzero(counted).tolist()
        ]

    def _says_something(self, axis: int | None, variance: Array) -> Array:
        """Which slices vary by more than arithmetic noise in enough items, and, if they share a scale, by about as much as the others."""
        total, squares = self._axes[axis]
        items = total**2 / np.where(squares > 0, squares, 1)
        size = _slices((self._mean / np.broadcast_to(self._unit, self._mean.shape)) ** 2, axis)
        elements = self._mean.size / max(len(size), 1)
        floor = (REAL * self._noise) ** 2 * (size / max(elements, 1) + variance)
        counted = (items >= LEAST_ITEMS) & (variance > floor) & np.isfinite(variance)
        if axis not in self._told_apart and counted.any():
            usual = np.max(variance[counted]) if self._competing else np.median(variance[counted])
            counted &= variance >= usual / DIFFERENT**2
        return np.asarray(counted)

    def _sum(self, values: Array) -> Array:
        return np.asarray(values.sum(axis=self._scales.varying, keepdims=True))

    def _place(self, axis: int | None, index: int) -> str:
        if axis is None:
            return self._tensor.name
        places = [":"] * self._mean.ndim
        places[axis] = str(index)
        batch = self._tensor.batch_axis
        if batch is not None:
            places.insert(batch, ":")
        return f"{self._tensor.name}[{', '.join(places)}]"


def _slices(values: Array, axis: int | None) -> Array:
    """Sums over all other axes."""
    others = None if axis is None else tuple(place for place in range(values.ndim) if place != axis)
    return np.atleast_1d(values.sum(axis=others))
