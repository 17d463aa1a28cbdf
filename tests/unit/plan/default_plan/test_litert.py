"""A source in TFLite: LiteRT is baseline and candidate, as it came; the portable form is tried beside it."""

from __future__ import annotations

from tests.unit.plan.optimize.world import OPENVINO, ORT, digest, make_spec, prepared, stored

from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.task import StoredModel
from fettle.api.vocabulary import FormatName, RuntimeName
from fettle.plan.run.candidates import TargetPlan, plan_target, possible_builds
from fettle.plan.run.constraints import in_force
from fettle.plan.run.tasks import model_of

LITERT = RuntimeName.LITERT
FILE = StoredModel(format="TFLite", entry="model.tflite", files=())


def planned(
    format: FormatName, original: StoredModel, *runtimes: RuntimeName, **fields: object
) -> tuple[TargetPlan, PrepareReport]:
    """The plan of a target with these runtimes, and what prepare said of a source of that format."""
    spec = make_spec(targets=[{"name": "cpu", "threads": 2, "runtimes": list(runtimes)}], **fields)
    source = SourceStatus(sha256=digest("source"), format=format, bytes=1000)
    own = (LITERT,) if original.format == "TFLite" else ()
    report = prepared(possible_builds(spec), portable_runtimes=(ORT, OPENVINO, *own))
    report = report.model_copy(update={"source": source, "original": original})
    return plan_target(spec, spec.targets[0], report, in_force(spec)), report


def test_the_baseline_is_the_untouched_file_in_litert_even_where_litert_may_not_serve() -> None:
    for runtimes in ((ORT, OPENVINO, LITERT), (ORT,)):
        found, _ = planned(FormatName.TFLITE, FILE, *runtimes)
        assert (found.baseline.runtime, found.baseline.untouched) == (LITERT, True)
        assert ("original" in [row.name for row in found.candidates]) == (LITERT in runtimes)


def test_litert_runs_the_file_only_as_it_came_and_the_others_its_portable_form() -> None:
    found, report = planned(FormatName.TFLITE, FILE, ORT, LITERT)
    models = {row.name: model_of(row, report, {}) for row in found.candidates if row.build is None}
    assert models == {"original": report.original, "float32-onnxruntime": report.portable}
    assert [row.name for row in found.candidates if row.plan.runtime == LITERT] == ["original"]


def test_a_source_in_onnx_gets_one_row_that_says_what_litert_runs() -> None:
    found, _ = planned(FormatName.ONNX, stored("original"), ORT, LITERT)
    (refusal,) = [row.refusal for row in found.candidates if row.plan.runtime == LITERT]
    assert refusal is not None
    assert refusal.reason == Reason.UNSUPPORTED_MODEL
    assert refusal.message == "litert cannot load this model: it only loads sources in the format TFLite"
