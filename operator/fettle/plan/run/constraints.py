"""The constraints in force, and their description."""

from __future__ import annotations

from fettle.api import metrics
from fettle.api.constraints import AccuracyConstraint, Constraints
from fettle.api.optimizedmodel import OptimizedModelSpec

DEFAULT_MAX_DROP = 0.01  # unless the drop is in the unit of the labels
# The share of answers that may change in addition to `maxDrop`. Answers can change without a loss of accuracy, for example in an int8 build of
# a model that is often unsure: its wrong answers become other wrong answers.
DEFAULT_CHANGES = 0.1


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
        bound = bound.model_copy(update={"max_changed": round(min(lost + DEFAULT_CHANGES, 1.0), 6)})
    return spec.constraints.model_copy(update={"accuracy": bound})


def describe(constraints: Constraints) -> str:
    """The constraints as text: 'accuracy drop <= 0.02, p99 <= 5 ms'."""
    parts = []
    if constraints.accuracy is not None:
        parts.append(f"accuracy drop <= {constraints.accuracy.max_drop:g}")
        if constraints.accuracy.max_changed is not None:
            parts.append(f"changed answers <= {constraints.accuracy.max_changed:g}")
    if constraints.latency is not None:
        parts.append(f"p{constraints.latency.percentile} <= {constraints.latency.max_milliseconds:g} ms")
    if constraints.size is not None:
        parts.append(f"size <= {constraints.size.max_bytes} bytes")
    if constraints.speedup is not None:
        parts.append(f"speed-up >= {constraints.speedup.min:g}")
    return ", ".join(parts)
