"""How inputs and outputs are distributed in the evaluation data, by feature, so that a server can tell when live requests are of another kind.

A feature is a number of an item: each element of a small tensor of a fixed shape, or the mean and the deviation of a larger one, or the length of
texts. Its distribution is a histogram over bins that hold about as many of the evaluation items each; values that are no numbers have a
bin of their own. PSI and the Kolmogorov-Smirnov statistic compare two such histograms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from fettle.api.base import ApiModel
from fettle.api.signature import Tensor
from fettle.store.arrays import Array

BINS = 10
MOST_ELEMENTS = 64  # of an item's tensor, each of which is a feature
MOST_FEATURES = 256  # of inputs, and of outputs
MOST_ITEMS = 1024  # that a profile is made from
MOST_LOOKED_AT = 1 << 16  # elements of a large tensor: every so many, the same ones always
DIGITS = 6
_PRIOR = 0.5  # an item more in each bin: one that nothing fell into is rare, not impossible


class FeatureProfile(ApiModel):
    """A histogram: `counts` of values up to each of `edges`, above the last, and that are no finite number."""

    tensor: Annotated[str, Field(max_length=1024)]
    feature: Annotated[str, Field(max_length=64)]
    edges: Annotated[tuple[float, ...], Field(max_length=BINS)]
    counts: Annotated[tuple[int, ...], Field(max_length=BINS + 2)]


class Profile(ApiModel):
    """Of an artifact: its inputs as the evaluation data has them, and its outputs as it answered."""

    inputs: Annotated[tuple[FeatureProfile, ...], Field(max_length=MOST_FEATURES)] = ()
    outputs: Annotated[tuple[FeatureProfile, ...], Field(max_length=MOST_FEATURES)] = ()


PROFILE = TypeAdapter(Profile)


def read(content: bytes) -> Profile | None:
    """A profile as it was written; None where it is damaged, or another version's."""
    try:
        profile = PROFILE.validate_json(content)
    except ValidationError:
        return None
    features = (*profile.inputs, *profile.outputs)
    return profile if all(len(each.counts) == len(each.edges) + 2 for each in features) else None


def names(tensor: Tensor) -> tuple[str, ...]:
    """The features of a tensor."""
    if tensor.dtype == "BYTES":
        return ("length",)
    size = _elements(tensor)
    if size is None or size > MOST_ELEMENTS:
        return ("mean", "deviation")
    return tuple(str(number) for number in range(size))


def values(tensor: Tensor, item: Array) -> list[float]:
    """The features of one item of it, without its batch axis; NaN for what is no finite number."""
    flat = np.asarray(item).reshape(-1)  # one text per item is a str
    if tensor.dtype == "BYTES":
        return [float(np.mean([len(text) for text in flat.tolist()])) if flat.size else math.nan]
    size = _elements(tensor)
    if size is not None and size <= MOST_ELEMENTS:
        found: list[float] = flat.astype(np.float64).tolist()
        return found if len(found) == size else [math.nan] * size
    looked_at = flat[:: max(1, flat.size // MOST_LOOKED_AT)].astype(np.float64)
    finite = looked_at[np.isfinite(looked_at)]
    return [float(finite.mean()), float(finite.std())] if finite.size else [math.nan, math.nan]


def _elements(tensor: Tensor) -> int | None:
    """Elements of an item; None where that varies."""
    sizes = [size for axis, size in enumerate(tensor.shape) if axis != tensor.batch_axis]
    return None if -1 in sizes else math.prod(sizes)


def watched(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Those of the tensors that have features, as many as are bounded."""
    taken, count = [], 0
    for tensor in tensors:
        count += len(names(tensor))
        if count <= MOST_FEATURES and names(tensor):
            taken.append(tensor)
    return tuple(taken)


class Distribution:
    """Gathers items of some tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = watched(tensors)
        self._rows: list[list[float]] = []

    @property
    def full(self) -> bool:
        """Whether more items change nothing."""
        return len(self._rows) >= MOST_ITEMS

    def add(self, item: Mapping[str, Array]) -> None:
        """One item: arrays by tensor, without their batch axis."""
        if not self.full:
            self._rows.append([value for tensor in self.tensors for value in values(tensor, item[tensor.name])])

    def features(self) -> tuple[FeatureProfile, ...]:
        """Their histograms, over bins of about equal size."""
        rows = np.array(self._rows, np.float64).reshape(len(self._rows), -1)
        titles = [(tensor.name, name) for tensor in self.tensors for name in names(tensor)]
        return tuple(
            _feature(tensor, name, rows[:, column]) for column, (tensor, name) in enumerate(titles) if len(rows)
        )


def _feature(tensor: str, name: str, column: Array) -> FeatureProfile:
    finite = column[np.isfinite(column)]
    quantiles = np.quantile(finite, np.linspace(0, 1, BINS + 1)[1:-1]) if finite.size else np.empty(0)
    edges = sorted({float(f"{edge:.{DIGITS}g}") for edge in quantiles.tolist()})
    counts = np.bincount(bins(np.array(edges)[None, :], column[:, None]).reshape(-1), minlength=len(edges) + 2)
    return FeatureProfile(tensor=tensor, feature=name, edges=tuple(edges), counts=tuple(counts.tolist()))


def bins(edges: Array, features: Array) -> Array:
    """The bin of each feature: `edges` of shape [features, K], ascending and filled up with infinity; `features` [..., features].

    Bin i holds values above edge i - 1 up to edge i; K + 1 what is no finite number.
    """
    found = (features[..., None] > edges).sum(-1)
    return np.asarray(np.where(np.isfinite(features), found, edges.shape[-1] + 1))


def psi(expected: Sequence[int] | Array, found: Sequence[int] | Array) -> float:
    """Population stability index of two histograms over the same bins: 0 = the same, above 0.25 by the usual rule another kind of data."""
    p, q = (np.asarray(counts, np.float64) + _PRIOR for counts in (expected, found))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def ks(expected: Sequence[int] | Array, found: Sequence[int] | Array) -> float:
    """Kolmogorov-Smirnov statistic as far as bins tell it: the largest distance of the two cumulated shares, 0 to 1, over finite values."""
    # Of sums that are whole numbers: shares that are summed come to a little more than 1.
    p, q = (np.cumsum(np.asarray(counts, np.float64)[:-1]) for counts in (expected, found))
    return float(np.abs(_quotients(p, p[-1]) - _quotients(q, q[-1])).max())


def _quotients(sums: Array, total: float) -> Array:
    return sums / total if total else sums
