"""The catalog's rows, held against the API and the lock files."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from fettle.api import catalog, formats, images
from fettle.api.images import Image
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.recipe import OptimizeGraphStep, QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.task import BuiltCandidate, StoredModel
from fettle.api.vocabulary import FormatName, Precision, QuantizeMode, RuntimeName, StepKind
from fettle.optimizer import sources
from fettle.plan.run.planned import Execution, planned_candidate

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "operator" / "fettle"
GRAPH = RecipeStep(optimize_graph=OptimizeGraphStep())
STATIC = RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.STATIC))
DYNAMIC = RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.DYNAMIC))
BFLOAT16 = RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.BFLOAT16))
FLOAT16 = RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.FLOAT16))
WEIGHT_ONLY = RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.WEIGHT_ONLY))


@pytest.mark.parametrize(
    ("step", "family", "lossy", "calibration", "libraries"),
    [
        (GRAPH, RuntimeName.ONNXRUNTIME, False, False, ("onnx",)),
        (GRAPH, RuntimeName.OPENVINO, False, False, ("onnx",)),
        (STATIC, RuntimeName.ONNXRUNTIME, True, True, ("onnx", "onnxruntime")),
        (STATIC, RuntimeName.OPENVINO, True, True, ("nncf", "openvino")),
        (DYNAMIC, RuntimeName.ONNXRUNTIME, True, False, ("onnx", "onnxruntime")),
        (GRAPH, RuntimeName.INDUCTOR, False, False, ("torch",)),
        (GRAPH, RuntimeName.LITERT, False, False, ("tensorflow-cpu",)),
        (STATIC, RuntimeName.LITERT, True, True, ("tensorflow-cpu",)),
        (FLOAT16, RuntimeName.LITERT, True, False, ("tensorflow-cpu",)),
        (BFLOAT16, RuntimeName.OPENVINO, True, True, ("openvino",)),
        (WEIGHT_ONLY, RuntimeName.ONNXRUNTIME, True, False, ("onnx", "onnx-ir", "onnxruntime")),
        (WEIGHT_ONLY, RuntimeName.OPENVINO, True, False, ("nncf", "openvino")),
    ],
)
def test_a_step_tells_what_it_needs(
    step: RecipeStep, family: RuntimeName, lossy: bool, calibration: bool, libraries: tuple[str, ...]
) -> None:
    entry = catalog.step(step, family)
    assert entry is not None
    assert (entry.lossy, entry.calibration, entry.libraries) == (lossy, calibration, libraries)


@pytest.mark.parametrize(
    ("step", "family"),
    [
        (DYNAMIC, RuntimeName.OPENVINO),
        (FLOAT16, RuntimeName.ONNXRUNTIME),
        (BFLOAT16, RuntimeName.ONNXRUNTIME),
        (RecipeStep(), RuntimeName.OPENVINO),
    ],
)
def test_a_step_that_no_library_offers_has_no_row(step: RecipeStep, family: RuntimeName) -> None:
    assert catalog.step(step, family) is None


def test_a_step_is_lossy_in_the_plan_where_it_is_to_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One definition, on the catalog's row: whoever adds a step says it there and nowhere else."""
    model = StoredModel(format="ONNX", entry="model.onnx", files=())

    def lossy(*steps: RecipeStep, precision: Precision = Precision.FLOAT32) -> tuple[bool, bool]:
        planned = planned_candidate(
            "r", RuntimeName.ONNXRUNTIME, Execution(RuntimeSettings(threads=1, precision=precision)), steps=steps
        )
        return planned.lossy, BuiltCandidate(plan=planned.plan, model=model, steps=steps).lossy

    assert lossy() == lossy(GRAPH) == (False, False)
    assert lossy(GRAPH, STATIC) == lossy(DYNAMIC) == (True, True)
    assert lossy(precision=Precision.BFLOAT16) == (True, True)
    assert lossy(RecipeStep()) == (True, True), "of a step that another version wrote nothing is known"
    changed = tuple(replace(entry, lossy=not entry.lossy) for entry in catalog.STEPS)
    monkeypatch.setattr(catalog, "STEPS", changed)
    assert lossy(GRAPH) == (True, True)
    assert lossy(STATIC) == (False, False)


def test_no_pair_of_step_and_family_has_two_rows() -> None:
    pairs = [(entry.kind, entry.family) for entry in catalog.STEPS]
    assert len(pairs) == len(set(pairs))


def test_every_format_and_every_runtime_of_the_api_has_a_row() -> None:
    assert {entry.format for entry in formats.FORMATS} == set(FormatName) - {FormatName.AUTO}
    assert {entry.runtime for entry in catalog.RUNTIMES} == set(RuntimeName)
    assert all(catalog.runtime(name).runtime == name for name in RuntimeName)
    assert formats.source_format(FormatName.AUTO) is None


