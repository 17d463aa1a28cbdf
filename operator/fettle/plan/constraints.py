"""The constraints in force, and how a person reads them."""

from __future__ import annotations

from fettle.api.constraints import AccuracyConstraint, Constraints
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.vocabulary import Metric

DEFAULT_MAX_DROP = 0.01  # metrics that live in 0..1


def in_force(spec: OptimizedModelSpec) -> Constraints:
    """The spec's constraints; where accuracy has none, a drop of 0.01 is allowed, and none at all for MeanSquaredError.

    Nobody who leaves the bound out means "whatever the loss". MeanSquaredError has no natural scale, so nothing may be lost.
    """
    if spec.constraints.accuracy is not None:
        return spec.constraints
    evaluation = spec.data.evaluation
    unbounded = evaluation is not None and evaluation.metric == Metric.MEAN_SQUARED_ERROR
    bound = AccuracyConstraint(max_drop=0.0 if unbounded else DEFAULT_MAX_DROP)
    return spec.constraints.model_copy(update={"accuracy": bound})


def describe(constraints: Constraints) -> str:
    """The constraints as a person reads them: 'accuracy drop <= 0.02, p99 <= 5 ms'."""
    parts = []
    if constraints.accuracy is not None:
        parts.append(f"accuracy drop <= {constraints.accuracy.max_drop:g}")
    if constraints.latency is not None:
        parts.append(f"p{constraints.latency.percentile} <= {constraints.latency.max_milliseconds:g} ms")
    if constraints.size is not None:
        parts.append(f"size <= {constraints.size.max_bytes} bytes")
    if constraints.speedup is not None:
        parts.append(f"speed-up >= {constraints.speedup.min:g}")
    return ", ".join(parts)
