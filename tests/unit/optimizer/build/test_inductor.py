"""Programs of torch.export, compiled for the CPU at hand: equal answers, what a package needs of a node, and what is refused before it is loaded."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.executed import Executed
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import BuildReport, CpuClass, PrepareReport
from fettle.api.task import BuildPlan, CandidatePlan
from fettle.api.vocabulary import RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer import build
from fettle.optimizer.measure.artifact import requirements
from fettle.plan.run.default_plan import default_lines
from fettle.plan.run.tasks import BuildInput, build_task
from fettle.runtimes import base, cpu
from fettle.store.cache import build_key

INDUCTOR = RuntimeName.INDUCTOR
pytestmark = [
    pytest.mark.usefixtures("operators_gathered_once", "threads"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++"),
    pytest.mark.timeout(900),  # a compilation takes a minute of one core
]
BASELINE = CpuClass(vendor="Nobody")
LARGE = CpuClass(vendor="Nobody", avx2=True, avx512=True, vnni=True, bf16=True)
ARM = CpuClass(vendor="Nobody", architecture="aarch64")


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads belongs to the process, and other tests run in this one."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def planned(threads: int = 2) -> BuildPlan:
    """The build of the default plan."""
    (line, *_) = default_lines(frozenset({INDUCTOR}))
    made = line.candidate(TargetSpec(name="cpu", threads=threads, runtimes=(INDUCTOR,))).build
    assert made is not None
    return made


@dataclass(frozen=True)
class Compiled:
    """What prepare and the build reported of a program, the package, and the example that it is."""

    bench: Workbench
    report: PrepareReport
    answer: BuildReport
    entry: Path
    example: Any

    def session(self, **settings: Any) -> base.Session:
        return base.get(INDUCTOR).load(self.entry, RuntimeSettings(**settings), self.report.signature)


def built(bench: Workbench, name: str) -> tuple[PrepareReport, BuildReport, Any]:
    from tests.data import torch_models

    example = torch_models.EXAMPLES.get(name, torch_models.UNSUPPORTED)
    torch_models.save_program(example, bench.folder / "model.pt2")
    report = bench.prepare(bench.task(uri="pvc://claim/model.pt2", builds=[planned()]))
    task = build_task(planned(), report.builds[0], BuildInput(report.portable), report, "pvc://claim/store")
    return report, build.run(task, bench.store), example


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    bench = Workbench(tmp_path_factory.mktemp("inductor"))
    report, answer, example = built(bench, "convolutional")
    assert answer.built is not None, answer.message
    return Compiled(bench, report, answer, bench.store.fetch_model(answer.built, bench.folder / "made"), example)


def test_a_compiled_program_answers_as_the_module_with_any_number_of_items_and_threads(compiled: Compiled) -> None:
    from tests.data import torch_models

    assert INDUCTOR in compiled.report.portable_runtimes
    assert compiled.answer.built is not None
    assert (compiled.answer.built.format, compiled.answer.cache_key) == (
        "AOTInductor",
        compiled.report.builds[0].cache_key,
    )
    image = np.concatenate([compiled.example.inputs["image"]] * 3)
    wanted = torch_models.module_of(compiled.example)(torch_models.tensors(compiled.example)[0]).detach().numpy()
    for threads in (2, 1):
        session = compiled.session(threads=threads)
        assert session.effective_settings().threads == threads
        for size in (2, 1, 6):
            found = session.infer({"image": image[:size]})["output"]
            np.testing.assert_allclose(found, np.concatenate([wanted] * 3)[:size], rtol=1e-4, atol=1e-6)


def test_a_build_that_is_asked_for_again_is_the_same_package(compiled: Compiled) -> None:
    again = compiled.bench.prepare(compiled.bench.task(uri="pvc://claim/model.pt2", builds=[planned()]))
    assert again.builds[0].built == compiled.answer.built


def test_a_model_that_onnx_cannot_express_is_compiled_as_well(bench: Workbench) -> None:
    from tests.data import torch_models

    report, answer, example = built(bench, "unsupported")
    assert report.conversion_fault is not None
    assert report.portable_runtimes == (RuntimeName.TORCHSCRIPT, INDUCTOR)
    assert answer.built is not None, answer.message
    entry = bench.store.fetch_model(answer.built, bench.folder / "made")
    found = base.get(INDUCTOR).load(entry, RuntimeSettings(), report.signature).infer(example.inputs)["output"]
    wanted = torch_models.module_of(example)(*torch_models.tensors(example)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_layers_are_counted_as_the_program_has_them(compiled: Compiled) -> None:
    counted = base.get(INDUCTOR).executed(compiled.entry, RuntimeSettings(), {}, compiled.report.signature)
    assert counted == Executed(f32=2, total=2)  # a convolution and a dense layer


# -------------------------------------------------------------------------------------------------------- what it needs of a node


@pytest.mark.parametrize(
    ("here", "lacking"), [(BASELINE, cpu.detect().label.split()[-1].split("+")[0]), (ARM, "x86_64")]
)
def test_a_node_without_what_it_was_compiled_for_is_refused_before_anything_is_loaded(
    compiled: Compiled, here: CpuClass, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "baseline":
        pytest.skip("this CPU has nothing that another could lack")
    monkeypatch.setattr(cpu, "detect", lambda: here)
    monkeypatch.setattr("torch._C._aoti.AOTIModelPackageLoader", None)
    with pytest.raises(RuntimeFailure) as caught:
        compiled.session()
    assert caught.value.reason == Reason.NODE_INCOMPATIBLE
    assert f"compiled for a CPU with {lacking}" in caught.value.message
    assert "choose nodes like the one that it was compiled on" in caught.value.message


def test_an_artifact_requires_all_that_the_cpu_has_on_which_it_was_measured() -> None:
    for runtime, needs in ((INDUCTOR, ("avx2", "avx512", "vnni", "bf16")), (RuntimeName.TORCHSCRIPT, ())):
        plan = CandidatePlan(name="c", recipe="float32", runtime=runtime, settings=RuntimeSettings())
        assert requirements(plan, False, LARGE) == needs


def test_machine_code_for_another_cpu_or_number_of_threads_is_another_build(compiled: Compiled) -> None:
    portable = compiled.report.portable
    keys = {build_key(planned(threads), portable, None, here) for threads in (1, 2) for here in (BASELINE, LARGE)}
    assert len(keys) == 4


# ---------------------------------------------------------------------------------------------------------------- what is refused


def test_a_package_is_no_source(compiled: Compiled, bench: Workbench) -> None:
    shutil.copy(compiled.entry, bench.folder / "model.pt2")
    error = bench.refused(uri="pvc://claim/model.pt2")
    assert error.reason == Reason.UNSUPPORTED_FORMAT
    assert "model.pt2 is a package of AOTInductor: machine code for one class of CPU" in error.message
    assert "provide the program that it was compiled from" in error.message


def test_a_program_with_machine_code_beside_it_is_not_opened(bench: Workbench) -> None:
    from tests.data import torch_models

    path = torch_models.save_program(torch_models.EXAMPLES["pair"], bench.folder / "model.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/aotinductor/model/code.so", b"")
    assert "machine code" in bench.refused(uri="pvc://claim/model.pt2").message


@pytest.mark.parametrize("metadata", [None, {}, {"fettle": "no JSON"}, {"AOTI_DEVICE_KEY": "cpu"}])
def test_a_package_that_fettle_did_not_compile_is_not_loaded(
    compiled: Compiled, tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    with zipfile.ZipFile(tmp_path / "model.aoti", "w") as archive:
        archive.writestr("model/data/aotinductor/model/code.so", b"")
        if metadata is not None:
            archive.writestr("model/data/aotinductor/model/code_metadata.json", json.dumps(metadata))
    with pytest.raises(RuntimeFailure, match="not a package that this version of Fettle compiled"):
        base.get(INDUCTOR).load(tmp_path / "model.aoti", RuntimeSettings(), compiled.report.signature)


def test_without_a_compiler_the_candidate_says_what_to_install(compiled: Compiled) -> None:
    from torch._inductor import config

    given = BuildInput(compiled.report.portable)
    task = build_task(planned(3), compiled.report.builds[0], given, compiled.report, "pvc://claim/store")
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):  # pytest's monkeypatch would hide the setting for good
        answer = build.run(task, compiled.bench.store)
    assert (answer.built, answer.reason) == (None, Reason.RECIPE_NOT_APPLICABLE)
    assert "there is no C++ compiler here (no-such-compiler" in answer.message
    assert "install one, such as Debian's package g++, or remove inductor" in answer.message


def test_another_step_before_the_compiler_is_refused(compiled: Compiled) -> None:
    given = compiled.report.model_copy(update={"native": None})
    task = build_task(planned(4), given.builds[0], BuildInput(given.portable), given, "pvc://claim/store")
    answer = build.run(task, compiled.bench.store)
    assert answer.message == "inductor compiles the source in one step: leave the others out of the recipe"
