"""What NVIDIA's management library (NVML) says of a GPU: its clock, its power, and what uses it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """What looks at the first GPU; None where NVML is not installed, or does not answer for this GPU, such as for a part of one (MIG)."""
    try:
        import pynvml
    except ImportError:
        return None
    return looking(pynvml)


def looking(nvml: Any) -> Callable[[], GpuState] | None:
    """`connect`, with the module that NVIDIA gives."""

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
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
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
