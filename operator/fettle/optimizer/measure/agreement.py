"""When two answers to one item are the same: per output a way to compare, chosen from what the original answered."""

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

    An axis that this output does not have stays as it is: then it has no classes. Raises DataError for the batch axis itself.
    """
    rank, batch = len(tensor.shape), tensor.batch_axis
    if not -rank <= axis < rank:
        return axis
    place = axis % rank
    if place == batch:
        raise DataError(f"data.evaluation.agreement.axis is {axis}: that is the batch axis of output {tensor.name}")
    return place - rank if batch is None or batch < place else place - rank + 1


@dataclass(frozen=True)
class Comparison:
    """How one output's answers are compared. `mode` is never Auto. `rtol` and `atol` are Elementwise's."""

    mode: AgreementMode
    axis: int = -1
    min_cosine: float = 0.99
    rtol: float = 0.0
    atol: float = 0.0
    threshold: float = 0.0

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


def is_float(array: Array) -> bool:
    """Whether an array holds floating-point numbers, bfloat16 included."""
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def class_count(answer: Array, axis: int) -> int:
    """Size of the axis of classes; 1 for a single score, 0 where the answer has no such axis."""
    if answer.ndim == 0:
        return 1
    return int(answer.shape[axis]) if -answer.ndim <= axis < answer.ndim else 0


def decisions(answer: Array, axis: int, threshold: float) -> Array:
    """What an answer decides, flat: the classes with the highest scores; yes or no of a single score; ints and texts as they are."""
    if not is_float(answer):
        return answer.reshape(-1)
    count = class_count(answer, axis)
    if count == 0:
        raise DataError(f"an answer of shape {list(answer.shape)} has no axis {axis} of classes: set agreement.axis")
    if count == 1:
        return (answer.reshape(-1) > threshold).astype(np.int64)
    return np.asarray(np.argmax(answer, axis=axis)).reshape(-1)


def cosine(left: Array, right: Array, axis: int) -> Array:
    """Cosine similarities along `axis`; two zero vectors are alike, one zero vector is like nothing."""
    if left.ndim == 0 or not -left.ndim <= axis < left.ndim:
        left, right, axis = left.reshape(-1), right.reshape(-1), 0
    norms = np.linalg.norm(left, axis=axis) * np.linalg.norm(right, axis=axis)
    both_zero = ~left.any(axis=axis) & ~right.any(axis=axis)
    dots = np.sum(left * right, axis=axis)
    return np.where(both_zero, 1.0, dots / np.where(norms > 0, norms, 1.0))


def within_noise(original: Array, candidate: Array, noise: tuple[float, float]) -> bool:
    """Whether two answers differ by no more than the order of float operations explains; ints, bools and texts not at all."""
    if original.shape != candidate.shape:
        return False
    if not is_float(original):
        return bool(np.array_equal(original, candidate))
    left, right = original.astype(np.float64), candidate.astype(np.float64)
    return bool(np.allclose(right, left, rtol=noise[0], atol=noise[1], equal_nan=True))
