"""The constraints in force, and how a person reads them."""

from __future__ import annotations

from fettle.api import metrics
from fettle.api.constraints import AccuracyConstraint, Constraints
from fettle.api.optimizedmodel import OptimizedModelSpec

DEFAULT_MAX_DROP = 0.01  # unless the drop is in the unit of the labels
# Besides what may be lost, as many answers may change without any loss: a restart on another kernel, an int8 build of a model that is
# often unsure. Such a model's wrong answers become other wrong ones; of a model that is mostly right far fewer can change at equal accuracy.
DEFAULT_CHANGES = 0.1


def in_force(spec: OptimizedModelSpec) -> Constraints:
    """The spec's constraints; where accuracy has none, a drop of 0.01 is allowed, and none at all in the unit of the labels.

    Nobody who leaves the bound out means "whatever the loss". A unit of the labels has no natural scale, so nothing may be lost. What may
    change follows from what may be lost.
    """
    evaluation = spec.data.evaluation
    own_unit = evaluation is not None and metrics.entry(evaluation.metric).drop is metrics.DropUnit.LABELS
    bound = spec.constraints.accuracy or AccuracyConstraint(max_drop=0.0 if own_unit else DEFAULT_MAX_DROP)
    if bound.max_changed is None:
        lost = 0.0 if own_unit else bound.max_drop
        bound = bound.model_copy(update={"max_changed": round(min(lost + DEFAULT_CHANGES, 1.0), 6)})
    return spec.constraints.model_copy(update={"accuracy": bound})


def describe(constraints: Constraints) -> str:
    """The constraints as a person reads them: 'accuracy drop <= 0.02, p99 <= 5 ms'."""
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
