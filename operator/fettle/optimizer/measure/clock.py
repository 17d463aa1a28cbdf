"""The clock: which process runs when, so that what is compared ran under the same conditions.

Baseline and a few candidates are loaded at once, each in its own process. Time goes in rounds; in a round each runs one block
of at least 0.2 s, in random order, while all others are stopped. A block's cost is the milliseconds of its usual run per item
(a trimmed mean), or in a closed loop those of all its time; a candidate's speed-up in a round is the baseline's cost over its
own. Then every process is started anew, for where memory and threads land moves a figure more than noise does.
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
from fettle.api.memory import GROUP
from fettle.api.optimizedmodel_status import Interval, Measurement
from fettle.api.report import Distribution
from fettle.api.text import percent, rounded
from fettle.api.vocabulary import Objective
from fettle.errors import RuntimeFailure
from fettle.optimizer import statistics
from fettle.optimizer.measure.cgroup import Throttling
from fettle.optimizer.measure.process import WorkerDied
from fettle.optimizer.measure.protocol import Block, Runs
from fettle.optimizer.measure.schedule import Spent, TimingSchedule

log = logging.getLogger(__name__)

BASELINE = ""  # no candidate has this name
PAUSE_SECONDS = 0.25  # a quota's period is 0.1 s: afterwards there is quota again
REPEATS = 2  # of a block that the quota hit
HOPELESS = 6  # blocks in a row: the quota is simply too small, and repeating only wastes time
DISTURBED_SHARE = 0.1  # of all runs, or of all blocks: worth a word to a person
EXTRA_RUNS = 10  # of a further batch size, per start: three starts make the 30 that p50 needs


class LoadedModel(Protocol):
    """A loaded model in a process of its own."""

    def block(self, request: Block) -> Runs:
        """Time runs. Raises RuntimeFailure; WorkerDied where the process is gone."""
        ...

    def peak_memory(self) -> int:
        """Peak resident bytes so far."""
        ...

    def stop(self) -> None:
        """Stop it where it stands, until it is asked again."""
        ...

    def close(self) -> None:
        """End it."""
        ...


Start = Callable[[str], LoadedModel]  # name -> a fresh process, loaded; raises RuntimeFailure


@dataclass
class TimedCandidate:
    """What the clock found for one candidate (or the baseline, which has no ratios)."""

    name: str
    batch: int = 1  # items per run of what is compared
    ratios: list[list[float]] = field(default_factory=list)  # by start, by round: baseline's cost over its own
    costs: dict[int, list[float]] = field(default_factory=dict)  # by batch size, by block: milliseconds per item
    milliseconds: dict[int, list[float]] = field(default_factory=dict)  # by batch size: every timed run
    peak_memory_bytes: dict[int, int] = field(default_factory=dict)  # by batch size
    starts: int = 0
    spent: Spent = field(default_factory=Spent)
    failure: RuntimeFailure | None = None
    notes: list[str] = field(default_factory=list)

    def runs(self, batch: int) -> int:
        """Timed runs of a batch size."""
        return len(self.milliseconds.get(batch, ()))

    def cost(self, batch: int) -> float:
        """Milliseconds per item at a batch size that was timed."""
        return median(self.costs[batch])

    @property
    def best_batch(self) -> int:
        """The batch size of those timed that costs least per item; the smallest where several do."""
        return min(sorted(self.costs), key=self.cost)

    def compared_batch(self, objective: Objective, first: int) -> int:
        """The batch size that a speed-up speaks of: the first one asked for, as in the baseline; for Throughput the best."""
        return self.best_batch if objective == Objective.THROUGHPUT else first

    def speedup(self) -> Interval | None:
        """Speed-up over the baseline."""
        return statistics.speedup(self.ratios)

    def best_gain(self, batch: int) -> float:
        """How many times as fast as the baseline it was in its best round, with `batch` items per run; the rounds take `self.batch`."""
        ratios = (ratio for start in self.ratios for ratio in start)
        return max(ratios, default=math.inf) * (self.cost(self.batch) / self.cost(batch))

    def stable(self) -> bool:
        """Whether the speed-up may be claimed: every start has the rounds for it, and the interval is narrow enough."""
        speedup, rounds = self.speedup(), min(map(len, self.ratios), default=0)
        return (
            speedup is not None
            and rounds >= statistics.LEAST_ROUNDS
            and statistics.spread(speedup) <= statistics.UNSTABLE
        )

    def measurements(self) -> tuple[Measurement, ...]:
        """A row per batch size."""
        return tuple(
            Measurement(
                batch_size=batch,
                latency_milliseconds=statistics.percentiles(runs),
                items_per_second=round(1000 / self.cost(batch), 3),
                peak_memory_bytes=self.peak_memory_bytes.get(batch, 0),
                runs=len(runs),
                restarts=self.starts,
            )
            for batch, runs in self.milliseconds.items()
            if runs
        )


class Clock:
    """Times groups of candidates beside the baseline. The baseline's runs of all groups are kept together."""

    def __init__(
        self,
        start: Start,
        schedule: TimingSchedule,
        throttling: Throttling | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._start = start
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
        """Time these candidates until all is known that shall be, or their budget is spent.

        `batches` says how many items a candidate takes in what is compared, where that is not the first batch size.
        A candidate that fails carries its failure. Raises RuntimeFailure where the baseline fails.
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
        """Whether the CPU quota slowed more of the blocks that count than a median forgives."""
        return self.slowed > DISTURBED_SHARE * self.blocks

    def remarks(self, threads: int) -> list[str]:
        """What a person should know of the conditions under which `threads` were timed: nothing where it was quiet."""
        remarks = list(self.baseline.notes)
        if self.disturbed > DISTURBED_SHARE * self.runs:
            quieter = "measure on a quieter node for narrower intervals"
            counted = "that time was subtracted" if threads == 1 else quieter
            remarks.append(
                f"other work on this node used the CPU during {percent(self.disturbed / self.runs, 0)} of the runs; {counted}"
            )
        if self.throttled:
            remarks.append(
                f"the CPU quota slowed {percent(self.slowed / self.blocks, 0)} of the timed runs, even when repeated: "
                "the times are too long; raise resources.limits.cpu of this target"
            )
        return remarks

    def distributions(self) -> tuple[Distribution, ...]:
        """How the runs of all that were timed are spread, the baseline's first."""
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
        """Whether process start `number` is needed: there is time for it, and at the last look something was not known."""
        if candidate.failure is not None:
            return False
        known = number in self._schedule.looks and self._known(candidate)
        return not known and self._schedule.another_start(number, candidate.spent)

    def _known(self, candidate: TimedCandidate) -> bool:
        """Whether all is known that can be."""
        settled = candidate is self.baseline or candidate.stable() or statistics.out_of_reach(candidate.ratios)
        return settled and candidate.runs(candidate.batch) >= self._schedule.runs_needed

    @property
    def _first(self) -> int:
        return self._schedule.batch_sizes[0]

    def _one_start(self, number: int, timed: dict[str, TimedCandidate]) -> None:
        """Start everything anew, run its rounds, end it."""
        running: dict[str, LoadedModel] = {}
        try:
            seconds = self._launch(self.baseline, running)
            if self.baseline.failure is not None:
                raise self.baseline.failure
            for candidate in timed.values():
                own = self._launch(candidate, running) if candidate is not self.baseline else 0.0
                candidate.spent.loading += max(own, seconds)
                candidate.ratios.append([])
            self._rounds(number, timed, running)
            for name in list(running):
                self._finish(self.baseline if name == BASELINE else timed[name], running[name])
        finally:
            for process in running.values():
                process.close()

    def _launch(self, candidate: TimedCandidate, running: dict[str, LoadedModel]) -> float:
        """Start its process; the seconds that it took."""
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
        """One block of the baseline and of each that is wanted, in random order, and what it says."""
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
            for name, cost in sorted(costs.items())
        )
        log.info("start %d, round %d: %s", number + 1, index + 1, figures)

    def _block(self, candidate: TimedCandidate, process: LoadedModel, request: Block) -> tuple[float, float]:
        """Time a block and keep its runs; its cost in milliseconds per item, and the seconds of its runs.

        A block that the CPU quota hit is dropped and repeated; the last repeat counts, and is counted as slowed.
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
        self.runs += len(runs.milliseconds)
        self.disturbed += runs.disturbed
        in_turn = runs.seconds * 1000 / len(runs.milliseconds)
        each = in_turn if self._schedule.closed_loop else statistics.trimmed_mean(runs.milliseconds)
        candidate.costs.setdefault(request.batch, []).append(each / request.batch)
        return each / request.batch, seconds

    def _finish(self, candidate: TimedCandidate, process: LoadedModel) -> None:
        """The further batch sizes, shorter, and the memory."""
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
    """Which candidates are loaded at once beside the baseline: at most `GROUP`, evenly, and no more than memory holds.

    `peaks` and `baseline` are what each process needed before, `left` what may be used; all in bytes. A fifth stays free.
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
