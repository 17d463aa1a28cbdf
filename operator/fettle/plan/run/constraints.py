"""The constraints in force, and their description."""

from __future__ import annotations

from fettle.api import metrics
from fettle.api.constraints import AccuracyConstraint, Constraints, default_changes
from fettle.api.optimizedmodel import OptimizedModelSpec

DEFAULT_MAX_DROP = 0.01  # unless the drop is in the unit of the labels


def in_force(spec: OptimizedModelSpec) -> Constraints:
    """The spec's constraints with defaults: an accuracy drop of 0.01, or none if the drop is in the unit of the labels.

    Leaving out the bound does not mean "any loss". The unit of the labels has no natural scale, so nothing may be lost in it. The default of
    `maxChanged` follows from `maxDrop`.
    """
    evaluation = spec.data.evaluation
    own_unit = evaluation is not None and metrics.entry(evaluation.metric).drop is metrics.DropUnit.LABELS
    bound = spec.constraints.accuracy or AccuracyConstraint(max_drop=0.0 if own_unit else DEFAULT_MAX_DROP)
    if bound.max_changed is None:
        lost = 0.0 if own_unit else bound.max_drop
        bound = bound.model_copy(update={"max_changed": default_changes(lost)})
    return spec.constraints.model_copy(update={"accuracy": bound})


def describe(constraints: Constraints) -> str:
    """The constraints as text: 'accuracy drop <= 0.02, p99 <= 5 ms'."""
    parts = []
    if constraints.accuracy is not None:
        parts.append(f"accuracy drop <= {constraints.accuracy.max_drop:g}")
        if constraints.accuracy.changed:
            parts.append(f"changed answers <= {constraints.accuracy.changed}")
    if constraints.latency is not None:
        parts.append(f"p{constraints.latency.percentile} <= {constraints.latency.max_milliseconds:g} ms")
    if constraints.size is not None:
        parts.append(f"size <= {constraints.size.max_bytes} bytes")
    if constraints.speedup is not None:
        parts.append(f"speed-up >= {constraints.speedup.min:g}")
    return ", ".join(parts)
