"""The figures behind the verdict on a candidate, as `kubectl fettle why` tells them."""

from __future__ import annotations

import pytest
from tests.unit.plan.choose.figures import row
from tests.unit.plan.optimize.world import World

from fettle.api.measured import MetricValue
from fettle.api.optimizedmodel import OptimizedModel
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.vocabulary import Evidence, Metric
from fettle.cli.views.reasons import judgements


@pytest.mark.parametrize(
    ("metric", "evidence", "says"),
    [
        (Metric.ACCURACY, Evidence.LABELS, "drop 0.001 [-0.001, 0.003] in Accuracy on 897 labeled items"),
        (
            Metric.AGREEMENT,
            Evidence.AGREEMENT,
            "drop 0.001 [-0.001, 0.003] in agreement with the original on 897 items without labels",
        ),
    ],
)
def test_a_drop_names_its_metric_and_its_items(metric: Metric, evidence: Evidence, says: str) -> None:
    found = {"accuracy": MetricValue(metric=metric, value=0.96), "evidence": evidence, "samples": 897}
    status = OptimizedModelStatus(candidates=(row("int8", 2.0, 0.001).model_copy(update=found),))
    (judged,) = judgements(OptimizedModel(metadata={"name": "digits"}, spec=World().spec, status=status))
    assert judged.figures == f"2 [1.94, 2.06] times as fast as the original; {says}"


def test_the_original_is_not_compared_with_itself() -> None:
    found = {"name": "original", "recipe": "original", "exact": True, "samples": 897}
    status = OptimizedModelStatus(candidates=(row("original", 1.0, 0.0).model_copy(update=found),))
    (judged,) = judgements(OptimizedModel(metadata={"name": "digits"}, spec=World().spec, status=status))
    assert judged.figures == ""
