"""What a task's metric is: it decodes answers, scores them against a truth, and says what all scores together are worth.

A value is taken over groups of items, drawn with replacement for the interval: so a metric need not be a mean of the items' scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.interval import tango
from fettle.api.measured import Interval
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.statistics import MINIMUM_GROUPS, Indices, bca, by_group, draws_at_once, group_mean, ratio
from fettle.runtimes.base import Array
from fettle.store.comparison import Comparison

EXAMPLES, LEAST_EXAMPLES = 32, 4  # answers that a metric is fitted to
EXAMPLE_BYTES = 64 << 20  # of all of them
STRANGE = 3  # labels out of range that a message shows


class Likeness(IntEnum):
    """How much answers look like those of a task."""

    NONE = 0
    LIKELY = 1  # other tasks have answers like these
    SURE = 2


class TaskMetric(ABC):
    """A metric, fitted to the original's answers. Each module of this package has one."""

    told: str  # what the answers were taken for, for a person
    outputs: frozenset[str]  # outputs that it judges
    # Whether these have one scale: then a channel that is nearly 0 has none of its own.
    one_scale: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Find out how the answers are to be read, from some of the original's.

        Raises DataError (DataInvalid) where they are not what this metric judges: what was expected, what was found.
        """

    @abstractmethod
    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """Whether answers like these could be anything else. This metric judges them unasked only where it is SURE."""

    @abstractmethod
    def decode(self, answer: Answer) -> Any:
        """What an answer says: boxes, a mask, a text, a vector."""

    @abstractmethod
    def read(self, label: Array, prediction: Any) -> Any:
        """What a label says of an item, in the form of `decode`. Raises DataError where it does not fit the `prediction`."""

    @abstractmethod
    def scorer(self, labelled: bool) -> Scorer:
        """To score answers by labels, or by what the original says."""

    def changes(self) -> Scorer:
        """To score answers by what the original says where labels say what was lost: `maxChanged` allows more than `maxDrop`."""
        return self.scorer(labelled=False)

    def kept(self, prediction: Any, truth: Any) -> Mapping[Hashable, bool]:
        """Of each class or character that the truth has, whether at least half of it is found; nothing where there are no such."""
        return {}

    def pairs(self, prediction: Any, truth: Any) -> Iterable[tuple[Hashable, Hashable]]:
        """Classes or characters of a label, each with what is predicted in its place."""
        return ()

    def misreadings(self, truth: Any) -> Mapping[str, Any]:
        """Other ways to read a label, by name: they must not fit better."""
        return {}

    def sketch(self, prediction: Any) -> Any:
        """A prediction or a label in a small form, which still shows whether the two belong together."""
        return prediction

    def live(self, rule: Comparison) -> Comparison | None:
        """How a server compares answers on live inputs, where the numbers of the judged outputs would be compared by `rule`.

        None where numbers cannot tell whether two answers say the same.
        """
        return None


class Scorer(Protocol):
    """Scores of one model's answers, item by item."""

    def add(self, prediction: Any, truth: Any) -> None:
        """Score the prediction for the next item."""
        ...

    def pool(self) -> Pool:
        """All scores together. Raises DataError where the truth holds nothing to be found."""
        ...


@dataclass
class Collected:
    """A scorer that keeps all there is and has it judged at the end: `judge` takes the prediction for each item, and the truth of each.

    `same_shape`: the two are arrays that are compared number by number.
    """

    judge: Callable[[Sequence[Any], Sequence[Any]], Pool]
    same_shape: bool = False
    _said: list[Any] = field(default_factory=list)
    _truth: list[Any] = field(default_factory=list)

    def add(self, prediction: Any, truth: Any) -> None:
        """Keep the prediction for the next item. Raises ValueError where it has another shape than it must have."""
        if self.same_shape and prediction.shape != truth.shape:
            raise ValueError(f"{list(prediction.shape)} numbers beside {list(truth.shape)}")
        self._said.append(prediction)
        self._truth.append(truth)

    def pool(self) -> Pool:
        """What `judge` makes of it. Raises DataError where the truth holds nothing to be found."""
        return self.judge(self._said, self._truth)


