"""What a task's metric is: it decodes answers, scores them against a truth, and says what all scores together are worth.

A value is taken over groups of items, drawn with replacement for the interval: so a metric need not be a mean of the items' scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from fettle.api.interval import tango
from fettle.api.optimizedmodel import EvaluationSpec
from fettle.api.optimizedmodel_status import Interval
from fettle.api.signature import Signature
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.statistics import Indices, bca, groups_of

Array = np.ndarray[Any, Any]
BATCH_NUMBERS = 4_000_000  # numbers that a bootstrap may hold at once


class TaskMetric(Protocol):
    """A metric, fitted to the original's answers. Each module of this package has one."""

    told: str  # what the answers were taken for, for a person
    outputs: frozenset[str]  # outputs that it judges
    one_scale: bool  # whether these have one scale: then a channel that is nearly 0 has none of its own

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Find out how the answers are to be read, from some of the original's.

        Raises DataError (DataInvalid) where they are not what this metric judges: what was expected, what was found.
        """
        ...

    def sure(self, examples: Sequence[Answer]) -> bool:
        """Whether answers like these hardly are anything else, so that this metric judges them unasked."""
        ...

    def decode(self, answer: Answer) -> Any:
        """What an answer says: boxes, a mask, a text, a vector."""
        ...

    def values(self, said: Any) -> Array:
        """What is decided in it: classes or characters; nothing where there are no such."""
        ...

    def read(self, label: Array, answer: Answer) -> Any:
        """What a label says of an item, in the form of `decode`. Raises DataError where it does not fit."""
        ...

    def scorer(self, labelled: bool) -> Scorer:
        """To score answers by labels, or by what the original says."""
        ...


class Scorer(Protocol):
    """Scores of one model's answers, item by item."""

    def add(self, said: Any, truth: Any) -> None:
        """Score what was said of the next item."""
        ...

    def pool(self) -> Pool:
        """All scores together. Raises DataError where the truth holds nothing to be found."""
        ...


@dataclass(frozen=True)
class Pool:
    """Scores of all items. `value` takes numbers of groups, drawn along the last axis, and reduces that axis.

    `scores`: what was kept of the items, `items` of them, in the order in which they came. `share`: the metric is the mean of scores that are 0 or 1.
    `constant`: what the best answer that ignores the input is worth. `gone`: a part of the truth that is not followed any more, and `details`:
    what else is to be told, both for a person.
    """

    items: int
    groups: int
    scores: Array
    value: Callable[[Indices], Array]
    share: bool = False
    constant: float | None = None
    gone: str | None = None
    details: str | None = None

    def whole(self) -> float:
        """The metric over all items."""
        return float(self.value(np.arange(self.groups, dtype=np.int64)))


def sums(scores: Sequence[Array], value: Callable[[Array], Array]) -> Pool:
    """Scores that add up: `scores[item]` are k numbers, `value` makes the metric of their sums, `[..., k]` -> `[...]`."""
    matrix = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1)
    group = groups_of(len(matrix))
    totals = np.zeros((int(group.max(initial=-1)) + 1, matrix.shape[1]))
    np.add.at(totals, group, matrix)
    return Pool(len(matrix), len(totals), matrix, lambda drawn: value(totals[drawn].sum(axis=-2)))


def share(flags: Sequence[bool] | Array) -> Pool:
    """A share of the items."""
    found = np.asarray(flags, dtype=np.float64)
    group = groups_of(len(found))
    totals, sizes = np.bincount(group, weights=found), np.bincount(group)
    return Pool(
        len(found), len(sizes), found, lambda drawn: totals[drawn].sum(axis=-1) / sizes[drawn].sum(axis=-1), True
    )


def drop(original: Pool, candidate: Pool, alpha: float) -> Interval | None:
    """Interval of what the candidate lost against the original on the same items; positive = worse. None with too few items to say."""
    before, after = original.scores, candidate.scores
    if original.share:
        return tango(int((before > after).sum()), int((before < after).sum()), original.items, alpha)
    if np.array_equal(before, after):
        # A bootstrap would say [0, 0] on any number of items; the score interval of a share does not.
        return tango(0, 0, original.items, alpha)
    batch = max(1, BATCH_NUMBERS // max(before.size, after.size, 1))
    found = bca(original.groups, lambda drawn: original.value(drawn) - candidate.value(drawn), alpha, batch=batch)
    # What few items did not show may be there: less is never claimed than where nothing changed at all.
    least = tango(0, 0, original.items, alpha).high
    return None if found is None else Interval(value=found.value, low=found.low, high=max(found.high, least))


def ratio(above: Array, below: Array, empty: float) -> Array:
    """The quotient, element by element; `empty` where `below` is 0."""
    return np.asarray(np.where(below > 0, above / np.where(below > 0, below, 1), empty))


def item_of(array: Array, rank: int) -> Array:
    """`array` with at most `rank` axes, where those in front have one place: a batch axis of 1 that was not proved to be one."""
    front = array.ndim - rank
    return array.reshape(array.shape[front:]) if front > 0 and all(size == 1 for size in array.shape[:front]) else array


def shapes(answer: Answer) -> str:
    """Names and shapes of what a model answers to an item, for a person."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in answer.items())
