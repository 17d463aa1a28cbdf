"""PyTorch's compiler: tried for programs of torch.export, and for modules that prepare exports; built on the target's nodes for its threads."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.optimize.world import OPENVINO, ORT, digest, make_spec, prepared, stored

from fettle.api import catalog
from fettle.api.images import Image, server_image
from fettle.api.memory import COMPILER_BYTES, COPIES
from fettle.api.optimizedmodel_status import SourceStatus
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.task import StoredModel
from fettle.api.vocabulary import Basis, FormatName, RuntimeName, StepKind
from fettle.plan.run.builds import placed
from fettle.plan.run.candidates import TargetPlan, plan_target, possible_builds
from fettle.plan.run.constraints import in_force
from fettle.plan.run.images import image_of
from fettle.plan.run.planned import Finding
from fettle.plan.run.tasks import BuildInput, build_task, memory_of

INDUCTOR, TORCHSCRIPT = RuntimeName.INDUCTOR, RuntimeName.TORCHSCRIPT
PROGRAM = StoredModel(format="TorchExport", entry="model.pt2", files=())
SCRIPT, EXPORT, MODULE = FormatName.TORCH_SCRIPT, FormatName.TORCH_EXPORT, FormatName.TORCH_MODULE
EXPORTED = (EXPORT, MODULE, FormatName.HUGGING_FACE)


def planned(format: FormatName, *runtimes: RuntimeName, **fields: Any) -> tuple[TargetPlan, PrepareReport]:
    """The plan of a target with these runtimes, and what prepare said of a source of that format."""
    spec = make_spec(targets=[{"name": "cpu", "threads": 2, "runtimes": list(runtimes)}], **fields)
    own = ((TORCHSCRIPT,) if format in (SCRIPT, EXPORT) else ()) + ((INDUCTOR,) if format in EXPORTED else ())
    report = prepared(possible_builds(spec), portable_runtimes=(ORT, OPENVINO, *own)).model_copy(
        update={
            "source": SourceStatus(sha256=digest("source"), format=format, bytes=1000),
            "original": PROGRAM if format == EXPORT else stored("original"),
            "native": PROGRAM if format in EXPORTED else None,
            "basis": Basis.SOURCE_RUNTIME if format in (SCRIPT, EXPORT) else Basis.PORTABLE_FORM,
        }
    )
    return plan_target(spec, spec.targets[0], report, in_force(spec)), report


@pytest.mark.parametrize("format", EXPORTED)
def test_what_the_compiler_makes_is_tried_beside_the_portable_form(format: FormatName) -> None:
    found, report = planned(format, ORT, INDUCTOR)
    (row,) = [row for row in found.candidates if row.plan.runtime == INDUCTOR]
    assert (row.name, row.refusal, row.lossy) == ("float32-inductor", None, False)
    assert row.build is not None
    assert [step.parameters.kind for step in row.build.steps if step.parameters] == [StepKind.OPTIMIZE_GRAPH]
    entry = next(entry for entry in report.builds if entry.name == row.build.name)
    task = build_task(row.build, entry, BuildInput(report.portable), report, "pvc://store")
    assert (task.native, task.portable) == (PROGRAM, report.portable)
    assert (image_of(task), server_image(INDUCTOR)) == (Image.OPTIMIZER_TORCH, Image.SERVER_TORCH)


def test_it_is_compiled_on_the_targets_nodes_for_the_targets_threads() -> None:
    found, _ = planned(EXPORT, INDUCTOR)
    row = next(row for row in found.candidates if row.plan.runtime == INDUCTOR)
    there = placed(row, found.target)
    assert there is not None
    assert there.target == found.target
    assert (there.plan.name, there.plan.form and there.plan.form.threads) == ("float32-inductor-threads2", 2)


def test_one_thread_is_compiled_for_by_itself_where_the_model_is_quick() -> None:
    spec = make_spec(targets=[{"name": "cpu", "threads": 4, "runtimes": ["inductor"]}])
    names = {plan.name for plan in possible_builds(spec)}
    assert names == {"float32-inductor-threads4", "float32-inductor-threads1"}


@pytest.mark.parametrize("format", [SCRIPT, FormatName.ONNX])
def test_another_source_gets_one_row_that_says_what_is_compiled(format: FormatName) -> None:
    found, _ = planned(format, ORT, INDUCTOR)
    (refusal,) = [row.refusal for row in found.candidates if row.plan.runtime == INDUCTOR]
    text = (
        "inductor cannot load this model: it only loads sources in the format TorchExport, TorchModule or HuggingFace"
    )
    assert refusal == Finding(Reason.UNSUPPORTED_MODEL, text)


def test_the_steps_of_other_families_are_refused() -> None:
    steps = [{"quantize": {"mode": "Static"}}]
    found, _ = planned(EXPORT, INDUCTOR, recipes=[{"name": "int8", "steps": steps}])
    refusals = {row.name: row.refusal for row in found.candidates if row.plan.runtime == INDUCTOR}
    text = "recipe int8 has a step that inductor does not offer"
    assert refusals == {"int8-inductor": Finding(Reason.RECIPE_NOT_APPLICABLE, text)}


def test_a_compilation_is_given_memory_for_the_compilers_beside_the_model() -> None:
    found, report = planned(EXPORT, INDUCTOR)
    row = next(row for row in found.candidates if row.plan.runtime == INDUCTOR)
    assert row.build is not None
    entry = next(entry for entry in report.builds if entry.name == row.build.name)
    task = build_task(row.build, entry, BuildInput(report.portable), report, "pvc://store")
    loaded = catalog.runtime(INDUCTOR).process_bytes + COPIES * report.portable.bytes
    assert memory_of(task) >= loaded + COMPILER_BYTES
