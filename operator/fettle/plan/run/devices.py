"""Targets with GPUs: what the device determines about a candidate."""

from __future__ import annotations

from fettle.api import architectures, catalog
from fettle.api.optimizedmodel import TargetSpec
from fettle.api.pods import NVIDIA
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.task import DeviceForm
from fettle.api.vocabulary import Basis, DeviceKind, Precision, RuntimeName, StepKind
from fettle.plan.run.planned import Execution, PlannedCandidate

GPU_BASELINE = RuntimeName.ONNXRUNTIME_CUDA
GPU = f"{NVIDIA}gpu"


def gpu_resources(target: TargetSpec) -> dict[str, int | str]:
    """The device plugin resources of a target's pods: those in the spec, or one GPU; empty for a CPU target."""
    return (target.resources.gpus or {GPU: 1}) if target.has_gpu else {}


def device_kind(target: TargetSpec) -> DeviceKind:
    """The kind of device of a target: as in the spec, or a GPU if its resources have one."""
    return DeviceKind.NVIDIA if target.has_gpu else DeviceKind.CPU


def on_device(runtime: RuntimeName, settings: RuntimeSettings, target: TargetSpec) -> Execution:
    """How a candidate in `runtime` with `settings` is run on a target.

    An engine is built for the target's batch size if there is one, and otherwise for all up to the largest, tuned for each. Machine code for a CPU is
    compiled for a number of threads.
    """
    if catalog.runtime(runtime).compiled:
        return Execution(settings, DeviceForm(threads=settings.threads))
    if catalog.finish(runtime) is None:
        return Execution(settings)
    if not catalog.runs_engines(runtime):
        plain = settings.precision in (Precision.FLOAT32, Precision.TF32)  # of one file
        return Execution(settings, None if plain else DeviceForm(precision=settings.precision))
    architecture = target.device.architecture if target.device is not None else None
    sizes = tuple(sorted(set(target.batch_sizes)))
    fixed = sizes[0] if len(sizes) == 1 else None
    form = DeviceForm(precision=settings.precision, architecture=architecture, batch_size=fixed, batch_sizes=sizes)
    update = {"batch_size": fixed, "preferred_batch": None if fixed else max(sizes)}
    return Execution(settings.model_copy(update=update), form)


def misplaced(planned: PlannedCandidate, target: TargetSpec) -> str | None:
    """Why a candidate cannot run on a target: its runtime needs a GPU, or another one, or the GPU's architecture is unknown. None if it can."""
    runtime = planned.plan.runtime
    if catalog.runtime(runtime).device is DeviceKind.CPU:
        return None
    if device_kind(target) is DeviceKind.CPU:
        return f"{runtime} runs on NVIDIA GPUs: set the target's device.kind to nvidia, or nvidia.com/gpu in its resources.limits"
    form = planned.build.form if planned.build is not None else None
    architecture = target.device.architecture if target.device is not None else None
    if architecture is not None and (first := _since(planned, architecture)) is not None:
        return f"{planned.plan.recipe} needs a GPU from {first} on, and the target's is {architecture}"
    known = catalog.runtime(runtime).architectures
    if architecture is not None and known and architecture not in known:
        return f"{runtime} builds engines for {', '.join(known)}, and the target's GPU is {architecture}: use {RuntimeName.TENSORRT} for it"
    if catalog.runs_engines(runtime) and (form is None or form.architecture is None):
        return f"{runtime} needs to know the GPU's architecture: set the target's device.architecture, such as sm89"
    return None


def _since(planned: PlannedCandidate, architecture: str) -> str | None:
    """The first architecture that has the number formats of a candidate; None if `architecture` has them."""
    wanted: list[Precision | StepKind] = [planned.plan.settings.precision]
    wanted += [kind for kind in map(catalog.kind, planned.steps) if kind is not None]
    return next((architectures.since(each) for each in wanted if not architectures.offers(architecture, each)), None)


def loading(prepare: PrepareReport) -> frozenset[RuntimeName]:
    """The runtimes that load the portable form, what is built from it, or the source as it came. GPU runtimes are included, because only a node with
    a GPU can tell."""
    there = frozenset(prepare.portable_runtimes)
    convertible = catalog.PORTABLE_RUNTIME in there and prepare.portable.format == catalog.PORTABLE
    on_gpus = {entry.runtime: entry for entry in catalog.RUNTIMES if entry.device is not DeviceKind.CPU}
    as_it_came = {name for name, entry in on_gpus.items() if prepare.original.format in entry.loads}
    built = {name for name in on_gpus if catalog.takes_portable(name)} if convertible else set()
    return there | as_it_came | built


def original_on_gpu(prepare: PrepareReport) -> RuntimeName | None:
    """The runtime that runs the untouched source on a GPU; None if its format runs on CPUs only."""
    if prepare.basis != Basis.SOURCE_RUNTIME:
        return None
    if prepare.original.format == catalog.PORTABLE:
        return GPU_BASELINE
    gpus = (entry for entry in catalog.RUNTIMES if entry.device is DeviceKind.NVIDIA)
    return next((entry.runtime for entry in gpus if prepare.original.format in entry.loads), None)
