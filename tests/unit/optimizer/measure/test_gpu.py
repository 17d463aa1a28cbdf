"""A GPU while models are timed on it: warm before times count, and told with what else used it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.optimizer.measure.simulated import World
from tests.unit.runtimes.fake_cuda import FakeCuda

from fettle.api.vocabulary import RuntimeName
from fettle.optimizer.measure import gpu
from fettle.optimizer.measure.clock import BASELINE, Clock
from fettle.optimizer.measure.gpu import GpuWatch
from fettle.optimizer.measure.schedule import TimingSchedule
from fettle.runtimes import cuda, gpu_state
from fettle.runtimes.gpu_state import GpuState

GIB = 1 << 30
UUID = FakeCuda().uuid()


def state(clock: int = 1980, watts: float = 60.0, processes: int = 0, memory: int = GIB // 2) -> GpuState:
    return GpuState(clock, 2040, watts, 72.0, processes, memory)


def looks(*clocks: int) -> Iterator[GpuState]:
    """A look before anything runs, then one for each clock, the last of which stays."""
    yield state(210)
    for clock in clocks:
        yield state(clock)
    while True:
        yield state(clocks[-1])


def watching(*clocks: int) -> GpuWatch:
    seen = looks(*clocks)
    return GpuWatch(lambda: next(seen))


@pytest.mark.parametrize(
    ("clocks", "blocks"),
    [((1980,), 3), ((600, 1200, 1980), 5), ((1980, 1965, 1980), 3), ((900, 1980, 1980, 1500, 1980), 7)],
    ids=["at once", "rising", "nearly the same", "lowered once more"],
)
def test_blocks_are_discarded_until_the_clock_is_stable(clocks: tuple[int, ...], blocks: int) -> None:
    ran: list[None] = []
    watch = watching(*clocks)
    watch.warm_up(lambda: ran.append(None))
    assert len(ran) == blocks
    assert watch.remarks() == []


def test_a_clock_that_never_becomes_stable_is_told() -> None:
    watch = watching(*[1000, 1980] * 40)
    ran: list[None] = []
    watch.warm_up(lambda: ran.append(None))
    assert len(ran) == gpu.MOST_BLOCKS
    assert watch.remarks() == ["the clock of the GPU did not become stable: times may vary; set its clocks, or cool it"]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (state(), None),
        (state(processes=2, memory=3 * GIB), "2 processes and 3.0 GiB of memory in use"),
        (state(memory=5 * GIB), "0 processes and 5.0 GiB of memory in use"),
    ],
    ids=["nobody", "two processes", "a process of another container"],
)
def test_what_else_uses_the_gpu_is_told(before: GpuState, told: str | None) -> None:
    remarks = GpuWatch(lambda: before).remarks()
    assert len(remarks) == (told is not None)
    assert told is None or told in remarks[0]


def test_a_clock_of_times_warms_the_gpu_with_each_start_and_tells_how_it_ran() -> None:
    world = World({BASELINE: lambda start, batch: 10.0, "fast": lambda start, batch: 5.0})
    watch = watching(600, 1980, 1980, 1980, 1950)
    schedule = TimingSchedule(least_starts=1, looks=(1,), least_rounds=1, rounds=2, most_rounds=2, block_seconds=0.02)
    clock = Clock(world.start, schedule, now=world.now, sleep=world.sleep, gpu=watch)
    (fast,) = clock.group(["fast"])
    assert world.order[:4] == [BASELINE] * 4, "until the clock is stable"
    assert sorted(world.order[4:6]) == [BASELINE, "fast"], "then each in turn"
    assert clock.runs == fast.runs(1) + clock.baseline.runs(1), "what warmed the GPU does not count"
    assert clock.remarks(1) == ["the GPU ran at 1950 of 2040 MHz, with 60 of 72 W"]


class Unsupported(Exception):
    """What NVIDIA's module raises."""


def nvml(**fails: Exception) -> Any:
    """As much of NVIDIA's module as is called."""

    def answer(name: str, value: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if name in fails:
                raise fails[name]
            return value

        return call

    answers = {
        "nvmlInit": None,
        "nvmlSystemGetDriverVersion": "580.95.05",
        "nvmlDeviceGetHandleByUUID": object(),
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetMaxClockInfo": 2040,
        "nvmlDeviceGetPowerUsage": 60000,
        "nvmlDeviceGetEnforcedPowerLimit": 72000,
        "nvmlDeviceGetComputeRunningProcesses": [object()],
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=GIB),
    }
    calls = {name: answer(name, value) for name, value in answers.items()}
    return SimpleNamespace(NVMLError=Unsupported, NVML_CLOCK_SM=1, **calls)


def test_a_look_gives_megahertz_watts_and_bytes() -> None:
    look = gpu_state.looking(nvml(), UUID)
    assert look is not None
    assert look() == state(processes=1, memory=GIB)


def test_the_gpu_that_is_looked_at_is_the_one_that_the_process_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML also counts GPUs that CUDA_VISIBLE_DEVICES keeps from the process."""
    module, asked = nvml(), []

    def by_uuid(uuid: str) -> object:
        asked.append(uuid)
        return object()

    module.nvmlDeviceGetHandleByUUID = by_uuid
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(cuda, "connect", FakeCuda)
    assert gpu_state.connect() is not None
    assert asked == [FakeCuda().uuid()]


def test_the_release_of_the_driver_is_told_where_nvml_answers() -> None:
    assert gpu_state.driver(nvml()) == "580.95.05"
    assert gpu_state.driver(nvml(nvmlInit=Unsupported("Driver Not Loaded"))) is None


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetPowerUsage"])
def test_a_gpu_that_cannot_be_looked_at_is_not_watched(call: str) -> None:
    assert gpu_state.looking(nvml(**{call: Unsupported("Not Supported")}), UUID) is None


def test_a_gpu_that_no_longer_answers_is_as_it_was_seen_last() -> None:
    module = nvml()
    look = gpu_state.looking(module, UUID)
    assert look is not None

    def lost(*arguments: Any) -> Any:
        raise Unsupported("GPU is lost")

    module.nvmlDeviceGetPowerUsage = lost
    assert look() == state(processes=1, memory=GIB)


@pytest.mark.parametrize(
    ("runtime", "watched"),
    [(RuntimeName.OPENVINO, False), (RuntimeName.ONNXRUNTIME_CUDA, True), (RuntimeName.TENSORRT_RTX, True)],
)
def test_a_gpu_is_watched_only_where_a_runtime_uses_it(
    runtime: RuntimeName, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_state, "connect", lambda: state)
    assert (gpu.watch([RuntimeName.ONNXRUNTIME, runtime]) is not None) == watched
    monkeypatch.setattr(gpu_state, "connect", lambda: None)
    assert gpu.watch([runtime]) is None
