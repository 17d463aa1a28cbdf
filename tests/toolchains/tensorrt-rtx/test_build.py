"""The build stage makes engines of a recipe, on a node without a GPU, and knows one that it made before."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.recipe import OptimizeGraphStep, QuantizeStep, RecipeStep
from fettle.api.report import BuildReport, PrepareReport
from fettle.api.task import BuildPlan, BuildTask, DeviceForm
from fettle.api.vocabulary import Precision, QuantizeMode, RuntimeName
from fettle.optimizer import stage
from fettle.runtimes import engine_build

RTX = RuntimeName.TENSORRT_RTX
INT8 = RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.STATIC))
FLOAT8 = RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.FLOAT8))
FINISH = RecipeStep(optimize_graph=OptimizeGraphStep())
F32, TF32, F16, BF16 = Precision.FLOAT32, Precision.TF32, Precision.FLOAT16, Precision.BFLOAT16


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def prepared(bench: Workbench) -> PrepareReport:
    bench.put(models.dynamic_batch())
    data = EvaluationSpec(uri=bench.data("items", image=models.images(40)))
    return bench.prepare(bench.task(evaluation=data))


def task(
    report: PrepareReport, *steps: RecipeStep, precision: Precision = F32, architecture: str = "sm89"
) -> BuildTask:
    form = DeviceForm(precision=precision, architecture=architecture, batch_size=1)
    plan = BuildPlan(name="engine", family=RTX, steps=(*steps, FINISH), form=form)
    return BuildTask(
        store="pvc://claim/store",
        plan=plan,
        cache_key="0" * 64,
        portable=report.portable,
        signature=report.signature,
        calibration=report.calibration,
    )


def built(bench: Workbench, asked: BuildTask) -> BuildReport:
    answer = stage.run(asked, bench.mounts)
    assert isinstance(answer, BuildReport)
    return answer


@pytest.mark.parametrize(
    ("steps", "precision", "floats", "quantized"),
    [
        ((), F32, "f32", ""),
        ((), TF32, "f32", ""),
        ((), F16, "f16", ""),
        ((), BF16, "bf16", ""),
        ((INT8,), F32, "f32", "int8"),
        ((INT8,), F16, "f16", "int8"),
        ((INT8,), BF16, "bf16", "int8"),
        ((FLOAT8,), F32, "f32", "f8"),
        ((FLOAT8,), F16, "f16", "f8"),
        ((FLOAT8,), BF16, "bf16", "f8"),
    ],
)
def test_a_recipe_becomes_an_engine_in_its_precision(
    steps: tuple[RecipeStep, ...],
    precision: Precision,
    floats: str,
    quantized: str,
    bench: Workbench,
    prepared: PrepareReport,
) -> None:
    report = built(bench, task(prepared, *steps, precision=precision))
    assert report.built is not None, report.message
    assert report.built.format == "TensorRT-RTX"
    assert report.libraries["tensorrt-rtx-cu12"].startswith("1.7.")
    executed = engine_build.read_note(bench.store.fetch_model(report.built, bench.folder / "engine")).executed
    of_quantized = getattr(executed, quantized) if quantized else 0
    assert (of_quantized > 0) == bool(quantized)
    assert of_quantized + getattr(executed, floats) == executed.total > 0


@pytest.mark.parametrize(
    ("steps", "precision", "architecture", "refused"),
    [((FLOAT8,), F32, "sm86", "fp8_e4m3"), ((), BF16, "sm75", "b16")],
)
def test_a_number_format_that_an_architecture_lacks_is_a_row_with_the_librarys_reason(
    steps: tuple[RecipeStep, ...],
    precision: Precision,
    architecture: str,
    refused: str,
    bench: Workbench,
    prepared: PrepareReport,
) -> None:
    report = built(bench, task(prepared, *steps, precision=precision, architecture=architecture))
    assert report.built is None
    assert f"Cannot compile for target(s) {architecture}" in report.message
    assert refused in report.message


def test_an_engine_of_the_same_key_is_built_once(bench: Workbench, prepared: PrepareReport) -> None:
    first = built(bench, task(prepared))
    again = built(bench, task(prepared).model_copy(update={"cache_key": "1" * 64}))  # another task, the same build
    assert first.built is not None
    assert (again.built, again.cache_key, again.message) == (first.built, first.cache_key, "built before")


def test_each_architecture_precision_and_batch_has_a_key_of_its_own(bench: Workbench, prepared: PrepareReport) -> None:
    asked = [
        task(prepared),
        task(prepared, precision=F16),
        task(prepared, architecture="sm86"),
        task(prepared, precision=TF32),
    ]
    plan = asked[0].plan
    batch = DeviceForm(architecture="sm89", batch_size=None, batch_sizes=(1, 8))
    asked.append(asked[0].model_copy(update={"plan": plan.model_copy(update={"form": batch})}))
    reports = [built(bench, each) for each in asked]
    assert all(report.built is not None for report in reports)
    assert len({report.cache_key for report in reports}) == len(reports)


def test_an_architecture_that_the_library_does_not_build_for_is_a_row_with_the_reason(
    bench: Workbench, prepared: PrepareReport
) -> None:
    report = built(bench, task(prepared, architecture="sm90"))
    assert report.built is None
    assert "not for sm90" in report.message
