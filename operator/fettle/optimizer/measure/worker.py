"""The process of one candidate: it loads a model, runs items, and times blocks of runs on request.

A crash, an out-of-memory kill or a hang ends only this process. Requests come one at a time through a pipe (pickled objects of
`fettle.optimizer.measure.protocol`), and each gets one reply.

    python -m fettle.optimizer.measure.worker FD NAME
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fettle.api.executed import Executed
from fettle.api.reasons import Reason
from fettle.errors import FettleError, RuntimeFailure
from fettle.optimizer.measure import items as item
from fettle.optimizer.measure import promises
from fettle.optimizer.measure.protocol import (
    Block,
    Judge,
    Load,
    Loaded,
    MapItems,
    Mapped,
    PeakMemory,
    Profile,
    RunItems,
    Runs,
    WorkerFailure,
    WorkerRequest,
)
from fettle.runtimes import base as runtimes
from fettle.runtimes import machine
from fettle.runtimes.base import Array

PR_SET_PDEATHSIG = 1  # linux/prctl.h
DISCARD_SECONDS = 0.02  # at least this long, and at least this many runs, until caches and a waking pool are back
DISCARD_RUNS = 2
# A run during which threads waited longer than this for a processor was disturbed by other work.
DISTURBED_SHARE, DISTURBED_NANOSECONDS = 0.02, 20_000


TimedFeed = list[item.Answer]  # what is timed as one: a run of several items, or a run for each of them


class Worker:
    """The model of this process and the items it runs."""

    def __init__(self) -> None:
        self._load: Load | None = None
        self._session: runtimes.Session | None = None
        self._items: item.MappedItems | None = None
        self._feeds: dict[tuple[int, bool], list[TimedFeed]] = {}

    def handle(self, request: WorkerRequest) -> Any:
        """Carry out `request`. Raises FettleError."""
        if isinstance(request, Load):
            return self._loaded(request)
        if isinstance(request, MapItems):
            return self._mapped(request)
        if isinstance(request, Judge):
            return self._answers(request)
        if isinstance(request, RunItems):
            return self._run(request.indices, ())
        if isinstance(request, Block):
            return self._block(request)
        if isinstance(request, Profile):
            return self._executed()
        return PeakMemory(peak_memory_bytes=peak_memory())

    def _loaded(self, request: Load) -> Loaded:
        runtime = runtimes.get(request.runtime)
        precision = request.settings.precision
        if precision not in runtime.capabilities():
            lacking = machine.lacking(precision, request.runtime)
            raise RuntimeFailure(lacking, reason=Reason.RECIPE_NOT_APPLICABLE)
        self._items = item.opened(request.items, request.signature)
        self._session = runtime.load(request.entry, request.settings, request.signature)
        self._load = request
        runtimes.require_settings(self._session, request.settings, request.runtime)
        if isinstance(self._session, runtimes.TimedOnGpu):
            self._session.time_on_gpu()
        if request.prove:
            promises.require(request.runtime, self._session, request.signature, self._first(request, self._items))
        return Loaded()

    def _mapped(self, request: MapItems) -> Mapped:
        _, load, _ = self._open()
        self._items = item.opened(request.items, load.signature)
        self._feeds.clear()
        return Mapped()

    @staticmethod
    def _first(load: Load, items: item.MappedItems) -> item.Answer:
        return items.feed(item.padded([0], load.settings.batch_size or 1))

    def _run(self, indices: Sequence[int], scaled: Sequence[int]) -> dict[str, Array]:
        """The model's outputs of one run over these items; the items at the places `scaled` are enlarged."""
        session, load, items = self._open()
        feed = items.feed(indices)
        return session.infer(item.enlarged(load.signature, feed, scaled) if scaled else feed)

    def _answers(self, request: Judge) -> list[item.Answer]:
        _, load, _ = self._open()
        indices = list(request.indices)
        size = max(request.size, len(indices)) if load.settings.batch_size is not None else len(indices)
        outputs = self._run(item.padded(indices, size), request.scaled)
        return item.answers(load.signature, outputs, len(indices))

    def _block(self, request: Block) -> Runs:
        """Time single runs until both `seconds` and `runs` are reached, after some runs that are discarded.

        `first` is the index of the first feed, so that every candidate of a round runs the same items in the same order. With one thread, the
        time for which it was ready while other work had the CPU is subtracted. With several threads, it is unknown which of them the others
        waited for, so nothing is subtracted.
        """
        session, load, _ = self._open()
        feeds = self._feeds_of(request.batch, request.alone)
        callers = load.settings.streams
        if callers > 1:
            discarded = replace(request, seconds=DISCARD_SECONDS, runs=DISCARD_RUNS * callers)
            closed_loop(session, feeds, discarded, callers)
            return closed_loop(session, feeds, request, callers)
        index = request.first + self._discard(session, feeds, request)
        own_time = load.settings.threads == 1
        clock = time.perf_counter_ns
        on_gpu = OnGpu(session) if isinstance(session, runtimes.TimedOnGpu) else None
        infer = session.infer if on_gpu is None else on_gpu.infer
        own: list[int] = []
        total = disturbed = 0  # a sum over all runs after each would in the end take longer than the model
        with Waiting() as waiting:
            begin = clock()
            while True:
                feed = feeds[index % len(feeds)]
                started = clock()
                for run in feed:
                    infer(run)
                ended = clock()
                if on_gpu is not None:
                    on_gpu.end_of_run()
                wall, waited = ended - started, waiting.since()
                disturbed += waited > DISTURBED_SHARE * wall + DISTURBED_NANOSECONDS
                own.append(wall - min(waited, wall) if own_time else wall)
                total += own[-1]
                index += 1
                if len(own) >= request.runs and (
                    total >= request.seconds * 1e9 or ended - begin > 3 * request.seconds * 1e9
                ):
                    break
        taken = tuple(on_gpu.milliseconds) if on_gpu is not None else ()
        return Runs(tuple(value / 1e6 for value in own), total / 1e9, disturbed, taken)

    def _discard(self, session: runtimes.Session, feeds: list[TimedFeed], request: Block) -> int:
        """Make the first runs of a block, which are discarded; returns their number."""
        clock = time.perf_counter_ns
        begin, count = clock(), 0
        while count < DISCARD_RUNS or clock() - begin < DISCARD_SECONDS * 1e9:
            for run in feeds[(request.first + count) % len(feeds)]:
                session.infer(run)
            count += 1
            if clock() - begin > request.seconds * 1e9:
                break  # a slow model: a second run thrown away would cost more than it brings
        return count

    def _feeds_of(self, batch: int, alone: bool) -> list[TimedFeed]:
        """Up to 8 feeds of `batch` items, created in advance, because creating them is not part of the model's time."""
        if (batch, alone) not in self._feeds:
            _, load, items = self._open()
            count = len(items)
            chosen = [
                [(start * batch + offset) % count for offset in range(batch)]
                for start in range(min(8, max(1, count // batch)))
            ]
            size = load.settings.batch_size or 1
            self._feeds[batch, alone] = [
                [items.feed(item.padded([index], size)) for index in indices] if alone else [items.feed(indices)]
                for indices in chosen
            ]
        return self._feeds[batch, alone]

    def _executed(self) -> Executed:
        _, load, items = self._open()
        feed = self._first(load, items)
        return runtimes.get(load.runtime).executed(load.entry, load.settings, feed, load.signature)

    def _open(self) -> tuple[runtimes.Session, Load, item.MappedItems]:
        if self._session is None or self._load is None or self._items is None:
            raise RuntimeFailure("nothing is loaded")
        return self._session, self._load, self._items


class OnGpu:
    """The times of runs between CUDA events: of what is timed as one, their sum."""

    def __init__(self, session: runtimes.TimedOnGpu) -> None:
        self._session = session
        self._infer = session.infer
        self._spent = 0.0
        self.milliseconds: list[float] = []

    def infer(self, feed: item.Answer) -> None:
        """A run."""
        self._infer(feed)
        self._spent += self._session.gpu_milliseconds()

    def end_of_run(self) -> None:
        """What was timed as one is over."""
        self.milliseconds.append(self._spent)
        self._spent = 0.0


def closed_loop(session: runtimes.Session, feeds: list[TimedFeed], request: Block, callers: int) -> Runs:
    """Time runs of `callers` concurrent callers, each of which starts the next run as soon as its last one ends."""
    begin = time.perf_counter()

    def call(caller: int) -> list[float]:
        own: list[float] = []
        while not own or len(own) * callers < request.runs or time.perf_counter() - begin < request.seconds:
            started = time.perf_counter()
            for run in feeds[(request.first + caller + len(own)) % len(feeds)]:
                session.infer(run)
            own.append(1000 * (time.perf_counter() - started))
        return own

    with ThreadPoolExecutor(callers) as pool:
        milliseconds = [each for own in pool.map(call, range(callers)) for each in own]
    return Runs(tuple(milliseconds), time.perf_counter() - begin)


class Waiting:
    """The time for which this process's threads waited for a CPU that other work had, from the kernel's schedstat."""

    def __init__(self) -> None:
        self._files: list[int] = []
        self._last = 0

    def __enter__(self) -> Waiting:
        for path in Path("/proc/self/task").glob("*/schedstat"):
            with suppress(OSError):  # a thread that ends now waits for nothing
                self._files.append(os.open(path, os.O_RDONLY))
        self._last = self._total()
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file)

    def since(self) -> int:
        """The waiting time since the last call, in nanoseconds; 0 if the kernel does not provide it."""
        last, self._last = self._last, self._total()
        return self._last - last

    def _total(self) -> int:
        total = 0
        for file in self._files:
            with suppress(OSError):
                total += int(os.pread(file, 64, 0).split()[1])
        return total


def peak_memory() -> int:
    """Peak resident memory of this process in bytes (VmHWM); 0 if the kernel does not provide it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def serve(connection: Connection) -> None:
    """Answer requests until the pipe is closed."""
    worker = Worker()
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            reply = worker.handle(request)
        except FettleError as error:
            reply = WorkerFailure(reason=error.reason, message=error.message)
        except MemoryError:
            reply = WorkerFailure(
                reason=Reason.OUT_OF_MEMORY, message="the process could not get the memory it asked for"
            )
        except Exception as error:  # noqa: BLE001  whatever a model makes a library do is this candidate's failure alone
            reply = WorkerFailure(reason=Reason.MODEL_LOAD_FAILED, message=f"{type(error).__name__}: {error}")
        connection.send(reply)


def main() -> None:
    """Serve the pipe whose file descriptor is the first argument. The second argument only makes the process recognizable in a list."""
    # A person's Ctrl-C goes to the whole group: the parent decides what happens to its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without its parent it has nothing to say; and a stopped process, which only a kill reaches, would stay for ever.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):  # where memory runs out, this process goes before the one that tells the tale
        Path("/proc/self/oom_score_adj").write_text("1000")
    with Connection(int(sys.argv[1])) as connection:
        serve(connection)
    sys.stdout.flush()
    os._exit(0)  # libraries that crash while they unload have nothing more to say


if __name__ == "__main__":
    main()
