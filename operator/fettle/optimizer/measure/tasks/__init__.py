"""Metrics of tasks: what answers are for, and how well they do it. One module a metric; its row in `api/metrics.py` names its class.

Each judges answers by labels, or by the original's answers taken as the truth: then it says how well they agree.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping, Sequence

from fettle.api import metrics
from fettle.api.data import EvaluationSpec
from fettle.api.signature import Signature
from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.measure.items import Answer
from fettle.optimizer.measure.tasks.base import Likeness, TaskMetric

METRICS: Mapping[Metric, type[TaskMetric]] = {
    entry.metric: pkgutil.resolve_name(f"{__name__}.{entry.scorer}")
    for entry in metrics.METRICS
    if entry.scorer is not None
}


def recognized(signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> Metric | None:
    """The metric of the task that these answers are surely for; None where it is none of these, or not sure."""
    return next((name for name, _, like in _likenesses(signature, examples, spec) if like is Likeness.SURE), None)


def likely(signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec) -> tuple[Metric, str] | None:
    """The task that these answers may be for though others have answers like them, and what they would be taken for."""
    found = _likenesses(signature, examples, spec)
    return next(((name, metric.told) for name, metric, like in found if like is Likeness.LIKELY), None)


def _likenesses(
    signature: Signature, examples: Sequence[Answer], spec: EvaluationSpec
) -> Iterator[tuple[Metric, TaskMetric, Likeness]]:
    for name, metric in METRICS.items():
        try:
            fitted = metric.fit(signature, examples, spec)
        except DataError:
            continue
        yield name, fitted, fitted.likeness(examples)
