"""How answers are compared, chosen per output from what the original answered; `store/comparison.py` does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fettle.api.optimizedmodel import AgreementSpec
from fettle.api.signature import Tensor
from fettle.api.vocabulary import AgreementMode
from fettle.errors import DataError
from fettle.store.comparison import Comparison, class_count, is_float

Array = np.ndarray[Any, Any]

RANGE_SHARE = 0.01  # Elementwise without tolerances: within 1 % of the original's output range
# What a different order of the same float operations may change: relative, and absolute as a share of the output's scale.
FLOAT_NOISE: dict[str, tuple[float, float]] = {
    "float64": (1e-3, 1e-4),  # a runtime may compute in float32 inside
    "float32": (1e-3, 1e-4),
    "float16": (1e-2, 2e-3),
    "bfloat16": (5e-2, 1e-2),
}


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

    def add(self, answer: Array) -> None:
        """Take one item's answer into account."""
        self.dtype = answer.dtype.name
        self.floating = is_float(answer)
        if not self.floating or answer.size == 0:
            self.softmax = False
            return
        values = answer.astype(np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        self.classes = class_count(answer, self.axis)
        if self.softmax:
            whole = self.classes > 1 and finite.size == values.size and self.low >= 0
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
        return 0.5 if self.low >= 0 and self.high <= 1 else 0.0

    def noise(self) -> tuple[float, float]:
        """rtol and atol of float noise in this output."""
        rtol, share = FLOAT_NOISE.get(self.dtype, (0.0, 0.0))
        return rtol, max(share * self.scale, 1e-6)


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
    atol = spec.atol
    if atol is None:
        atol = RANGE_SHARE * profile.range if spec.rtol is None else 0.0
    return Comparison(
        mode=mode,
        axis=profile.axis,
        min_cosine=spec.min_cosine,
        rtol=spec.rtol or 0.0,
        atol=max(atol, 1e-6) if spec.atol is None and spec.rtol is None else atol,
        threshold=profile.threshold,
    )


def within_noise(original: Array, candidate: Array, noise: tuple[float, float]) -> bool:
    """Whether two answers differ by no more than the order of float operations explains; ints, bools and texts not at all."""
    if original.shape != candidate.shape:
        return False
    if not is_float(original):
        return bool(np.array_equal(original, candidate))
    left, right = original.astype(np.float64), candidate.astype(np.float64)
    return bool(np.allclose(right, left, rtol=noise[0], atol=noise[1], equal_nan=True))
