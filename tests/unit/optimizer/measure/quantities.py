"""Answers that are numbers, and candidates beside them: arrays with items along the first axis."""

from __future__ import annotations

from typing import Any

from tests.unit.optimizer.measure import task_answers
from tests.unit.optimizer.measure.task_answers import judged, rows

from fettle.api.vocabulary import Metric
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.judgement import Judgement
from fettle.store.arrays import Array


def reference(
    metric: Metric, labels: Array | None = None, spec: dict[str, Any] | None = None, **outputs: Array
) -> Reference:
    """An original that answers `outputs`. Raises DataError where they prove nothing."""
    return task_answers.reference(metric, rows(**outputs), labels, **(spec or {}))


def judge(original: Reference, **outputs: Array) -> Judgement:
    """A lossy candidate that answers `outputs`."""
    return judged(original, rows(**outputs))


def passes(found: Judgement, max_drop: float = 0.1) -> bool:
    """Whether it may be published with that bound, and as much again for what changed."""
    return task_answers.passes(found, max_drop, max_drop + 0.1)
