"""Targets with GPUs: what of a candidate is fixed by the device it runs on."""

from __future__ import annotations

from fettle.api import catalog
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.task import DeviceForm
from fettle.api.vocabulary import DeviceKind, Precision, RuntimeName
from fettle.plan.run.planned import Execution, PlannedCandidate

GPU_BASELINE = RuntimeName.ONNXRUNTIME_CUDA
GPU = f"{catalog.NVIDIA_RESOURCES}gpu"


def gpu_resources(target: TargetSpec) -> dict[str, int | str]:
    """What pods of a target ask NVIDIA's device plugin for: the limits that the spec gives, else one GPU; nothing for a target of CPUs."""
    if target.device is not None and target.device.kind is DeviceKind.CPU:
        return {}
    given = {
        name: amount for name, amount in target.resources.limits.items() if name.startswith(catalog.NVIDIA_RESOURCES)
    }
    return given or ({GPU: 1} if target.device is not None else {})


def device_kind(target: TargetSpec) -> DeviceKind:
    """What a target computes on: as the spec says, else a GPU where its limits have one."""
    return DeviceKind.NVIDIA if gpu_resources(target) else DeviceKind.CPU


def on_device(runtime: RuntimeName, settings: RuntimeSettings, target: TargetSpec) -> Execution:
    """How a candidate in `runtime` is run on a target, where `settings` are asked for.

    An engine is made for one batch size where the target serves one, else for one item to the largest.
    """
    if catalog.finish(runtime) is None:
        return Execution(settings)
    if not catalog.runs_engines(runtime):
        plain = settings.precision == Precision.FLOAT32
        return Execution(settings, None if plain else DeviceForm(precision=settings.precision))
    architecture = target.device.architecture if target.device is not None else None
    sizes = target.batch_sizes
    fixed = sizes[0] if len(sizes) == 1 else None
    form = DeviceForm(precision=settings.precision, architecture=architecture, batch_size=fixed, batch_sizes=sizes)
    update = {"batch_size": fixed, "preferred_batch": None if fixed else max(sizes)}
    return Execution(settings.model_copy(update=update), form)


def misplaced(planned: PlannedCandidate, target: TargetSpec) -> str | None:
    """Why a candidate has no place on a target: its runtime needs a GPU, or its engine an architecture that is known. None where it has one."""
    runtime = planned.plan.runtime
    if catalog.runtime(runtime).device is DeviceKind.CPU:
        return None
    if device_kind(target) is DeviceKind.CPU:
        return f"{runtime} runs on NVIDIA GPUs: set the target's device.kind to nvidia, or nvidia.com/gpu in its resources.limits"
    form = planned.build.form if planned.build is not None else None
    if catalog.runs_engines(runtime) and (form is None or form.architecture is None):
        return f"{runtime} needs to know the GPU's architecture: set the target's device.architecture, such as sm89"
    return None


def loading(prepare: PrepareReport) -> frozenset[RuntimeName]:
    """Runtimes that load the portable form or what is built from it. Whether those of GPUs do is seen where there is one."""
    there = frozenset(prepare.portable_runtimes)
    if catalog.PORTABLE_RUNTIME not in there or prepare.portable.format != catalog.PORTABLE:
        return there
    return there | {entry.runtime for entry in catalog.RUNTIMES if entry.device is not DeviceKind.CPU}