@dataclass(frozen=True)
class Pool:
    """Scores of all items. `value` takes numbers of groups, drawn along the last axis, and reduces that axis.

    `items`: how many say anything, because there is something to be found, or something was. `scores`: what was kept of each item, in the
    order in which they came. `share`: the metric is the mean of scores that are 0 or 1.
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


def sums(scores: Sequence[Array], value: Callable[[Array], Array], items: int | None = None) -> Pool:
    """Scores that add up: `scores[item]` are k numbers, `value` makes the metric of their sums, `[..., k]` -> `[...]`.

    `items` say anything; by default those that have a score.
    """
    matrix = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1)
    totals = by_group(matrix)
    informative = int(matrix.any(axis=1).sum()) if items is None else items
    return Pool(informative, len(totals), matrix, lambda drawn: value(totals[drawn].sum(axis=-2)))


def share(flags: Sequence[bool] | Array) -> Pool:
    """A share of the items."""
    found = np.asarray(flags, dtype=np.float64)
    groups, mean = group_mean(found)
    return Pool(len(found), groups, found, mean, True)


def drop(original: Pool, candidate: Pool, alpha: float) -> Interval | None:
    """Interval of what the candidate lost against the original on the same items; positive = worse.

    Only items that say anything count. None with too few of them.
    """
    before, after = original.scores, candidate.scores
    if original.share:
        return tango(int((before > after).sum()), int((before < after).sum()), original.items, alpha)
    if np.array_equal(before, after):
        # A bootstrap would say [0, 0] on any number of items; the score interval of a share does not.
        return tango(0, 0, original.items, alpha) if original.items else None
    if original.items < MINIMUM_GROUPS:
        return None
    batch = draws_at_once(max(before.size, after.size))
    found = bca(original.groups, lambda drawn: original.value(drawn) - candidate.value(drawn), alpha, batch=batch)
    # What few items did not show may be there: less is never claimed than where nothing changed at all.
    least = tango(0, 0, original.items, alpha).high
    return None if found is None else Interval(value=found.value, low=found.low, high=max(found.high, least))


def f1(counts: Array) -> Array:
    """Of right ones, too many and missing, `[..., 3]` -> `[...]`; 1 where there is nothing at all."""
    right = 2 * counts[..., 0]
    return ratio(right, right + counts[..., 1] + counts[..., 2], 1.0)


def item_of(array: Array, rank: int) -> Array:
    """`array` with at most `rank` axes, where those in front have one place: a batch axis of 1 that was not proved to be one."""
    front = array.ndim - rank
    return array.reshape(array.shape[front:]) if front > 0 and all(size == 1 for size in array.shape[:front]) else array


def shapes(answer: Answer) -> str:
    """Names and shapes of what a model answers to an item, for a person."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in answer.items())


def examples_of(answers: Iterable[Answer]) -> list[Answer]:
    """The first answers, at most `EXAMPLES`, fewer where they are large."""
    found: list[Answer] = []
    held = 0
    for answer in answers:
        found.append(answer)
        held += sum(array.nbytes for array in answer.values())
        if len(found) == EXAMPLES or (held >= EXAMPLE_BYTES and len(found) >= LEAST_EXAMPLES):
            break
    return found


def require_names(metric: str, spec: EvaluationSpec, classes: int | None, outputs: Sequence[str] = ()) -> None:
    """Raises DataError where data.evaluation.classes does not name each of the model's classes, which are in `outputs`."""
    if spec.classes and classes is not None and len(spec.classes) != classes:
        where = f" in {' and '.join(outputs)}" if outputs else ""
        raise DataError(
            f"data.evaluation.classes names {len(spec.classes)} classes, but the model has scores for {classes}{where}: metric {metric} needs a "
            "name for each, in the order of the scores"
        )


def require_in_range(numbers: Array, classes: int | None, offset: int, called: str = "classes") -> None:
    """Raises DataError unless each of the numbers, counted from 0, is that of a class; where `classes` is None, any may be one.

    `offset`: what labels call class 0.
    """
    strange = np.unique(numbers[(numbers < 0) | (numbers >= (np.inf if classes is None else classes))]) + offset
    if strange.size:
        shown = ", ".join(map(str, strange[:STRANGE].tolist()))
        raise DataError(
            f"labels {shown} are not among the {called if classes is None else f'{classes} {called}'}, which are numbered from {offset} "
            "(labelOffset): set data.evaluation.ignoreLabel if one of them is to be ignored"
        )


def whole_numbers(label: Array) -> Array | None:
    """A label of bools, ints or floats that are whole, as int64; None for anything else."""
    if label.dtype.kind in "iub":
        return np.asarray(label.astype(np.int64))
    if label.dtype.kind == "f" and bool(np.all(np.isfinite(label))) and bool(np.all(label == np.rint(label))):
        return np.asarray(label.astype(np.int64))
    return None