def test_what_a_step_writes_its_family_loads_or_what_ends_its_builds_does() -> None:
    for entry in catalog.STEPS:
        loads = catalog.runtime(entry.family).loads
        assert entry.writes in loads or (catalog.finish(entry.family) and entry.writes == catalog.PORTABLE)
    assert all(entry.writes in catalog.runtime(entry.family).loads for entry in catalog.STEPS if entry.finishes)
    assert all(entry.writes == "TorchExport" for entry in catalog.STEPS if entry.trains)


def test_what_takes_the_portable_form_takes_a_source_that_is_put_into_float32_again() -> None:
    again = {entry.family for entry in catalog.STEPS if entry.kind is StepKind.DEQUANTIZE}
    assert again == {name for name in RuntimeName if catalog.takes_portable(name)}


@pytest.mark.parametrize("entry", images.IMAGES, ids=lambda entry: entry.image)
def test_every_library_that_an_image_is_said_to_have_is_locked_in_it(entry: images.ImageEntry) -> None:
    parts = {
        Image.OPTIMIZER_TORCH: ("optimizer", "training"),
        Image.OPTIMIZER_GPU_TORCH: ("optimizer", "gpu-torch"),
        Image.SERVER_GPU_TORCH: ("server", "gpu-torch"),
    }.get(entry.image, entry.image.split("-"))
    locks = [ROOT / "requirements" / f"{part}.txt" for part in parts]  # server-torch holds both
    locked = {name for lock in locks for name in re.findall(r"(?m)^([\w.-]+)==", lock.read_text())}
    assert entry.libraries <= locked


def test_every_image_has_one_row_and_the_smaller_of_two_comes_first() -> None:
    assert [entry.image for entry in images.IMAGES] == list(Image)
    for serves in (False, True):
        sizes = [len(entry.libraries) for entry in images.IMAGES if entry.serves == serves]
        assert sizes == sorted(sizes)


def test_every_image_of_jobs_has_what_the_optimizer_itself_imports() -> None:
    assert all({"numpy", "onnx", "onnxruntime"} <= entry.libraries for entry in images.IMAGES if not entry.serves)


def test_some_image_has_what_each_row_needs() -> None:
    for name in RuntimeName:
        assert images.job_image(catalog.runtime(name).libraries) is not None
        assert images.server_image(name) in Image
    assert all(images.job_image(entry.libraries) is not None for entry in (*catalog.STEPS, *formats.FORMATS))


@pytest.mark.parametrize(
    ("target", "runtimes"),
    [
        ({}, (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO)),
        ({"device": {"kind": "nvidia"}}, (RuntimeName.ONNXRUNTIME_CUDA, RuntimeName.TENSORRT_RTX)),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, (RuntimeName.ONNXRUNTIME_CUDA, RuntimeName.TENSORRT_RTX)),
        ({"resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}, (RuntimeName.ONNXRUNTIME_CUDA, RuntimeName.TENSORRT_RTX)),
        ({"resources": {"requests": {"nvidia.com/gpu": 1}}}, (RuntimeName.ONNXRUNTIME_CUDA, RuntimeName.TENSORRT_RTX)),
        ({"device": {"kind": "cpu"}, "resources": {"limits": {"nvidia.com/gpu": 1}}}, (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO)),
        ({"resources": {"limits": {"nvidia.com/gpu": 0}}}, (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO)),
        ({"resources": {"limits": {"nvidia.com/gpu": "0"}}}, (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO)),
        ({"device": {"kind": "nvidia"}, "runtimes": ["tensorrt"]}, (RuntimeName.TENSORRT,)),
    ],
    ids=["no device", "a GPU", "a GPU among the limits", "a part of a GPU", "a GPU among the requests", "the CPU beside a GPU", "no GPU",
         "no GPU, as text", "named"],
)  # fmt: skip
def test_a_target_that_names_no_runtimes_gets_those_of_its_device(
    target: dict[str, object], runtimes: tuple[RuntimeName, ...]
) -> None:
    assert TargetSpec.model_validate({"name": "here", **target}).runtimes == runtimes


def test_each_step_names_a_function_that_is_there_or_changes_nothing() -> None:
    for entry in catalog.STEPS:
        if entry.function is None:
            assert not entry.lossy, "nothing is done, so nothing is lost"
        else:
            module, name = entry.function.split(":")
            assert callable(getattr(import_module(f"fettle.optimizer.steps.{module}"), name))


def test_every_runtime_and_every_format_has_its_module() -> None:
    assert all((SOURCE / "runtimes" / f"{entry.runtime.replace('-', '_')}.py").exists() for entry in catalog.RUNTIMES)
    # MLflow's folder names a model that is in one of the others.
    readable = {format.name for format in sources.FORMATS} | {FormatName.MLFLOW}
    assert readable == {entry.format for entry in formats.FORMATS}


def test_the_catalog_loads_no_toolchain() -> None:
    code = "import sys, fettle.api.catalog, fettle.api.formats; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch"} & set(loaded)
