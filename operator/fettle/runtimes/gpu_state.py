"""What NVIDIA's management library (NVML) says of a GPU: its clock, its power, and what uses it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fettle.runtimes import cuda

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuState:
    """The GPU at one moment: the clock of its multiprocessors in MHz and its maximum, watts and their limit, processes that use it and the memory
    in use, in bytes. In a container the number of processes may be 0 although others have some."""

    clock: int
    most_clock: int
    watts: float
    most_watts: float
    processes: int
    memory: int


def connect() -> Callable[[], GpuState] | None:
    """What looks at the GPU that this process uses; None where NVML is not installed, or does not answer for this GPU, such as for a part of one
    (MIG). Raises RuntimeFailure without a GPU."""
    nvml = _nvml()
    return looking(nvml, cuda.connect().uuid()) if nvml is not None else None


def driver(nvml: Any | None = None) -> str | None:
    """The release of the driver, such as `580.95.05`; None where NVML is not installed, or does not answer. `nvml`: the module that NVIDIA gives."""
    nvml = nvml or _nvml()
    if nvml is None:
        return None
    try:
        nvml.nvmlInit()
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        log.info("NVML does not tell the driver's release: %s", error)
        return None


def _nvml() -> Any | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def looking(nvml: Any, uuid: str) -> Callable[[], GpuState] | None:
    """`connect`, with the module that NVIDIA gives, and a GPU. NVML also numbers GPUs that are hidden from CUDA: only a UUID is the same in both."""

    def asked() -> GpuState:
        return GpuState(
            clock=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            most_clock=nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            watts=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            most_watts=nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            processes=len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
            memory=nvml.nvmlDeviceGetMemoryInfo(handle).used,
        )

    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        last = asked()
    except nvml.NVMLError as error:
        log.info("NVML does not answer for this GPU: %s", error)
        return None

    def look() -> GpuState:
        nonlocal last
        try:
            last = asked()
        except nvml.NVMLError as error:  # it answered before: models go on being timed
            log.warning("NVML no longer answers: %s", error)
        return last

    return look
