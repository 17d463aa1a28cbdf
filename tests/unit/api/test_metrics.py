"""Each metric has one row, and the code does what its row says."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from fettle.api import metrics
from fettle.api.base import RULES
from fettle.api.data import EvaluationSpec
from fettle.api.metrics import MetricEntry, Proof
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.vocabulary import Metric
from fettle.optimizer.measure.tasks import METRICS
from fettle.optimizer.measure.tasks.base import TaskMetric

ROWS = [pytest.param(entry, id=entry.metric) for entry in metrics.METRICS]
TASKS = [pytest.param(entry, id=entry.metric) for entry in metrics.METRICS if entry.scorer is not None]


def test_every_metric_but_auto_has_one_row() -> None:
    assert sorted(entry.metric for entry in metrics.METRICS) == sorted(set(Metric) - {Metric.AUTO})
    assert metrics.entry(Metric.AUTO).metric == Metric.ACCURACY


@pytest.mark.parametrize("entry", TASKS)
def test_a_task_s_row_names_its_class_and_what_canaries_get(entry: MetricEntry) -> None:
    scorer = METRICS[entry.metric]
    assert issubclass(scorer, TaskMetric) and not inspect.isabstract(scorer)
    assert (entry.canaries is not None) == (scorer.live is not TaskMetric.live)
    assert entry.without_labels is not None, "the original's answers are the truth where there are no labels"
    assert entry.proof is not Proof.BOOTSTRAP, "its interval is never narrower than that of a share of the items"


def test_every_module_of_a_task_s_metric_has_a_row() -> None:
    import fettle.optimizer.measure.tasks as package

    assert {
        scorer.__name__ for scorer in TaskMetric.__subclasses__() if scorer.__module__.startswith(package.__name__)
    } == {entry.scorer.split(":")[1] for entry in metrics.METRICS if entry.scorer is not None}


@pytest.mark.parametrize("entry", ROWS)
def test_kubectl_explain_says_what_a_metric_judges(entry: MetricEntry) -> None:
    assert f"{entry.metric}: {entry.judges}." in (EvaluationSpec.model_fields["metric"].description or "")


def test_a_drop_above_one_is_allowed_where_it_may_be_that_large() -> None:
    (rule,) = [rule for rule in RULES[OptimizedModelSpec] if "maxDrop is a fraction" in rule.message]
    assert rule.expression.endswith("in ['Regression', 'MeanSquaredError', 'CosineSimilarity', 'Custom'])")


def test_the_rows_load_nothing_heavy() -> None:
    code = "import sys, fettle.api.metrics; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "scipy", "onnx", "onnxruntime", "fettle.optimizer"} & set(loaded)
