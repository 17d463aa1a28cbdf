"""The GPU that models are timed on: warm before its times count, and told in the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fettle.api import catalog
from fettle.api.vocabulary import DeviceKind, RuntimeName
from fettle.runtimes import gpu_state
from fettle.runtimes.gpu_state import GpuState

STEADY_LOOKS = 3  # with the same clock: it is stable then
STEADY_SHARE = 0.02  # of the clock, by which such looks may differ
MOST_BLOCKS = 40
IDLE_BYTES = 1 << 30  # of memory in use while nothing runs: what the driver keeps for itself is less


class GpuWatch:
    """Looks at the GPU. To be made before anything of this Job runs on it."""

    def __init__(self, look: Callable[[], GpuState]) -> None:
        self._look = look
        self._before = look()
        self._timed: list[GpuState] = []  # looks right after timed work
        self._unsteady = False

    def warm_up(self, run: Callable[[], None]) -> None:
        """Run blocks whose times do not count until the clock of the GPU is stable: an idle GPU lowers it."""
        clocks: list[int] = []
        for _ in range(MOST_BLOCKS):
            run()
            clocks = [*clocks, self._look().clock][-STEADY_LOOKS:]
            if len(clocks) == STEADY_LOOKS and max(clocks) - min(clocks) <= STEADY_SHARE * max(clocks):
                return
        self._unsteady = True

    def timed(self) -> None:
        """Remember the state of the GPU, right after timed work."""
        self._timed.append(self._look())

    def remarks(self) -> list[str]:
        """Notes about the GPU while models were timed."""
        remarks, before = [], self._before
        if before.processes or before.memory > IDLE_BYTES:
            remarks.append(
                f"something else uses this GPU: before this Job used it, it had {before.processes} processes and "
                f"{before.memory / (1 << 30):.1f} GiB of memory in use; times may be too long"
            )
        if self._unsteady:
            remarks.append("the clock of the GPU did not become stable: times may vary; set its clocks, or cool it")
        if self._timed:
            clocks, watts = [state.clock for state in self._timed], [state.watts for state in self._timed]
            remarks.append(
                f"the GPU ran at {_range(clocks)} of {before.most_clock} MHz, with {_range(watts)} of {before.most_watts:.0f} W"
            )
        return remarks


def watch(runtimes: Iterable[RuntimeName]) -> GpuWatch | None:
    """What looks at this machine's GPU, if one of the runtimes uses it and it can be looked at."""
    if not any(catalog.runtime(name).device is DeviceKind.NVIDIA for name in runtimes):
        return None
    look = gpu_state.connect()
    return GpuWatch(look) if look is not None else None


def _range(values: list[int] | list[float]) -> str:
    least, most = f"{min(values):.0f}", f"{max(values):.0f}"
    return least if least == most else f"{least} to {most}"
