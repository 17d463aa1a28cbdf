"""How answers are compared, chosen per output from what the original answered; `store/comparison.py` does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fettle.api.data import AgreementSpec
from fettle.api.signature import Tensor
from fettle.api.vocabulary import AgreementMode
from fettle.errors import DataError
from fettle.optimizer.measure.scales import RANGE_SHARE, Scales, Tolerances
from fettle.runtimes.base import Array
from fettle.store.comparison import Comparison, class_count, close, is_float

# What a different order of the same float operations may change: relative, and absolute as a share of the output's scale.
FLOAT_NOISE: dict[str, tuple[float, float]] = {
    "float64": (1e-3, 1e-4),  # a runtime may compute in float32 inside
    "float32": (1e-3, 1e-4),
    "float16": (1e-2, 2e-3),
    "bfloat16": (5e-2, 1e-2),
}
OVERSHOOT = 1e-3  # of a probability: a sigmoid that is approximated may answer 1.0000001
# A share of the output's scale: a small channel may be the difference of numbers as large as the large ones are.
FLOAT_FLOOR = 1e-6


@dataclass
class OutputProfile:
    """What the original's answers look like in one output: fed answer by answer, read when all are in."""

    floating: bool = True
    dtype: str = "float32"
    low: float = math.inf
    high: float = -math.inf
    softmax: bool = True
    classes: int = 0
    axis: int = -1
    scales: Scales = field(default_factory=Scales)

    def add(self, answer: Array) -> None:
        """Take one item's answer into account."""
        self.__dict__.pop("tolerances", None)  # they follow from all answers
        self.dtype = answer.dtype.name
        self.floating = is_float(answer)
        if not self.floating:
            self.softmax = False
            return
        values = answer.astype(np.float64)
        self.scales.add(values)
        if not answer.size:
            return  # nothing was found in this item: it says nothing of what there is to be found
        finite = values[np.isfinite(values)]
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        self.classes = class_count(answer, self.axis)
        if self.softmax:
            whole = self.classes > 1 and finite.size == values.size and self.low >= -OVERSHOOT
            self.softmax = whole and bool(np.allclose(values.sum(axis=self.axis), 1, atol=1e-2))

    @property
    def range(self) -> float:
        """Largest minus smallest finite value; 0 where there was none."""
        return max(self.high - self.low, 0.0) if math.isfinite(self.low) else 0.0

    @property
    def scale(self) -> float:
        """Largest finite magnitude; 0 where there was none."""
        return max(abs(self.low), abs(self.high)) if math.isfinite(self.low) else 0.0

    @property
    def threshold(self) -> float:
        """Where a single score turns to yes: .5 for probabilities, 0 for anything else."""
        return 0.5 if self.low >= -OVERSHOOT and self.high <= 1 + OVERSHOOT else 0.0

    def noise(self) -> tuple[float, float]:
        """rtol and atol of float noise in this output as a whole."""
        rtol, share = FLOAT_NOISE.get(self.dtype, (0.0, 0.0))
        return rtol, max(share * self.scale, 1e-6)

    @cached_property
    def tolerances(self) -> Tolerances:
        """1 % of the output's range, or of each channel's where channels differ in scale. Asked when all answers are in."""
        _, share = FLOAT_NOISE.get(self.dtype, (0.0, 0.0))
        by_slice = self.scales.tolerances(share)
        # An output that is one number has no range; where that number is 0, it has no unit either.
        return by_slice or Tolerances(max(RANGE_SHARE * self.range, share * self.scale) or 1e-6)

    def noise_of(self, shape: tuple[int, ...]) -> tuple[float, float | Array]:
        """rtol and atol of float noise in an answer of that shape, channel by channel where they differ in scale."""
        rtol, share = FLOAT_NOISE.get(self.dtype, (0.0, 0.0))
        noise = Tolerances(share * self.scale or 1e-6, self.tolerances.channels).of(shape)
        return rtol, np.maximum(noise, FLOAT_FLOOR * self.scale)


def item_axis(tensor: Tensor, axis: int) -> int:
    """`axis` of the model's output as an axis of one item's answer, which has no batch axis; counted from the end.

    An axis that this output does not have stays as it is: then it has no classes. So does the axis of an output that has the
    batch's only, as the labels that scikit-learn answers: one number an item. Raises DataError for the batch axis of any other.
    """
    rank, batch = len(tensor.shape), tensor.batch_axis
    if not -rank <= axis < rank or (rank == 1 and batch == 0):
        return axis
    place = axis % rank
    if place == batch:
        raise DataError(f"data.evaluation.agreement.axis is {axis}: that is the batch axis of output {tensor.name}")
    return place - rank if batch is None or batch < place else place - rank + 1


def comparisons(
    profiles: Mapping[str, OutputProfile], spec: AgreementSpec, classified: str | None
) -> dict[str, Comparison]:
    """The way to compare each output that is compared; `classified` is the output that labels speak of, if they name classes.

    Raises DataError where `spec` names an output that the model does not have.
    """
    unknown = sorted(set(spec.outputs) - set(profiles))
    if unknown:
        raise DataError(f"data.evaluation.agreement.outputs names {unknown}; the model has {sorted(profiles)}")
    chosen = spec.outputs or tuple(profiles)
    return {name: _comparison(profiles[name], spec, name == classified) for name in chosen}


def _comparison(profile: OutputProfile, spec: AgreementSpec, classified: bool) -> Comparison:
    mode = spec.mode
    if not profile.floating:
        mode = AgreementMode.EXACT  # a text or a number of a class has no distance
    elif mode == AgreementMode.AUTO:
        labelled = classified and profile.classes >= 1
        mode = AgreementMode.TOP_ONE if profile.softmax or labelled else AgreementMode.ELEMENTWISE
    given = own_tolerance(spec)
    tolerances = Tolerances(spec.atol or 0.0) if given else profile.tolerances
    return Comparison(
        mode=mode,
        axis=profile.axis,
        min_cosine=spec.min_cosine,
        rtol=spec.rtol or 0.0,
        atol=tolerances.atol,
        threshold=profile.threshold,
        channels=tolerances.channels or None if mode == AgreementMode.ELEMENTWISE else None,
    )


def own_tolerance(spec: AgreementSpec) -> bool:
    """Whether a person says how far numbers may differ: then it holds for whole outputs."""
    return spec.atol is not None or spec.rtol is not None


def within_noise(original: Array, candidate: Array, noise: tuple[float, float | Array]) -> bool:
    """Whether two answers differ by no more than the order of float operations explains; ints, bools and texts not at all."""
    if original.shape != candidate.shape:
        return False
    if not is_float(original):
        return bool(np.array_equal(original, candidate))
    return close(original.astype(np.float64), candidate.astype(np.float64), *noise)
