"""A source of PyTorch's on a target with a GPU: what it is measured against, and what runs it there."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.default_plan.test_default_plan import named, refused, tried
from tests.unit.plan.optimize.world import OPENVINO, ORT, digest, make_spec, prepared, stored

from fettle.api.images import Image, server_image
from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.reasons import Reason
from fettle.api.report import ConversionFault, PrepareReport
from fettle.api.task import BuiltCandidate, MeasureTask, StoredData
from fettle.api.vocabulary import Basis, FormatName, Precision, RuntimeName
from fettle.plan.run.candidates import TargetPlan, plan_target, possible_builds
from fettle.plan.run.constraints import in_force
from fettle.plan.run.devices import loading
from fettle.plan.run.images import image_of
from fettle.plan.run.tasks import model_of

TORCH, CUDA, RTX = RuntimeName.TORCHSCRIPT_CUDA, RuntimeName.ONNXRUNTIME_CUDA, RuntimeName.TENSORRT_RTX
SCRIPT, EXPORT = FormatName.TORCH_SCRIPT, FormatName.TORCH_EXPORT


def report(format: FormatName, **update: Any) -> PrepareReport:
    """What prepare, which has no GPU, says of a source of that format."""
    original = stored("original").model_copy(update={"format": format})
    source = SourceStatus(sha256=digest("source"), format=format, bytes=1000)
    runtimes = (ORT, OPENVINO, RuntimeName.TORCHSCRIPT)
    given = prepared((), portable_runtimes=runtimes)
    return given.model_copy(update={"source": source, "original": original, **update})


def planned(told: PrepareReport, *runtimes: RuntimeName, architecture: str = "sm89") -> TargetPlan:
    named_runtimes = {"runtimes": list(runtimes)} if runtimes else {}
    device = {"kind": "nvidia", "architecture": architecture}
    spec = make_spec(targets=[{"name": "gpu", "device": device, "batchSizes": [1], **named_runtimes}])
    given = told.model_copy(update={"builds": prepared(possible_builds(spec)).builds})
    return plan_target(spec, spec.targets[0], given, in_force(spec))


@pytest.mark.parametrize("format", [SCRIPT, EXPORT])
def test_what_a_gpu_gains_is_measured_against_pytorch_on_the_gpu(format: FormatName) -> None:
    told = report(format)
    found = planned(told)
    assert (found.baseline.runtime, found.baseline.untouched) == (TORCH, True)
    assert found.baseline.settings.precision == Precision.FLOAT32
    assert not found.baseline.settings.graph_optimization
    assert {row.plan.runtime for row in found.candidates} == {CUDA, RTX}, "PyTorch serves where it is asked to"
    assert refused(found) == {}


def test_a_source_that_pytorch_did_not_answer_alike_is_measured_against_its_portable_form() -> None:
    found = planned(report(SCRIPT, basis=Basis.PORTABLE_FORM))
    assert (found.baseline.runtime, found.baseline.untouched) == (CUDA, False)


@pytest.mark.parametrize(
    ("format", "architecture", "recipes"),
    [
        (SCRIPT, "sm89", ["float32-torchscript-cuda", "tf32-torchscript-cuda"]),
        (SCRIPT, "sm75", ["float32-torchscript-cuda"]),
        (EXPORT, "sm89", []),
    ],
)
def test_pytorch_itself_is_tried_frozen_and_fused_in_what_the_gpu_has(
    format: FormatName, architecture: str, recipes: list[str]
) -> None:
    told = report(format)
    found = planned(told, TORCH, architecture=architecture)
    assert tried(found) == ["original", *recipes]
    assert all(model_of(row, told, {}) == told.original for row in found.candidates), "the file as it came"
    assert [row.lossy for row in found.candidates] == [False, False, True][: len(recipes) + 1]


def test_a_source_in_onnx_gets_one_row_that_says_what_pytorch_runs() -> None:
    found = planned(prepared(()), CUDA, TORCH)
    assert refused(found) == {"float32-torchscript-cuda": Reason.UNSUPPORTED_MODEL}
    refusal = named(found, "float32-torchscript-cuda").refusal
    assert refusal is not None
    assert refusal.message.endswith("it only loads sources in the format TorchScript or TorchExport")


def test_without_a_gpu_it_has_no_place() -> None:
    spec = make_spec(targets=[{"name": "cpu", "runtimes": ["onnxruntime", "torchscript-cuda"]}])
    found = plan_target(spec, spec.targets[0], report(SCRIPT), in_force(spec))
    assert found.baseline.runtime == RuntimeName.TORCHSCRIPT
    assert refused(found)["float32-torchscript-cuda"] == Reason.RECIPE_NOT_APPLICABLE


def test_one_image_measures_pytorch_beside_engines_and_one_serves_it() -> None:
    told = report(SCRIPT)
    found = planned(told)
    rows = tuple(BuiltCandidate(plan=row.plan, model=stored("built")) for row in found.candidates)
    task = MeasureTask(
        store="pvc://store",
        target="gpu",
        threads=1,
        batch_sizes=(1,),
        source_sha256=digest("source"),
        signature=told.signature,
        baseline=BuiltCandidate(plan=found.baseline, model=told.original),
        candidates=rows,
        items=StoredData(sha256=digest("items"), items=1),
        generated=False,
        alpha=0.05,
    )
    assert image_of(task) == Image.OPTIMIZER_GPU_TORCH
    assert server_image(TORCH) == Image.SERVER_GPU_TORCH
    assert server_image(RTX) == Image.SERVER_GPU


def test_a_source_without_a_portable_form_runs_in_pytorch_on_the_gpu() -> None:
    fault = ConversionFault(reason=Reason.UNSUPPORTED_OPERATOR, message="the model uses aten.fft_rfft")
    source = stored("original").model_copy(update={"format": SCRIPT})
    runtimes = (RuntimeName.TORCHSCRIPT,)
    told = report(SCRIPT, portable=source, original=source, portable_runtimes=runtimes, conversion_fault=fault)
    assert loading(told) == {RuntimeName.TORCHSCRIPT, TORCH}
    found = planned(told, TORCH, RTX)
    assert (found.baseline.runtime, found.baseline.untouched) == (TORCH, True)
    assert "original" in tried(found)
    assert {reason for name, reason in refused(found).items() if "rtx" in name} == {Reason.UNSUPPORTED_MODEL}
