"""The timing of candidates: which process runs when, so that all are compared under the same conditions.

The baseline and a few candidates are loaded at the same time, each in its own process. Timing is done in rounds. In a round, each runs one
block of at least 0.2 s, in random order, while all others are stopped. The cost of a block is the typical time of a run per item, in
milliseconds (a trimmed mean), or in a closed loop the whole time per item. A candidate's speed-up in a round is the baseline's cost divided by
its own. After that, every process is restarted, because the placement of memory and threads changes a figure more than noise does.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

import numpy as np

from fettle.api.bounds import RUNS_NEEDED
from fettle.api.measured import Interval, Measurement
from fettle.api.memory import GROUP
from fettle.api.report import Distribution
from fettle.api.text import percent, rounded
from fettle.api.vocabulary import Objective
from fettle.errors import RuntimeFailure
from fettle.optimizer import statistics
from fettle.optimizer.measure.cgroup import Throttling
from fettle.optimizer.measure.gpu import GpuWatch
from fettle.optimizer.measure.process import WorkerDied
from fettle.optimizer.measure.protocol import Block, Runs
from fettle.optimizer.measure.schedule import Spent, TimingSchedule

log = logging.getLogger(__name__)

BASELINE = ""  # no candidate has this name
PAUSE_SECONDS = 0.25  # a period of the CPU quota is 0.1 s, so after this pause there is quota again
REPEATS = 2  # maximum number of repetitions of a block that the quota slowed
HOPELESS = 6  # slowed blocks in a row after which the quota is considered too small and nothing is repeated
DISTURBED_SHARE = 0.1  # share of runs, or of blocks, above which a note is written
EXTRA_RUNS = 10  # runs of a further batch size per process start: three starts give the 30 that p50 needs


class LoadedModel(Protocol):
    """A model that is loaded in a process of its own."""

    def block(self, request: Block) -> Runs:
        """Time a block of runs. Raises RuntimeFailure, and WorkerDied if the process is gone."""
        ...

    def peak_memory(self) -> int:
        """Peak resident bytes so far."""
        ...

    def stop(self) -> None:
        """Suspend the process until the next request."""
        ...

    def close(self) -> None:
        """End the process."""
        ...


Start = Callable[[str], LoadedModel]  # name -> a fresh process, loaded; raises RuntimeFailure


@dataclass
class TimedCandidate:
    """The times of one candidate (or of the baseline, which has no ratios)."""

    name: str
    batch: int = 1  # items per run of what is compared
    ratios: list[list[float]] = field(default_factory=list)  # by start, by round: baseline's cost over its own
    costs: dict[int, list[float]] = field(default_factory=dict)  # by batch size, by block: milliseconds per item
    milliseconds: dict[int, list[float]] = field(default_factory=dict)  # by batch size: every timed run
    # The same between CUDA events, where the runtime tells them.
    gpu_milliseconds: dict[int, list[float]] = field(default_factory=dict)
    peak_memory_bytes: dict[int, int] = field(default_factory=dict)  # by batch size
    starts: int = 0
    spent: Spent = field(default_factory=Spent)
    failure: RuntimeFailure | None = None
    notes: list[str] = field(default_factory=list)

    def runs(self, batch: int) -> int:
        """The number of timed runs with a batch size."""
        return len(self.milliseconds.get(batch, ()))

    def cost(self, batch: int) -> float:
        """The median time per item with a timed batch size, in milliseconds."""
        return median(self.costs[batch])

    @property
    def best_batch(self) -> int:
        """The timed batch size with the lowest cost per item; of several, the smallest."""
        return min(sorted(self.costs), key=self.cost)

    def compared_batch(self, objective: Objective, first: int) -> int:
        """The batch size that the speed-up refers to: the first of batchSizes, as for the baseline, or with Throughput the best."""
        return self.best_batch if objective == Objective.THROUGHPUT else first

    def speedup(self) -> Interval | None:
        """Speed-up over the baseline."""
        return statistics.speedup(self.ratios)

    def best_gain(self, batch: int) -> float:
        """The speed-up in the best round with `batch` items per run (the rounds themselves use `self.batch`)."""
        ratios = (ratio for start in self.ratios for ratio in start)
        return max(ratios, default=math.inf) * (self.cost(self.batch) / self.cost(batch))

    def stable(self) -> bool:
        """Whether the speed-up may be claimed: every process start has enough rounds, and the interval is narrow enough."""
        speedup, rounds = self.speedup(), min(map(len, self.ratios), default=0)
        return (
            speedup is not None
            and rounds >= statistics.LEAST_ROUNDS
            and statistics.spread(speedup) <= statistics.UNSTABLE
        )

    @property
    def ended_by_budget(self) -> bool:
        """Whether more time would have allowed more process starts, and these could still have settled the speed-up."""
        return self.starts < max(statistics.LOOKS) and not statistics.out_of_reach(self.ratios)

    def measurements(self) -> tuple[Measurement, ...]:
        """One row per batch size, for the status."""
        return tuple(
            Measurement(
                batch_size=batch,
                latency_milliseconds=statistics.percentiles(runs),
                items_per_second=round(1000 / self.cost(batch), 3),
                peak_memory_bytes=self.peak_memory_bytes.get(batch, 0),
                runs=len(runs),
                restarts=self.starts,
                gpu_milliseconds=statistics.percentiles(on_gpu)
                if (on_gpu := self.gpu_milliseconds.get(batch))
                else None,
            )
            for batch, runs in self.milliseconds.items()
            if runs
        )


class Clock:
    """Times groups of candidates together with the baseline. The baseline's runs in all groups are combined."""

    def __init__(
        self,
        start: Start,
        schedule: TimingSchedule,
        throttling: Throttling | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        gpu: GpuWatch | None = None,
    ) -> None:
        self._start, self._gpu = start, gpu
        self._schedule = schedule
        self.throttling = throttling or Throttling()
        self._now, self._sleep = now, sleep
        self._random = np.random.default_rng(statistics.SEED)
        self._hits = 0
        self._finished: list[TimedCandidate] = []
        self.baseline = TimedCandidate(BASELINE, self._schedule.batch_sizes[0])
        self.runs = 0  # timed, and how many of them other work disturbed
        self.disturbed = 0
        self.blocks = 0  # that count, and how many of them the CPU quota slowed: repeating did not help
        self.slowed = 0

    def group(self, names: Sequence[str], batches: Mapping[str, int] | None = None) -> list[TimedCandidate]:
        """Time these candidates until the results are precise enough, or their budget is spent.

        `batches`: the batch size of a candidate in the comparison, if it is not the first of batchSizes. A candidate that fails holds its
        failure. Raises RuntimeFailure if the baseline fails.
        """
        timed = {name: TimedCandidate(name, (batches or {}).get(name, self._first)) for name in names}
        going_on = list(timed.values()) or [self.baseline]
        for number in range(self._schedule.looks[-1]):
            going_on = [candidate for candidate in going_on if self._needs_start(candidate, number)]
            if not going_on:
                break
            self._one_start(number, {candidate.name: candidate for candidate in going_on})
        self._finished += timed.values()
        return list(timed.values())

    @property
    def throttled(self) -> bool:
        """Whether the CPU quota slowed so many blocks that the median is affected."""
        return self.slowed > DISTURBED_SHARE * self.blocks

    def remarks(self, threads: int) -> list[str]:
        """Notes about the conditions under which `threads` threads were timed; empty if the node was quiet."""
        remarks = [*self.baseline.notes, *(self._gpu.remarks() if self._gpu is not None else ())]
        if self.disturbed > DISTURBED_SHARE * self.runs:
            quieter = "measure on a quieter node for narrower intervals"
            subtracted = "the time that a run waited for the CPU was subtracted from its latency"
            remarks.append(
                f"other work on this node used the CPU during {percent(self.disturbed / self.runs, 0)} of the timed runs; "
                f"{subtracted if threads == 1 else quieter}"
            )
        if self.throttled:
            remarks.append(
                f"the CPU quota slowed {percent(self.slowed / self.blocks, 0)} of the timed runs, even when repeated: "
                "the times are too long; raise resources.limits.cpu of this target"
            )
        return remarks

    def distributions(self) -> tuple[Distribution, ...]:
        """The distributions of the run times of all timed models, the baseline's first."""
        return tuple(
            Distribution(
                candidate=timed.name,
                batch_size=timed.batch,
                runs=timed.runs(timed.batch),
                milliseconds=statistics.quantiles(timed.milliseconds[timed.batch]),
            )
            for timed in (self.baseline, *self._finished)
            if timed.runs(timed.batch)
        )

    def _needs_start(self, candidate: TimedCandidate, number: int) -> bool:
        """Whether process start `number` is needed: there is time for it, and the last look was not conclusive."""
        if candidate.failure is not None:
            return False
        known = number in self._schedule.looks and self._known(candidate)
        return not known and self._schedule.another_start(number, candidate.spent)

    def _known(self, candidate: TimedCandidate) -> bool:
        """Whether more starts cannot improve the result."""
        settled = candidate is self.baseline or candidate.stable() or statistics.out_of_reach(candidate.ratios)
        return settled and candidate.runs(candidate.batch) >= self._schedule.runs_needed

    @property
    def _first(self) -> int:
        return self._schedule.batch_sizes[0]

    def _one_start(self, number: int, timed: dict[str, TimedCandidate]) -> None:
        """Start all processes, run their rounds, and end them."""
        running: dict[str, LoadedModel] = {}
        try:
            seconds = self._launch(self.baseline, running)
            if self.baseline.failure is not None:
                raise self.baseline.failure
            for candidate in timed.values():
                own = self._launch(candidate, running) if candidate is not self.baseline else 0.0
                candidate.spent.loading += max(own, seconds)
                candidate.ratios.append([])
            if self._gpu is not None:
                warming = Block(self._first, self._schedule.block_seconds, self._schedule.block_runs)
                self._gpu.warm_up(lambda: self._discarded(running[BASELINE], warming))
            self._rounds(number, timed, running)
            if self._gpu is not None:
                self._gpu.timed()
            for name in list(running):
                self._finish(self.baseline if name == BASELINE else timed[name], running[name])
        finally:
            for process in running.values():
                process.close()

    @staticmethod
    def _discarded(process: LoadedModel, request: Block) -> None:
        process.block(request)
        process.stop()

    def _launch(self, candidate: TimedCandidate, running: dict[str, LoadedModel]) -> float:
        """Start the candidate's process; returns the seconds that this took."""
        began = self._now()
        try:
            running[candidate.name] = self._start(candidate.name)
            running[candidate.name].stop()
            candidate.starts += 1
        except RuntimeFailure as error:
            candidate.failure = error
            log.info("%s failed: %s", candidate.name or "the baseline", error.message)
        return self._now() - began

    def _rounds(self, number: int, timed: Mapping[str, TimedCandidate], running: dict[str, LoadedModel]) -> None:
        for index in range(self._schedule.most_rounds):
            unfinished = {
                name: candidate
                for name, candidate in timed.items()
                if name in running
                and self._schedule.another_round(number, index, candidate.runs(candidate.batch), candidate.spent)
            }
            if not unfinished:
                return
            self._round(number, index, unfinished, running)

    def _round(
        self, number: int, index: int, unfinished: Mapping[str, TimedCandidate], running: dict[str, LoadedModel]
    ) -> None:
        """Run one block of the baseline and of each candidate that needs it, in random order, and record the results."""
        costs: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for name in self._random.permutation(sorted({BASELINE, *unfinished})):
            candidate = self.baseline if name == BASELINE else unfinished[name]
            request = Block(candidate.batch, self._schedule.block_seconds, self._schedule.block_runs, first=index)
            try:
                costs[name], seconds[name] = self._block(candidate, running[name], request)
            except RuntimeFailure as error:
                if name == BASELINE:
                    raise
                candidate.failure = error
                running.pop(name).close()
                log.info("%s failed: %s", name, error.message)
        for name, cost in costs.items():
            if name in unfinished:
                unfinished[name].spent.blocks += max(seconds[name], seconds[BASELINE])
            if name != BASELINE:
                unfinished[name].ratios[-1].append(costs[BASELINE] / cost)
        figures = ", ".join(
            f"{name or 'baseline'} {rounded(cost)} ms" + (f" ({costs[BASELINE] / cost:.2f}x)" if name else "")
            for name, cost in sorted(costs.items(), key=lambda one: (one[0] != BASELINE, one[1]))
        )
        log.info("process start %d, round %d: %s", number + 1, index + 1, figures)

    def _block(self, candidate: TimedCandidate, process: LoadedModel, request: Block) -> tuple[float, float]:
        """Time a block and keep its runs; returns its cost in milliseconds per item, and the seconds of its runs.

        A block that the CPU quota slowed is dropped and repeated. The last repetition is kept, and counted as slowed.
        """
        seconds = 0.0
        for repeat in range(REPEATS + 1):
            self.throttling.begin()
            began = self._now()
            runs = process.block(request)
            process.stop()
            seconds += runs.seconds
            if not self.throttling.hit(self._now() - began):
                self._hits = 0
                break
            self._hits += 1
            log.info("the CPU quota hit a block of %s", candidate.name or "the baseline")
            if self._hits >= HOPELESS or repeat == REPEATS:
                self.slowed += 1
                break
            self._sleep(PAUSE_SECONDS)
        self.blocks += 1
        candidate.milliseconds.setdefault(request.batch, []).extend(runs.milliseconds)
        candidate.gpu_milliseconds.setdefault(request.batch, []).extend(runs.gpu_milliseconds)
        self.runs += len(runs.milliseconds)
        self.disturbed += runs.disturbed
        in_turn = runs.seconds * 1000 / len(runs.milliseconds)
        each = in_turn if self._schedule.closed_loop else statistics.trimmed_mean(runs.milliseconds)
        candidate.costs.setdefault(request.batch, []).append(each / request.batch)
        return each / request.batch, seconds

    def _finish(self, candidate: TimedCandidate, process: LoadedModel) -> None:
        """Time the other batch sizes, for a shorter time, and record the peak memory."""
        try:
            self._remember(candidate, process, candidate.batch)
            for batch in self._schedule.batch_sizes:
                needed = self._schedule.runs_needed if batch == self._first else RUNS_NEEDED[50]
                spent = candidate.spent.blocks >= self._schedule.seconds_per_candidate and batch in candidate.costs
                if batch == candidate.batch or candidate.runs(batch) >= needed or spent:
                    continue
                least = (
                    max(EXTRA_RUNS, math.ceil(needed / self._schedule.starts)) if batch == self._first else EXTRA_RUNS
                )
                _, seconds = self._block(candidate, process, Block(batch, self._schedule.block_seconds, least))
                candidate.spent.blocks += seconds
                self._remember(candidate, process, batch)
        except WorkerDied as error:
            candidate.failure = error
            if candidate is self.baseline:
                raise
        except RuntimeFailure as error:  # one batch size that does not run leaves the others as they are
            note = f"{candidate.name or 'the baseline'}: another batch size does not run: {error.message}"
            if note not in candidate.notes:
                candidate.notes.append(note)

    def _remember(self, candidate: TimedCandidate, process: LoadedModel, batch: int) -> None:
        peak = process.peak_memory()
        process.stop()
        candidate.peak_memory_bytes[batch] = max(candidate.peak_memory_bytes.get(batch, 0), peak)


def groups(peaks: Mapping[str, int], baseline: int, left: int) -> list[list[str]]:
    """Groups of candidates that are loaded together with the baseline: evenly sized, at most `GROUP` each, and no more than fit into memory.

    `peaks` and `baseline` are the peak memory of each process so far, and `left` is the available memory, all in bytes. A fifth stays free.
    """
    room = 0.8 * left - baseline
    size = math.ceil(len(peaks) / max(math.ceil(len(peaks) / GROUP), 1))
    filled: list[list[str]] = []
    used = 0.0
    for name, peak in peaks.items():
        if not filled or len(filled[-1]) >= size or used + peak > room:
            filled.append([])
            used = 0.0
        filled[-1].append(name)
        used += peak
    return filled
