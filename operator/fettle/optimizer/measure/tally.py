"""A candidate's answers compared with the original's, item by item: are they valid, do they agree, how large is the difference?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fettle.api.reasons import Reason
from fettle.api.signature import Tensor
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.agreement import OutputProfile, within_noise
from fettle.optimizer.measure.items import Answer
from fettle.runtimes.base import Array
from fettle.store.comparison import Comparison, agreeing, is_float


@dataclass
class Tally:
    """Sums over the items that were compared."""

    comparisons: dict[str, Comparison]
    # Outputs that a task's metric judges, and those of them that have one scale for all channels.
    judged: frozenset[str] = frozenset()
    one_scale: frozenset[str] = frozenset()
    sure: Mapping[str, Comparison] | None = None  # the rules where items on which the original is unsure are skipped
    unsure: int = 0  # items that were skipped
    disagreed: int = 0
    apart: int = 0  # items that disagree in another output
    worst: float = 0.0
    within_noise: bool = True

    def add(self, original: Answer, candidate: Answer, profiles: dict[str, OutputProfile]) -> None:
        """Compare the answers to one item."""
        agrees = self._agrees(original, candidate)
        if agrees is None:
            self.unsure += 1
        else:
            apart = {name for name, same in agrees.items() if not same}
            self.disagreed += bool(apart)
            self.apart += bool(apart - self.judged)
        for name, profile in profiles.items():
            self.worst = max(self.worst, difference(original[name], candidate[name]))
            noise = profile.noise() if name in self.one_scale else profile.noise_of(original[name].shape)
            self.within_noise = self.within_noise and within_noise(original[name], candidate[name], noise)

    def _agrees(self, original: Answer, candidate: Answer) -> dict[str, bool] | None:
        """By output, whether the answers agree; None if the item is skipped."""
        if self.sure is not None:
            return agreeing(self.sure, original, candidate)
        return {name: way.agrees(original[name], candidate[name]) for name, way in self.comparisons.items()}


def fits(tensor: Tensor, answer: Array) -> bool:
    """Whether one item's answer has the rank and the fixed sizes of the signature."""
    shape = list(tensor.shape)
    if tensor.batch_axis is not None:
        del shape[tensor.batch_axis]
    return len(shape) == answer.ndim and all(
        wanted in (-1, found) for wanted, found in zip(shape, answer.shape, strict=True)
    )


def valid(tensor: Tensor, original: Array, candidate: Array, number: int) -> None:
    """Raises RuntimeFailure (OutputsInvalid) if a candidate's output for an item is not a valid answer."""
    if not fits(tensor, candidate):
        message = f"item {number}: output {tensor.name} has shape {list(candidate.shape)}, the original answers {list(original.shape)}"
        raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID)
    if not is_float(candidate) or not is_float(original):
        return
    broken = ~np.isfinite(candidate.astype(np.float64))
    if original.shape == candidate.shape:
        broken &= np.isfinite(original.astype(np.float64))
    elif np.isfinite(original.astype(np.float64)).all():
        broken = broken.reshape(-1)
    else:
        return
    if broken.any():
        message = f"item {number}: {int(broken.sum())} of {candidate.size} numbers in output {tensor.name} are NaN or infinite"
        raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID)


def difference(original: Array, candidate: Array) -> float:
    """Largest absolute difference of two numeric answers of the same shape; 0 for other answers."""
    if original.shape != candidate.shape or not original.size or original.dtype.kind in "OSUb":
        return 0.0
    left, right = original.astype(np.float64), candidate.astype(np.float64)
    both = np.isfinite(left) & np.isfinite(right)
    with np.errstate(invalid="ignore"):  # infinity less infinity; not looked at
        return float(np.max(np.abs(left - right), where=both, initial=0.0))
