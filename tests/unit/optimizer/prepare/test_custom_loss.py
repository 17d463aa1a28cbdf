"""The code of a loss of one's own is read where it lies, and decides the key of each build that trains with it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.recipe import RecipeStep
from fettle.api.report import PrepareReport
from fettle.api.task import BuildPlan, BuildTask, PrepareTask, TrainingPlan
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import RuntimeName
from fettle.errors import DataError
from fettle.plan.run.tasks import BuildInput, build_task
from fettle.runtimes import cpu
from fettle.store.cache import Learned, build_key

URI = "pvc://claim/loss.py"
MEAN = "def loss(outputs, labels):\n    return outputs['scores'].mean()\n"
SUM = "def loss(outputs, labels):\n    return outputs['scores'].sum()\n"
PLAN = BuildPlan(
    name="lean-onnxruntime",
    family=RuntimeName.ONNXRUNTIME,
    steps=(RecipeStep.model_validate({"prune": {}}),),
    training=TrainingPlan(spec=TrainSpec.model_validate({"loss": "Custom", "custom": {"uri": URI}})),
)


def asking(bench: Workbench) -> PrepareTask:
    bench.put(models.dynamic_batch())
    items = bench.data("items", image=np.random.default_rng(1).normal(size=(40, 1, 16, 16)).astype(np.float32))
    return bench.task(evaluation=EvaluationSpec(uri=items), builds=[PLAN])


def asked(report: PrepareReport) -> BuildTask:
    """The task of the build, as the plan makes it of the report."""
    return build_task(PLAN.segments[0], report.builds[0], BuildInput(report.portable), report, "pvc://claim/store")


def test_other_code_at_the_same_address_is_another_build_of_the_same_preparation(bench: Workbench) -> None:
    task = asking(bench)
    (bench.folder / "loss.py").write_text(MEAN)
    first = bench.prepare(task)
    assert first.loss_code == {URI: MEAN}
    assert bench.prepare(task) == first
    (bench.folder / "loss.py").write_text(SUM)
    second = bench.prepare(task)
    assert second.loss_code == {URI: SUM}
    assert second.builds[0].cache_key != first.builds[0].cache_key
    assert second.model_copy(update={"loss_code": first.loss_code, "builds": first.builds}) == first


def test_the_build_gets_the_code_and_has_the_key_that_preparing_told(bench: Workbench) -> None:
    task = asking(bench)
    (bench.folder / "loss.py").write_text(MEAN)
    report = bench.prepare(task)
    build = asked(report)
    assert build.plan.training is not None and build.plan.training.spec.custom is not None
    custom = build.plan.training.spec.custom
    assert (custom.uri, custom.secret_name, custom.code) == (None, None, MEAN)
    learned = Learned(report.teacher, report.training)
    assert build.cache_key == build_key(build.plan, build.portable, None, cpu.detect(), learned=learned)


def test_code_that_cannot_be_read_ends_the_run_with_its_address(bench: Workbench) -> None:
    with pytest.raises(DataError, match=r"loss\.py \(train\.custom\.uri\): No such file"):
        bench.prepare(asking(bench))
