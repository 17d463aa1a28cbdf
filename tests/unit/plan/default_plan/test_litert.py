"""LiteRT: a file of its own is baseline and candidate as it came; for Keras and SavedModel, what TensorFlow's converter makes of them is tried."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.optimize.world import OPENVINO, ORT, digest, make_spec, prepared, stored

from fettle.api.images import Image
from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.task import StoredModel
from fettle.api.vocabulary import Basis, FormatName, RuntimeName, StepKind
from fettle.plan.run.candidates import TargetPlan, plan_target, possible_builds
from fettle.plan.run.constraints import in_force
from fettle.plan.run.images import image_of
from fettle.plan.run.planned import Finding
from fettle.plan.run.tasks import BuildInput, build_task, model_of

LITERT = RuntimeName.LITERT
FILE = StoredModel(format="TFLite", entry="model.tflite", files=())
SAVED = StoredModel(format="SavedModel", entry="saved_model.pb", files=())
TFLITE, KERAS, SAVED_MODEL = FormatName.TFLITE, FormatName.KERAS, FormatName.SAVED_MODEL


def planned(format: FormatName, *runtimes: RuntimeName, **fields: Any) -> tuple[TargetPlan, PrepareReport]:
    """The plan of a target with these runtimes, and what prepare said of a source of that format."""
    spec = make_spec(targets=[{"name": "cpu", "threads": 2, "runtimes": list(runtimes)}], **fields)
    own = (LITERT,) if format in (TFLITE, KERAS, SAVED_MODEL) else ()
    report = prepared(possible_builds(spec), portable_runtimes=(ORT, OPENVINO, *own)).model_copy(
        update={
            "source": SourceStatus(sha256=digest("source"), format=format, bytes=1000),
            "original": FILE if format == TFLITE else stored("original"),
            "native": SAVED if format in (KERAS, SAVED_MODEL) else None,
            "basis": Basis.SOURCE_RUNTIME if format in (TFLITE, FormatName.ONNX) else Basis.PORTABLE_FORM,
        }
    )
    return plan_target(spec, spec.targets[0], report, in_force(spec)), report


def in_litert(plan: TargetPlan) -> list[str]:
    """Names of the candidates that LiteRT runs."""
    return [row.name for row in plan.candidates if row.plan.runtime == LITERT]


def test_the_baseline_is_the_untouched_file_in_litert_even_where_litert_may_not_serve() -> None:
    for runtimes in ((ORT, OPENVINO, LITERT), (ORT,)):
        found, _ = planned(TFLITE, *runtimes)
        assert (found.baseline.runtime, found.baseline.untouched) == (LITERT, True)
        assert ("original" in [row.name for row in found.candidates]) == (LITERT in runtimes)


def test_litert_runs_the_file_only_as_it_came_and_the_others_its_portable_form() -> None:
    found, report = planned(TFLITE, ORT, LITERT)
    models = {row.name: model_of(row, report, {}) for row in found.candidates if row.build is None}
    assert models == {"original": report.original, "float32-onnxruntime": report.portable}
    assert in_litert(found) == ["original"]


@pytest.mark.parametrize("format", [KERAS, SAVED_MODEL])
def test_what_the_converter_makes_is_tried_beside_the_portable_form(format: FormatName) -> None:
    found, report = planned(format, ORT, LITERT)
    assert found.baseline.runtime == ORT, "no runtime runs the source as it came"
    assert in_litert(found) == ["float32-litert", "float16-litert", "int8-dynamic-litert", "int8-litert"]
    row = next(row for row in found.candidates if row.name == "float32-litert")
    assert (row.refusal, row.lossy) == (None, False)
    assert row.build is not None
    entry = next(entry for entry in report.builds if entry.name == row.build.name)
    task = build_task(row.build, entry, BuildInput(report.portable), report, "pvc://store")
    assert (task.native, task.portable) == (SAVED, report.portable)
    assert image_of(task) == Image.OPTIMIZER_TENSORFLOW


def test_other_builds_start_from_the_portable_form_alone() -> None:
    found, report = planned(KERAS, ORT, LITERT)
    row = next(row for row in found.candidates if row.name == "int8-onnxruntime")
    assert row.build is not None
    entry = next(entry for entry in report.builds if entry.name == row.build.name)
    assert build_task(row.build, entry, BuildInput(report.portable), report, "pvc://store").native is None


def test_a_source_in_onnx_gets_one_row_that_says_what_litert_runs() -> None:
    found, _ = planned(FormatName.ONNX, ORT, LITERT)
    (refusal,) = [row.refusal for row in found.candidates if row.plan.runtime == LITERT]
    assert refusal is not None
    assert refusal.reason == Reason.UNSUPPORTED_MODEL
    assert refusal.message == (
        "litert cannot load this model: it only loads sources in the format TFLite, Keras or SavedModel"
    )


GRAPH = {"optimizeGraph": {}}
HALF = {"quantize": {"mode": "Float16"}}


@pytest.mark.parametrize(
    ("steps", "made"),
    [
        ([], StepKind.OPTIMIZE_GRAPH),
        ([GRAPH], StepKind.OPTIMIZE_GRAPH),
        ([GRAPH, HALF], StepKind.QUANTIZE_FLOAT16),
        ([GRAPH, {"quantize": {"mode": "Static"}}], StepKind.QUANTIZE_STATIC),
    ],
)
def test_the_conversion_is_the_one_step_of_a_recipe_and_quantizes_on_the_way(
    steps: list[dict[str, Any]], made: StepKind
) -> None:
    found, _ = planned(KERAS, LITERT, recipes=[{"name": "plain", "steps": steps}])
    (row,) = found.candidates
    assert row.build is not None
    assert [step.parameters.kind for step in row.build.steps if step.parameters] == [made]


def test_a_recipe_for_a_file_that_runs_as_it_came_says_what_can_be_converted() -> None:
    found, _ = planned(TFLITE, LITERT, recipes=[{"name": "plain"}, {"name": "half", "steps": [HALF]}])
    text = "files for litert are made from sources in the format Keras or SavedModel; a source in TFLite only runs unchanged (original)"
    refusals = {row.name: row.refusal for row in found.candidates}
    refused = Finding(Reason.RECIPE_NOT_APPLICABLE, text)
    assert refusals == {"original": None, "plain-litert": refused, "half-litert": refused}


def test_only_litert_stores_weights_in_float16() -> None:
    found, _ = planned(KERAS, ORT, LITERT, recipes=[{"name": "half", "steps": [HALF]}])
    refusals = {row.name: row.refusal for row in found.candidates if row.plan.recipe == "half"}
    text = "recipe half has a step that onnxruntime does not offer"
    assert refusals == {"half-onnxruntime": Finding(Reason.RECIPE_NOT_APPLICABLE, text), "half-litert": None}
    assert all(row.lossy and not row.quantizes for row in found.candidates if row.name == "half-litert")
