"""Processes whose times are known, and a time that only they take: what the clock is tested on, at any speed of this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from fettle.optimizer.measure.cgroup import Limits, Throttling
from fettle.optimizer.measure.clock import Clock, TimedCandidate
from fettle.optimizer.measure.protocol import Block, Runs
from fettle.optimizer.measure.schedule import TimingSchedule

Speed = Callable[[int, int], float]  # (process start, batch size) -> milliseconds of a run


@dataclass
class World:
    """Time, and what runs in it. Exactly one process may run at a time."""

    speeds: dict[str, Speed]
    noise: float = 0.0  # between runs, as a deviation of their logarithms
    between_rounds: float = 0.0
    between_starts: float = 0.0
    seed: int = 0
    load_seconds: float = 0.1
    on_gpu: float = 0.0  # share of a run that the GPU takes, where a runtime tells it
    time: float = 0.0
    starts: dict[str, int] = field(default_factory=dict)
    awake: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    most_open: int = 0

    def start(self, name: str) -> Simulated:
        """A fresh process."""
        self.time += self.load_seconds
        number = self.starts[name] = self.starts.get(name, 0) + 1
        self.open.add(name)
        self.awake.add(name)
        self.most_open = max(self.most_open, len(self.open))
        return Simulated(self, name, number - 1, np.random.default_rng(crc32(f"{self.seed} {name} {number}".encode())))

    def clock(self, throttling: Throttling | None = None, **schedule: object) -> Clock:
        """A clock in this world."""
        plan = TimingSchedule(**schedule)  # type: ignore[arg-type]
        return Clock(self.start, plan, throttling or Throttling(Limits(None, None)), self.now, self.sleep)

    def now(self) -> float:
        """Seconds."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.time += seconds


@dataclass
class Simulated:
    """A process that runs as fast as the world says."""

    world: World
    name: str
    number: int
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.luck = float(np.exp(self.rng.normal(0, self.world.between_starts)))

    def block(self, request: Block) -> Runs:
        """Runs of a known length."""
        assert self.name in self.world.open, "a closed process is asked to run"
        self.world.awake.add(self.name)
        assert self.world.awake == {self.name}, "two processes run at once"
        self.world.order.append(self.name)
        each = self.luck * self.world.speeds[self.name](self.number, request.batch)
        each *= float(np.exp(self.rng.normal(0, self.world.between_rounds)))
        count = max(request.runs, int(request.seconds * 1000 / each))
        runs = each * np.exp(self.rng.normal(0, self.world.noise, size=count))
        seconds = float(runs.sum()) / 1000
        self.world.time += seconds
        on_gpu = tuple((runs * self.world.on_gpu).tolist()) if self.world.on_gpu else ()
        return Runs(tuple(runs.tolist()), seconds, gpu_milliseconds=on_gpu)

    def peak_memory(self) -> int:
        """As much for everybody."""
        return 1_000_000

    def stop(self) -> None:
        """Asleep."""
        self.world.awake.discard(self.name)

    def close(self) -> None:
        """Gone."""
        self.world.open.discard(self.name)
        self.world.awake.discard(self.name)


def steady(each: float) -> Speed:
    """The same time whatever happens."""
    return lambda _, batch: each * batch


def one(found: list[TimedCandidate]) -> TimedCandidate:
    """The only one."""
    (timed,) = found
    return timed
