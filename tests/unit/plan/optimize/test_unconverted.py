"""A source of PyTorch's that has no portable form: PyTorch runs it alone, where it may."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.optimize.world import World, digest, make_spec, prepared, stored

from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.reasons import Reason
from fettle.api.report import ConversionFault, PrepareReport
from fettle.api.task import PrepareTask
from fettle.api.vocabulary import CandidateState, FormatName, RuntimeName
from fettle.plan.run.state import TaskRequest

FAULT = ConversionFault(reason=Reason.UNSUPPORTED_OPERATOR, message="the model uses aten.fft_rfft")
TORCH, ORT = RuntimeName.TORCHSCRIPT, RuntimeName.ONNXRUNTIME


def unconverted(request: TaskRequest) -> PrepareReport | None:
    """The answer of a prepare task whose source could not be converted."""
    if not isinstance(request.task, PrepareTask):
        return None
    source = stored("script").model_copy(update={"format": FormatName.TORCH_SCRIPT})
    update = {
        "source": SourceStatus(sha256=digest("source"), format=FormatName.TORCH_SCRIPT, bytes=1000),
        "original": source,
        "portable": source,
        "portable_runtimes": (TORCH,),
        "conversion_fault": FAULT,
    }
    return prepared(request.task.builds).model_copy(update=update)


def world(*runtimes: list[str], **fields: Any) -> World:
    """A run whose targets t0, t1, … allow these runtimes."""
    targets = [{"name": f"t{number}", "runtimes": names} for number, names in enumerate(runtimes)]
    return World(make_spec(targets=targets, **fields), answer=unconverted)


def test_it_is_measured_and_published_by_its_own_runtime() -> None:
    run = world(["torchscript"])
    run.settle()
    assert run.ready.reason == Reason.PUBLISHED
    assert [artifact.runtime for artifact in run.status.artifacts] == [TORCH]
    assert not run.labels("build"), "nothing can be built from it"
    converted = run.condition("Converted")
    assert (converted.status, converted.reason) == ("False", Reason.UNSUPPORTED_OPERATOR)
    assert "aten.fft_rfft" in converted.message


def test_other_runtimes_of_the_target_say_why_they_cannot() -> None:
    run = world(["onnxruntime", "torchscript"])
    run.settle()
    assert run.ready.reason == Reason.PUBLISHED
    others = [row for row in run.rows("t0").values() if row.runtime == ORT]
    assert others
    for row in others:
        assert (row.state, row.reason) == (CandidateState.REJECTED, Reason.UNSUPPORTED_MODEL)
        assert row.message == "onnxruntime cannot load this model: the model uses aten.fft_rfft"


@pytest.mark.parametrize("targets", [(["onnxruntime", "openvino"],), (["torchscript"], ["openvino"])])
def test_a_target_without_that_runtime_ends_the_run_and_the_message_says_what_to_add(
    targets: tuple[list[str], ...],
) -> None:
    run = world(*targets)
    run.settle()
    assert run.ready.reason == Reason.UNSUPPORTED_OPERATOR
    last = f"t{len(targets) - 1}"
    assert run.ready.message == (
        f"the model uses aten.fft_rfft; torchscript can run the model without conversion: add it to the runtimes of {last}"
    )
    assert run.labels("measure") == []


def test_a_target_with_a_gpu_is_told_of_what_runs_there() -> None:
    device = {"kind": "nvidia", "architecture": "sm89"}
    run = World(make_spec(targets=[{"name": "gpu", "device": device}]), answer=unconverted)
    run.settle()
    assert run.ready.reason == Reason.UNSUPPORTED_OPERATOR
    assert run.ready.message == (
        "the model uses aten.fft_rfft; torchscript-cuda can run the model without conversion: add it to the runtimes of gpu"
    )


def test_a_recipe_of_the_user_on_it_is_rejected_and_the_rest_goes_on() -> None:
    recipes = [{"name": "int8", "steps": [{"quantize": {"mode": "Dynamic"}}]}]
    run = world(["torchscript"], recipes=recipes)
    run.settle()
    (row,) = [row for name, row in run.rows("t0").items() if name.startswith("int8")]
    assert row.state == CandidateState.REJECTED
    assert run.ready.reason == Reason.PUBLISHED
