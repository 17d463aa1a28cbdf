"""Metric Custom: a score per item from a user's own function, `score(outputs, label) -> float`; higher is better.

The metric is the mean over the items. `outputs` are the answers to one item by name, without the batch axis. `label` is that item's label, or
without labels what the original outputs, in the form of `outputs`. What changed is the squared difference to the original's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from fettle.api.data import CustomMetricSpec, EvaluationSpec
from fettle.api.signature import Signature
from fettle.errors import DataError
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Likeness, Pool, Scorer, TaskMetric, sums
from fettle.optimizer.own_code import Function, failure, guarded, load
from fettle.runtimes.base import Array
from fettle.store.comparison import is_float

FIELD = "data.evaluation.custom"


class Outputs(dict[str, Array]):
    """The answers to one item, by output."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(array.nbytes for array in self.values())


class Custom(TaskMetric):
    """What a user's own function makes of each item."""

    def __init__(self, spec: CustomMetricSpec, outputs: frozenset[str]) -> None:
        """Raises DataError where the code does not define the function."""
        self._function, self.outputs = load(spec.code or "", spec.function, FIELD, DataError), outputs
        self.told = f"what {spec.function}() scores"

    @classmethod
    def fit(cls, signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Self:
        """Take every output. Raises DataError where there is no code, or it fails."""
        if spec.custom is None:
            raise DataError(f"metric Custom needs {FIELD}")
        return cls(spec.custom, frozenset(tensor.name for tensor in signature.outputs))

    def likeness(self, examples: Sequence[Answer]) -> Likeness:
        """Nobody but the user knows."""
        return Likeness.NONE

    def decode(self, answer: Answer) -> Outputs:
        """As it is: the function reads it."""
        return Outputs(answer)

    def read(self, label: Array, said: Outputs) -> Array:
        """As it is: the function reads it."""
        return label

    def scorer(self, labelled: bool) -> Scorer:
        """By the function."""
        return _Scores(self._function)

    def changes(self) -> Scorer:
        """By the numbers: the function cannot tell what changed where a label says what is right."""
        return _Scores(_kept)


@dataclass
class _Scores:
    """Scores of a function, item by item."""

    function: Function
    values: list[float] = field(default_factory=list)

    def add(self, said: Outputs, truth: Any) -> None:
        """Score what was said of the next item. Raises DataError where the function fails or gives no number."""
        self.values.append(_number(self.function, said, truth))

    def pool(self) -> Pool:
        """The mean of all."""
        scores = [np.array([value, 1.0]) for value in self.values]
        return sums(scores, lambda total: total[..., 0] / total[..., 1], items=len(scores))


def _number(function: Function, said: Answer, truth: Any) -> float:
    with guarded(lambda error: DataError(f"{FIELD} failed on an item: {failure(error, function)}")):
        value = float(function(_copied(said), _copied(truth)))
    if not np.isfinite(value):
        raise DataError(
            f"{FIELD} returned {value} for an item: it must return a finite number for each item (higher is better)"
        )
    return value


def _copied(given: Any) -> Any:
    """A function may sort or scale what it is given: these arrays are looked at again."""
    return {name: array.copy() for name, array in given.items()} if isinstance(given, dict) else np.array(given)


def _kept(said: Answer, before: Answer) -> float:
    """1 - squared difference over the squares of the original's numbers, at least 0; of outputs that are no numbers the share that is equal."""
    shares = []
    for name, array in said.items():
        other = before[name]
        if array.shape != other.shape:
            shares.append(0.0)
        elif is_float(array) or array.dtype.kind in "iu":
            left, right = array.astype(np.float64), other.astype(np.float64)
            apart, size = float(np.sum((left - right) ** 2)), float(np.sum(right**2))
            shares.append(max(0.0, 1 - apart / size) if size else float(apart == 0))
        else:
            shares.append(float(np.mean(array == other)) if array.size else 1.0)
    return min(shares, default=1.0)
