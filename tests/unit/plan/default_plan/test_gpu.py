"""Targets with GPUs: which candidates they get, what their files must be, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.default_plan.test_default_plan import named, plan, refused, tried
from tests.unit.plan.optimize.world import make_spec

from fettle.api.reasons import Reason
from fettle.api.task import DeviceForm
from fettle.api.vocabulary import Precision, RuntimeName
from fettle.plan.run.candidates import TargetPlan, possible_builds

GPU = {"kind": "nvidia", "architecture": "sm89"}


def planned(runtimes: tuple[str, ...] = (), **target: Any) -> TargetPlan:
    named_runtimes = {"runtimes": list(runtimes)} if runtimes else {}
    return plan(make_spec(targets=[{"name": "gpu", "device": GPU, **named_runtimes, **target}]))


ANY = ("float32", "float16", "int8")
AMPERE = ("float32", "tf32", "float16", "bfloat16", "int8")


@pytest.mark.parametrize(
    ("architecture", "recipes"),
    [("sm75", ANY), ("sm80", AMPERE), ("sm86", AMPERE), ("sm89", (*AMPERE, "float8")), ("sm120", (*AMPERE, "float8"))],
)
def test_a_gpu_gets_every_number_format_that_its_architecture_has(architecture: str, recipes: tuple[str, ...]) -> None:
    found = planned(batchSizes=[1], device={"kind": "nvidia", "architecture": architecture})
    wanted = [
        f"{recipe}-{runtime}{around}"
        for recipe in recipes
        for around in (("", "-float16") if recipe in ("int8", "float8") else ("",))
        for runtime in ("onnxruntime-cuda", "tensorrt-rtx")
        if recipe not in ("bfloat16", "float8") or runtime == "tensorrt-rtx"  # engines alone compute in them
    ]
    assert tried(found) == ["original", *wanted]
    assert refused(found) == {}


@pytest.mark.parametrize(
    ("recipe", "architecture", "needed"),
    [
        ({"precision": "BFloat16"}, "sm75", "sm80"),
        ({"precision": "TF32"}, "sm75", "sm80"),
        ({"precision": "Float32"}, "sm70", "sm75"),
        ({"steps": [{"quantize": {"mode": "Float8"}}]}, "sm86", "sm89"),
    ],
)
def test_a_recipe_in_numbers_that_the_gpu_lacks_is_a_row_with_the_reason(
    recipe: dict[str, Any], architecture: str, needed: str
) -> None:
    device = {"kind": "nvidia", "architecture": architecture}
    spec = make_spec(
        targets=[{"name": "gpu", "device": device, "runtimes": ["tensorrt-rtx"]}], recipes=[{"name": "mine", **recipe}]
    )
    found = plan(spec)
    assert refused(found) == {"mine-tensorrt-rtx": Reason.RECIPE_NOT_APPLICABLE}
    refusal = named(found, "mine-tensorrt-rtx").refusal
    assert refusal is not None
    assert refusal.message == f"mine needs a GPU from {needed} on, and the target's is {architecture}"


def test_tf32_is_a_setting_of_cuda_and_part_of_an_engine_and_must_be_proved_in_both() -> None:
    found = planned(batchSizes=[1])
    assert named(found, "tf32-onnxruntime-cuda").build is None, "it loads the same file"
    build = named(found, "tf32-tensorrt-rtx").build
    assert build is not None
    assert build.form == DeviceForm(precision=Precision.TF32, architecture="sm89", batch_size=1)
    assert all(named(found, f"tf32-{runtime}").lossy for runtime in ("onnxruntime-cuda", "tensorrt-rtx"))


def test_what_a_gpu_gains_is_measured_against_the_source_on_the_gpu() -> None:
    baseline = planned().baseline
    assert (baseline.runtime, baseline.untouched) == (RuntimeName.ONNXRUNTIME_CUDA, True)
    assert not baseline.settings.graph_optimization


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("float32-onnxruntime-cuda", None),
        ("float16-onnxruntime-cuda", DeviceForm(precision=Precision.FLOAT16)),
        ("float32-tensorrt-rtx", DeviceForm(architecture="sm89", batch_sizes=(1, 8))),
        ("int8-tensorrt-rtx-float16", DeviceForm(precision=Precision.FLOAT16, architecture="sm89", batch_sizes=(1, 8))),
    ],
)
def test_a_file_has_the_form_that_its_runtime_takes(name: str, form: DeviceForm | None) -> None:
    build = named(planned(batchSizes=[1, 8]), name).build
    assert (build.form if build is not None else None) == form


@pytest.mark.parametrize(("sizes", "fixed", "preferred"), [([4], 4, None), ([1, 8, 4], None, 8)])
def test_an_engine_is_served_in_the_batches_that_it_was_built_for(
    sizes: list[int], fixed: int | None, preferred: int | None
) -> None:
    settings = named(planned(batchSizes=sizes), "float16-tensorrt-rtx").plan.settings
    assert (settings.batch_size, settings.preferred_batch) == (fixed, preferred)


def test_with_objective_throughput_each_engine_is_also_tried_with_two_streams() -> None:
    targets = [{"name": "gpu", "device": GPU, "batchSizes": [1, 8], "resources": {"limits": {"cpu": 4}}}]
    found = plan(make_spec(objective="Throughput", targets=targets))
    rows = {row.name: row for row in found.candidates if row.refusal is None}
    streaming = {name.removesuffix("-2streams") for name in rows if name.endswith("-2streams")}
    assert streaming == {name for name in rows if "tensorrt-rtx" in name and not name.endswith("-2streams")}
    one, two = (rows[f"int8-tensorrt-rtx{variant}"] for variant in ("", "-2streams"))
    assert one.build == two.build, "the same engine serves both"
    assert (two.plan.settings.streams, two.plan.settings.threads) == (2, one.plan.settings.threads)
    assert two.plan.settings.preferred_batch == 8


def test_engines_of_two_architectures_are_two_builds_and_what_any_gpu_runs_is_one() -> None:
    gpus = [{"name": each, "device": {"kind": "nvidia", "architecture": each}} for each in ("sm75", "sm89")]
    names = [build.name for build in possible_builds(make_spec(targets=gpus))]
    assert len(names) == len(set(names))
    assert sum("sm75" in name for name in names) == 4
    assert sum("sm89" in name for name in names) == 8
    assert "int8-onnxruntime-cuda" in names


@pytest.mark.parametrize(
    ("target", "row", "advice"),
    [
        (
            {"runtimes": ["onnxruntime", "tensorrt-rtx"]},
            "float32-tensorrt-rtx",
            "set the target's device.kind to nvidia",
        ),
        ({"device": {"kind": "nvidia"}}, "float16-tensorrt-rtx", "set the target's device.architecture, such as sm89"),
    ],
    ids=["no GPU", "no architecture"],
)
def test_an_engine_that_has_no_place_is_a_row_with_the_reason(target: dict[str, Any], row: str, advice: str) -> None:
    found = plan(make_spec(targets=[{"name": "here", **target}]))
    assert refused(found)[row] == Reason.RECIPE_NOT_APPLICABLE
    refusal = named(found, row).refusal
    assert refusal is not None
    assert advice in refusal.message
    assert tried(found), "other rows go on"


def test_engines_that_the_library_does_not_build_for_the_gpu_are_rows_with_the_reason_before_any_work() -> None:
    found = planned(device={"kind": "nvidia", "architecture": "sm90"})
    assert all(name == "original" or "onnxruntime-cuda" in name for name in tried(found))
    refusal = named(found, "float16-tensorrt-rtx").refusal
    assert refusal is not None
    assert refusal.reason == Reason.RECIPE_NOT_APPLICABLE
    assert "sm89, sm120, sm121, and the target's GPU is sm90: use tensorrt for it" in refusal.message
    on_the_gpu = planned(device={"kind": "nvidia", "architecture": "sm90"}, runtimes=["onnxruntime-cuda", "tensorrt"])
    assert "float16-tensorrt" in tried(on_the_gpu)


def test_a_recipe_ends_in_an_engine_whatever_its_steps_are() -> None:
    spec = make_spec(
        targets=[{"name": "gpu", "device": GPU, "runtimes": ["tensorrt-rtx"]}],
        recipes=[{"name": "mine", "steps": [{"optimizeGraph": {}}, {"quantize": {"mode": "Static"}}]}],
    )
    (row,) = (each for each in plan(spec).candidates if each.plan.recipe == "mine")
    keys = [next(iter(step.to_json())) for step in row.steps]
    assert keys == ["quantize", "optimizeGraph"]


def test_a_recipe_that_asks_for_nothing_is_the_portable_form_in_cuda() -> None:
    spec = make_spec(
        targets=[{"name": "gpu", "device": GPU, "runtimes": ["onnxruntime-cuda"]}],
        recipes=[{"name": "plain", "steps": [{"optimizeGraph": {}}]}],
    )
    (row,) = (each for each in plan(spec).candidates if each.plan.recipe == "plain")
    assert (row.build, row.refusal) == (None, None)
