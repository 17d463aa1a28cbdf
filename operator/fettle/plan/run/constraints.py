"""The constraints in force, and their description."""

from __future__ import annotations

from fettle.api import metrics
from fettle.api.constraints import AccuracyConstraint, Constraints, default_changes
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.vocabulary import Metric

DEFAULT_MAX_DROP = 0.01  # unless the drop is in the unit of the labels


def in_force(spec: OptimizedModelSpec) -> Constraints:
    """The spec's constraints with defaults: an accuracy drop of 0.01, or none if the drop is in the unit of the labels.

    Leaving out the bound does not mean "any loss". The unit of the labels has no natural scale, so nothing may be lost in it. The default of
    `maxChanged` follows from `maxDrop`.
    """
    metric = metric_of(spec)
    most = 0.0 if metrics.in_unit_of_labels(metric) else DEFAULT_MAX_DROP
    bound = spec.constraints.accuracy or AccuracyConstraint(max_drop=most)
    if bound.max_changed is None:
        bound = bound.model_copy(update={"max_changed": default_changes(bound.max_drop, metric)})
    return spec.constraints.model_copy(update={"accuracy": bound})


def metric_of(spec: OptimizedModelSpec) -> Metric:
    """The metric whose drop is bounded."""
    return spec.data.evaluation.metric if spec.data.evaluation is not None else Metric.AGREEMENT


def describe(constraints: Constraints, metric: Metric) -> str:
    """The constraints as text: 'accuracy drop <= 0.02, p99 <= 5 ms'. `metric`: whose drop is bounded."""
    parts = []
    if constraints.accuracy is not None:
        parts.append(f"accuracy drop <= {constraints.accuracy.max_drop:g}")
        if constraints.accuracy.max_changed is not None:
            parts.append(f"changed answers <= {constraints.accuracy.changed(metric)}")
    if constraints.latency is not None:
        parts.append(f"p{constraints.latency.percentile} <= {constraints.latency.max_milliseconds:g} ms")
    if constraints.size is not None:
        parts.append(f"size <= {constraints.size.max_bytes} bytes")
    if constraints.speedup is not None:
        parts.append(f"speed-up >= {constraints.speedup.min:g}")
    return ", ".join(parts)
