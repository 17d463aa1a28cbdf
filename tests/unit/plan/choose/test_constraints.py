"""The constraints in force, and how a person reads them."""

from __future__ import annotations

from typing import Any

import pytest

from fettle.api.constraints import Constraints
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.vocabulary import Metric
from fettle.plan.run.constraints import describe, in_force


def spec(constraints: dict[str, Any], metric: str | None = None) -> OptimizedModelSpec:
    """The smallest spec with these constraints."""
    evaluation = {"evaluation": {"uri": "pvc://data/e.npz", "metric": metric}} if metric else {}
    return OptimizedModelSpec.model_validate(
        {
            "source": {"uri": "pvc://m/m.onnx"},
            "targets": [{"name": "cpu"}],
            "constraints": constraints,
            "data": evaluation,
        }
    )


@pytest.mark.parametrize(
    ("sentence", "constraints", "metric", "max_drop"),
    [
        ("no bound given: a little may be lost", {}, "Accuracy", 0.01),
        ("no data given: the same bound, which then only exact candidates keep", {}, None, 0.01),
        ("MeanSquaredError has no natural scale: nothing may be lost", {}, "MeanSquaredError", 0.0),
        ("a given bound is kept", {"accuracy": {"maxDrop": 0.3}}, "Accuracy", 0.3),
        ("another bound does not replace it", {"size": {"maxBytes": 5}}, "Accuracy", 0.01),
    ],
)
def test_accuracy_always_has_a_bound(
    sentence: str, constraints: dict[str, Any], metric: str | None, max_drop: float
) -> None:
    bound = in_force(spec(constraints, metric)).accuracy
    assert bound is not None
    assert bound.max_drop == max_drop


def test_a_person_reads_all_of_them() -> None:
    constraints = Constraints.model_validate(
        {
            "accuracy": {"maxDrop": 0.02},
            "latency": {"maxMilliseconds": 5, "percentile": 95},
            "size": {"maxBytes": 1000},
            "speedup": {"min": 1.2},
        }
    )
    assert (
        describe(constraints, Metric.ACCURACY)
        == "accuracy drop <= 0.02, p95 <= 5 ms, size <= 1000 bytes, speed-up >= 1.2"
    )


@pytest.mark.parametrize(
    ("metric", "given", "told"),
    [
        (Metric.ACCURACY, {"maxDrop": 0.02}, "accuracy drop <= 0.02, changed answers <= 0.12 (default)"),
        (Metric.ACCURACY, {"maxDrop": 0.02, "maxChanged": 0.3}, "accuracy drop <= 0.02, changed answers <= 0.3"),
        (Metric.MEAN_SQUARED_ERROR, {"maxDrop": 9}, "accuracy drop <= 9, changed answers <= 0.1 (default)"),
        (Metric.MEAN_SQUARED_ERROR, {"maxDrop": 9, "maxChanged": 1}, "accuracy drop <= 9, changed answers <= 1"),
    ],
)
def test_a_bound_that_nobody_set_is_called_the_default(metric: Metric, given: dict[str, Any], told: str) -> None:
    assert describe(in_force(spec({"accuracy": given}, metric.value)), metric) == told
