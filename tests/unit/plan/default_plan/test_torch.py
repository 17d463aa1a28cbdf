"""A source of PyTorch's that was converted: its own runtime is baseline and candidate, the portable form is tried beside it."""

from __future__ import annotations

import pytest
from tests.unit.plan.optimize.world import OPENVINO, ORT, digest, make_spec, prepared, stored

from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.vocabulary import FormatName, RuntimeName
from fettle.plan.run.candidates import TargetPlan, plan_target, possible_builds
from fettle.plan.run.constraints import in_force
from fettle.plan.run.tasks import model_of

TORCH, SCRIPT, EXPORT = RuntimeName.TORCHSCRIPT, FormatName.TORCH_SCRIPT, FormatName.TORCH_EXPORT
PORTABLE_ROWS = ["float32-onnxruntime", "float32-openvino", "float32-openvino-static"]


def planned(format: FormatName, *runtimes: RuntimeName) -> tuple[TargetPlan, PrepareReport]:
    """The default plan of a target with these runtimes, and what prepare said of a source of that format."""
    spec = make_spec(targets=[{"name": "cpu", "threads": 2, "runtimes": list(runtimes)}])
    source = SourceStatus(sha256=digest("source"), format=format, bytes=1000)
    own = (TORCH,) if format != FormatName.ONNX else ()
    report = prepared(possible_builds(spec), portable_runtimes=(ORT, OPENVINO, *own)).model_copy(
        update={"source": source, "original": stored("original").model_copy(update={"format": format})}
    )
    return plan_target(spec, spec.targets[0], report, in_force(spec)), report


ORDERS = [
    ("a script is also tried frozen and fused by PyTorch", SCRIPT, ["original", *PORTABLE_ROWS, "float32-torchscript"]),
    ("an exported program, which has no such form, only as it came", EXPORT, ["original", *PORTABLE_ROWS]),
]


@pytest.mark.parametrize(("sentence", "format", "wanted"), ORDERS, ids=[line[0] for line in ORDERS])
def test_a_converted_source_is_tried_in_its_own_runtime_and_in_those_of_its_portable_form(
    sentence: str, format: FormatName, wanted: list[str]
) -> None:
    found, _ = planned(format, ORT, OPENVINO, TORCH)
    names = [row.name for row in found.candidates if row.refusal is None]
    assert names[: len(wanted)] == wanted, "cheapest first"
    assert [row.name for row in found.candidates if row.plan.runtime == TORCH] == [
        name for name in wanted if name == "original" or name.endswith("-torchscript")
    ]


@pytest.mark.parametrize("format", [SCRIPT, EXPORT])
def test_the_baseline_is_the_untouched_source_in_pytorch_even_where_pytorch_may_not_serve(format: FormatName) -> None:
    for runtimes in ((ORT, OPENVINO, TORCH), (ORT,)):
        found, _ = planned(format, *runtimes)
        assert (found.baseline.runtime, found.baseline.untouched) == (TORCH, True)
        assert (found.baseline.settings.threads, found.baseline.settings.graph_optimization) == (2, False)
        assert ("original" in [row.name for row in found.candidates]) == (TORCH in runtimes)


def test_pytorch_runs_the_source_and_the_others_the_portable_form() -> None:
    found, report = planned(SCRIPT, ORT, TORCH)
    models = {row.name: model_of(row, report, {}) for row in found.candidates if row.build is None}
    assert models == {
        "original": report.original,
        "float32-onnxruntime": report.portable,
        "float32-torchscript": report.original,
    }


def test_a_source_in_onnx_gets_one_row_that_says_what_pytorch_runs() -> None:
    found, _ = planned(FormatName.ONNX, ORT, TORCH)
    (refusal,) = [row.refusal for row in found.candidates if row.name == "float32-torchscript"]
    assert refusal is not None
    assert refusal.reason == Reason.UNSUPPORTED_MODEL
    assert refusal.message == (
        "torchscript cannot load this model: it only loads sources in the format TorchScript or TorchExport"
    )
