"""What a step promises is checked where steps are applied: a step that breaks it is named, and the run goes on without it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api import catalog
from fettle.api.data import EvaluationSpec
from fettle.api.recipe import OptimizeGraphStep, RecipeStep
from fettle.api.report import BuildReport
from fettle.api.step import StepParameters
from fettle.api.task import BuildPlan, BuildTask
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer import stage
from fettle.optimizer.steps import Work

ORT = RuntimeName.ONNXRUNTIME
Step = Callable[[Work[StepParameters]], Path]


def scaled(work: Work[StepParameters], factor: float) -> Path:
    """The same graph with its first weight multiplied."""
    model = onnx.load(str(work.entry))
    weight = next(one for one in model.graph.initializer if len(one.dims) > 1)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    onnx.save(model, str(work.folder / "model.onnx"))
    return work.folder / "model.onnx"


def in_place(work: Work[StepParameters]) -> Path:
    """It overwrites what it was given."""
    made = scaled(work, 1.0)
    work.entry.unlink()  # a link into the store
    shutil.copy(made, work.entry)
    return made


def elsewhere(work: Work[StepParameters]) -> Path:
    """It returns a file beside its folder."""
    return Path(shutil.copy(work.entry, work.folder.parent / "elsewhere.onnx"))


def as_ir(work: Work[StepParameters]) -> Path:
    """It writes another format than it said."""
    return Path(shutil.copy(work.entry, work.folder / "model.xml"))


def fails(_: Work[StepParameters]) -> Path:
    """Its library raises what it likes."""
    raise KeyError("nobody expects this")


def lacks(_: Work[StepParameters]) -> Path:
    """It imports its library when it is called."""
    import not_there  # type: ignore[import-not-found]

    return Path(not_there.made)


def build(bench: Workbench, step: Step, monkeypatch: pytest.MonkeyPatch, *, lossy: bool = False) -> BuildReport:
    """A build with `step` in the place of optimizeGraph for onnxruntime, which is exact by its row unless `lossy`."""
    toy = ModuleType("fettle.optimizer.steps.toy")
    toy.step = step  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, toy.__name__, toy)
    known = RecipeStep(optimize_graph=OptimizeGraphStep())
    row = catalog.step(known, ORT)
    assert row is not None
    monkeypatch.setitem(catalog._STEPS, (row.kind, ORT), replace(row, function="toy:step", lossy=lossy))
    bench.put(models.dynamic_batch())
    report = bench.prepare(bench.task(evaluation=EvaluationSpec(uri=bench.data("items", image=models.images(40)))))
    task = BuildTask(
        store="pvc://claim/store",
        plan=BuildPlan(name="toy", family=ORT, steps=(known,)),
        cache_key="0" * 64,
        portable=report.portable,
        signature=report.signature,
        calibration=report.calibration,
    )
    answer = stage.run(task, bench.mounts)
    assert isinstance(answer, BuildReport)
    return answer


def test_a_step_that_is_one_function_and_one_row_builds(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    report = build(bench, lambda work: scaled(work, 1.0), monkeypatch)
    assert report.built is not None, report.message
    assert report.built.format == "ONNX"


def test_a_lossy_step_may_change_the_outputs(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(bench, lambda work: scaled(work, 1.5), monkeypatch, lossy=True).built is not None


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda work: scaled(work, 1.5), "its row in the catalog declares it exact, but the output"),
        (in_place, "it changed its input model"),
        (elsewhere, "it returned elsewhere.onnx, which is not a file in its output folder"),
        (lambda work: work.folder / "model.onnx", "it returned model.onnx, which is not a file"),
        (as_ir, "it wrote model.xml, but its row in the catalog declares ONNX"),
    ],
    ids=["moves outputs", "writes in place", "elsewhere", "nothing", "another format"],
)
def test_a_step_that_breaks_its_promise_is_named(
    step: Step, words: str, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = build(bench, step, monkeypatch)
    assert report.built is None
    assert (
        "the step optimizeGraph of onnxruntime (optimizer/steps/toy.py: step) violated its contract" in report.message
    )
    assert words in report.message


def test_what_a_library_raises_is_no_end_of_the_run(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    report = build(bench, fails, monkeypatch)
    assert report.built is None
    assert "the step optimizeGraph of onnxruntime fails on this model: KeyError" in report.message


def test_a_library_that_is_not_installed_is_named_with_what_to_install(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = build(bench, lacks, monkeypatch)
    assert report.built is None
    assert (
        "the step optimizeGraph needs not_there, which is not installed: pip install '.[optimizer]'" in report.message
    )
