"""The machine that a model runs on, as far as figures and answers depend on it: its CPU, and its GPU where a runtime uses one."""

from __future__ import annotations

from collections.abc import Iterable

from fettle.api import catalog
from fettle.api.report import CpuClass
from fettle.api.vocabulary import DeviceKind, Precision, RuntimeName
from fettle.runtimes import cpu, cuda, gpu_state

# Words of a manifest's `requires`: any GPU of NVIDIA's, or one of an architecture (`nvidia-sm89`).
NVIDIA = "nvidia"


def detect(runtimes: Iterable[RuntimeName]) -> CpuClass:
    """The class of this machine, for a task with these runtimes. Raises RuntimeFailure (NodeIncompatible) where one of them lacks its GPU."""
    here = cpu.detect()
    if not any(_on_gpu(runtime) for runtime in runtimes):
        return here
    gpu, release = cuda.connect(), gpu_state.driver()
    driver = f"{release} (CUDA {gpu.driver()})" if release is not None else f"for CUDA {gpu.driver()}"
    return here.model_copy(update={"gpu": f"{gpu.name()} {gpu.architecture()}", "driver": driver})


def requirements(runtime: RuntimeName, here: CpuClass) -> tuple[str, ...]:
    """What a model that was measured here in `runtime` needs elsewhere: machine code all that this CPU has, an engine the same GPU architecture."""
    if catalog.runtime(runtime).compiled:
        return cpu.features(here)
    if not _on_gpu(runtime):
        return ()
    return (f"{NVIDIA}-{cuda.connect().architecture()}" if catalog.runs_engines(runtime) else NVIDIA,)


def missing(requires: Iterable[str], here: CpuClass) -> list[str]:
    """Words of `requires` that this machine lacks, `here` being its CPU. Empty = it fits.

    Raises RuntimeFailure (NodeIncompatible) where a GPU is needed and there is none.
    """
    words = list(requires)
    of_gpu = [word for word in words if word.partition("-")[0] == NVIDIA]
    lacking = cpu.missing([word for word in words if word not in of_gpu], here)
    if not of_gpu:
        return lacking
    architecture = cuda.connect().architecture()
    return lacking + [word for word in of_gpu if word not in (NVIDIA, f"{NVIDIA}-{architecture}")]


def describe(requires: Iterable[str], here: CpuClass) -> str:
    """This machine for a person, as far as `requires` speaks of it."""
    if not any(word.partition("-")[0] == NVIDIA for word in requires):
        return f"CPU ({here.label})"
    gpu = cuda.connect()
    return f"CPU ({here.label}) and GPU ({gpu.name()}, {gpu.architecture()})"


def lacking(precision: Precision, runtime: RuntimeName) -> str:
    """What to say where `runtime` has no hardware for a precision here."""
    if not _on_gpu(runtime):
        return f"this node's CPU does not compute {precision} in hardware; {runtime} would emulate it, which is slower"
    gpu = cuda.connect()
    return f"this node's GPU ({gpu.name()}, {gpu.architecture()}) does not compute {precision} in hardware"


def _on_gpu(runtime: RuntimeName) -> bool:
    return catalog.runtime(runtime).device is DeviceKind.NVIDIA
