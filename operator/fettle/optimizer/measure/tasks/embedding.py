"""Metric Embedding: does each item's vector have the right neighbour, among the other items and in an index of the original?

With labels: its nearest neighbour by cosine has the same label (precision at 1, as in metric learning). As agreement: it has the neighbour that
the original's vector has, and among the original's vectors it is nearest to that of its own item, which it is near to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.signature import Signature
from fettle.api.vocabulary import AgreementMode
from fettle.errors import DataError
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import (
    Collected,
    Likeness,
    Pool,
    Scorer,
    TaskMetric,
    shapes,
    share,
)
from fettle.runtimes.base import Array, as_text
from fettle.store.comparison import Comparison, is_float

LEAST_NUMBERS = 8  # of a vector
LEAST_UNASKED = 32  # where nobody says that it is a vector
# Shares of the median distance (1 - cosine) between two items: raw transformers put all of them into a narrow cone.
AS_NEAR = 0.01  # items whose distances differ by no more are equally near
SAME_PLACE = 0.1  # how far a vector may lie from the original's of its item
SAME_LENGTH = 0.1  # by what share a vector may be longer or shorter: an index may compare products
LEAST_DISTANCE = 1e-4  # between two items; less is the noise of float32
LIVE_COSINE = 1 - SAME_PLACE  # where items are about at right angles
BLOCK = 1024  # items whose similarities are held at once


class Embedding(TaskMetric):
    """A vector for each item."""

    def __init__(self, name: str, numbers: int, axis: int) -> None:
        self._name, self._axis = name, axis
        self.outputs = frozenset({name})
        self.told = f"a vector of {numbers} numbers in {name}: items are compared by the cosine of their vectors"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Take the whole answer for a vector. Raises DataError."""
        name = signature.judged_output(spec.output)
        first = examples[0][name]
        if (
            not is_float(first)
            or first.size < LEAST_NUMBERS
            or any(answer[name].shape != first.shape for answer in examples)
        ):
            raise DataError(
                f"metric Embedding finds no vector in {shapes({name: first})} (one item's answer): it needs {LEAST_NUMBERS} or more numbers, "
                "as many for every item"
            )
        return cls(name, first.size, int(np.argmax(first.shape)) - first.ndim)

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """Vectors of length 1, as models give that were trained to be compared by cosine."""
        vectors = np.stack([answer[self._name].reshape(-1).astype(np.float64) for answer in examples])
        flat = max(examples[0][self._name].shape, default=0) == vectors.shape[1]
        long = flat and vectors.shape[1] >= LEAST_UNASKED and vectors.min() < 0
        unit = bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))
        return Likeness.SURE if long and unit else Likeness.NONE

    def decode(self, answer: Answer) -> Array:
        """The vector."""
        return answer[self._name].reshape(-1).astype(np.float32)

    def read(self, label: Array, prediction: Array) -> str:
        """What items that belong together have in common: a number or a text."""
        if label.size != 1:
            raise DataError(f"metric Embedding needs one number or text for an item, found {list(label.shape)}")
        return as_text(label.reshape(-1).tolist()[0])

    def scorer(self, labelled: bool) -> Scorer:
        """By labels, or by the original's vectors."""
        return Collected(same_label) if labelled else Collected(same_place, same_shape=True)

    def live(self, rule: Comparison) -> Comparison:
        """By the cosine of the two vectors."""
        return Comparison(mode=AgreementMode.COSINE, axis=self._axis, min_cosine=LIVE_COSINE)


def same_label(prediction: Sequence[Array], truth: Sequence[str]) -> Pool:
    """Share of items whose nearest neighbour has the same label. One whose label no other has does not count. Raises DataError where that is
    so of all."""
    _, places, times = np.unique(np.array(truth), return_inverse=True, return_counts=True)
    counts = times[places] > 1
    if not counts.any():
        raise DataError("every item has a label of its own: metric Embedding needs items that belong together")
    vectors = _unit(np.stack(prediction))
    nearest, _ = neighbours(vectors, vectors, itself=False)
    return share((places[nearest] == places)[counts])


def same_place(prediction: Sequence[Array], truth: Sequence[Array]) -> Pool:
    """Share of items whose vector lies where the original's does: for its neighbours, and for an index that holds the original's.

    Only items count that the original gives a direction. Raises DataError where there is no other one to be near to.
    """
    candidate, original = np.stack(prediction), np.stack(truth)
    known = np.linalg.norm(original, axis=1) > 0  # NaN and zero have no direction
    if known.sum() < 3:
        raise DataError(
            f"metric Embedding needs at least 3 items with a vector that is not 0, found {int(known.sum())}"
        )
    candidate, original = candidate[known], original[known]
    lengths = [np.linalg.norm(side, axis=1) for side in (candidate, original)]
    same_length = np.abs(lengths[0] - lengths[1]) <= SAME_LENGTH * lengths[1]
    candidate, original = _unit(candidate), _unit(original)
    apart = _usual_distance(original)
    _, wanted = neighbours(original, original, itself=False)
    nearest, _ = neighbours(candidate, candidate, itself=False)
    same_neighbour = (original * original[nearest]).sum(axis=1) >= wanted - AS_NEAR * apart
    own = (candidate * original).sum(axis=1)
    found, _ = neighbours(candidate, original, itself=True)  # which may be a copy of it
    finds_itself = (original * original[found]).sum(axis=1) >= 1 - AS_NEAR * apart
    return share(same_length & same_neighbour & finds_itself & (own >= 1 - SAME_PLACE * apart))


def _unit(vectors: Array) -> Array:
    """Of length 1; 0 where there is no direction."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(lengths > 0, vectors / np.where(lengths > 0, lengths, 1), 0)


def _usual_distance(vectors: Array) -> float:
    """The median of 1 - cosine between two different items, of at most `BLOCK` of them."""
    some = vectors[:: -(-len(vectors) // BLOCK)]
    one, other = np.triu_indices(len(some), 1)
    return max(float(np.median(1 - (some @ some.T)[one, other])), LEAST_DISTANCE)


def neighbours(vectors: Array, among: Array, itself: bool) -> tuple[Array, Array]:
    """Number and cosine of the nearest of `among` to each vector, of length 1 all; the one with its own number only where `itself`."""
    found, cosines = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors))
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK] @ among.T
        rows = np.arange(len(block))
        if not itself:
            block[rows, start + rows] = -np.inf
        found[start : start + BLOCK] = nearest = np.argmax(block, axis=1)
        cosines[start : start + BLOCK] = block[rows, nearest]
    return found, cosines
