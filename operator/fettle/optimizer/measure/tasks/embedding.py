"""Metric Embedding: does each item's vector have the right neighbour among the other items?

With labels: its nearest neighbour by cosine has the same label (precision at 1, as in metric learning). As agreement: it is the neighbour that
it has among the original's vectors; which of several equally near ones it is does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from fettle.api.optimizedmodel import EvaluationSpec
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.labels.reader import as_text
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Pool, Scorer, shapes, share
from fettle.store.comparison import is_float

Array = np.ndarray[Any, Any]

LEAST_NUMBERS = 8  # of a vector
LEAST_UNASKED = 32  # where nobody says that it is a vector
AS_NEAR = 1e-3  # of a cosine: neighbours that lie no further apart are equally near
BLOCK = 1024  # items whose similarities are held at once


class Embedding:
    """A vector for each item."""

    one_scale = False

    def __init__(self, name: str, numbers: int) -> None:
        self._name = name
        self.outputs = frozenset({name})
        self.told = f"a vector of {numbers} numbers in {name}: items are compared by the cosine of their vectors"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Take the whole answer for a vector. Raises DataError."""
        name = spec.output or signature.outputs[0].name
        first = examples[0][name]
        if (
            not is_float(first)
            or first.size < LEAST_NUMBERS
            or any(answer[name].shape != first.shape for answer in examples)
        ):
            raise DataError(
                f"metric Embedding reads no vector in {shapes({name: first})} (an item's answer): it takes {LEAST_NUMBERS} or more numbers, "
                "as many for every item"
            )
        return cls(name, first.size)

    def sure(self, examples: Sequence[Answer]) -> bool:
        """Vectors of length 1, as models give that were trained to be compared by cosine."""
        vectors = np.stack([answer[self._name].reshape(-1).astype(np.float64) for answer in examples])
        flat = max(examples[0][self._name].shape, default=0) == vectors.shape[1]
        return (
            flat
            and vectors.shape[1] >= LEAST_UNASKED
            and bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))
            and vectors.min() < 0
        )

    def decode(self, answer: Answer) -> Array:
        """The vector, of length 1."""
        vector = answer[self._name].reshape(-1).astype(np.float32)
        length = float(np.linalg.norm(vector))
        return np.asarray(vector / length if length > 0 else vector)

    def values(self, said: Array) -> Array:
        """A vector decides nothing by itself."""
        return np.array([])

    def read(self, label: Array, answer: Answer) -> str:
        """What items that belong together have in common: a number or a text."""
        if label.size != 1:
            raise DataError(f"metric Embedding needs one number or text for an item, found {list(label.shape)}")
        return as_text(label.reshape(-1).tolist()[0])

    def scorer(self, labelled: bool) -> Scorer:
        """By labels, or by the original's vectors."""
        return SameLabel() if labelled else SameNeighbour()


@dataclass
class SameLabel:
    """Whether the nearest neighbour has the same label."""

    _vectors: list[Array] = field(default_factory=list)
    _labels: list[str] = field(default_factory=list)

    def add(self, said: Array, truth: str) -> None:
        """Keep an item's vector and label."""
        self._vectors.append(said)
        self._labels.append(truth)

    def pool(self) -> Pool:
        """Share of items. One whose label no other has does not count. Raises DataError where that is so of all."""
        labels, times = (
            np.unique(np.array(self._labels), return_inverse=False),
            np.unique(self._labels, return_counts=True)[1],
        )
        several = set(labels[times > 1].tolist())
        counts = np.array([label in several for label in self._labels])
        if not counts.any():
            raise DataError("every item has a label of its own: metric Embedding needs items that belong together")
        nearest = neighbours(np.stack(self._vectors))
        right = np.array([self._labels[other] == label for label, other in zip(self._labels, nearest, strict=True)])
        return share(right[counts])


@dataclass
class SameNeighbour:
    """Whether the nearest neighbour is the one among the original's vectors, or as near to the item there."""

    _vectors: list[Array] = field(default_factory=list)
    _original: list[Array] = field(default_factory=list)

    def add(self, said: Array, truth: Array) -> None:
        """Keep an item's vector and the original's."""
        self._vectors.append(said)
        self._original.append(truth)

    def pool(self) -> Pool:
        """Share of items. Raises DataError where there is no other item to be near to."""
        if len(self._vectors) < 3:
            raise DataError(f"metric Embedding needs at least 3 items, found {len(self._vectors)}")
        original = np.stack(self._original)
        wanted, nearest = neighbours(original), neighbours(np.stack(self._vectors))
        similar = (original * original[nearest]).sum(axis=1)
        return share(similar >= (original * original[wanted]).sum(axis=1) - AS_NEAR)


def neighbours(vectors: Array) -> Array:
    """Number of each vector's nearest other one, `[items, numbers]` of length 1 -> `[items]`."""
    found = np.empty(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK] @ vectors.T
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -np.inf
        found[start : start + BLOCK] = np.argmax(block, axis=1)
    return found
