"""The clock: which process runs when, so that what is compared ran under the same conditions.

Baseline and a few candidates are loaded at once, each in its own process. Time goes in rounds; in a round each runs one block
of at least 0.2 s, in random order, while all others are stopped. A block's cost is the milliseconds of its median run per item,
or in a closed loop those of all its time; a candidate's speed-up in a round is the baseline's cost over its own. Then every
process is started anew, for where memory and threads land moves a figure more than noise does.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from fettle.api.memory import GROUP
from fettle.api.optimizedmodel_status import Interval, Measurement
from fettle.api.report import Distribution
from fettle.errors import RuntimeFailure
from fettle.optimizer import statistics
from fettle.optimizer.measure.cgroup import Throttling
from fettle.optimizer.measure.process import WorkerDied
from fettle.optimizer.measure.protocol import Block, Runs

log = logging.getLogger(__name__)

BASELINE = ""  # no candidate has this name
QUICK_SECONDS, QUICK_ROUNDS = 1.0, 5
PAUSE_SECONDS = 0.25  # a quota's period is 0.1 s: afterwards there is quota again
REPEATS = 2  # of a block that the quota hit
HOPELESS = 6  # blocks in a row: the quota is simply too small, and repeating only wastes time
EXTRA_RUNS = 10  # of a further batch size, per start: three starts make the 30 that p50 needs


class Contestant(Protocol):
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


Start = Callable[[str], Contestant]  # name -> a fresh process, loaded; raises RuntimeFailure


@dataclass(frozen=True)
class Schedule:
    """How long the clock runs. The first of `batch_sizes` is what constraints speak of; `percentile` is the one to be claimed.

    `starts` process starts are made, at least `least_starts` of them whatever they cost, more while something is not known.
    `closed_loop`: what counts is the items that callers, as many as streams, get answered in a block's time.
    `patience`: how many times the budget a slow model may take for the runs without which not even p50 is known.
    """

    batch_sizes: tuple[int, ...] = (1,)
    percentile: int = 50
    seconds_per_candidate: float = 20.0
    least_starts: int = 3
    starts: int = 5
    most_starts: int = 12
    least_rounds: int = 2
    rounds: int = 8
    most_rounds: int = 25
    block_seconds: float = 0.2
    block_runs: int = 3
    patience: float = 3.0
    loading_counts: bool = True
    closed_loop: bool = False

    @property
    def quick(self) -> Schedule:
        """One second of each in one process start: enough to sort out, nothing to claim."""
        return replace(
            self,
            percentile=50,
            seconds_per_candidate=QUICK_SECONDS,
            least_starts=1,
            starts=1,
            most_starts=1,
            least_rounds=1,
            rounds=QUICK_ROUNDS,
            most_rounds=QUICK_ROUNDS,
            block_runs=1,
            patience=1.0,
            loading_counts=False,
        )

    @property
    def runs_needed(self) -> int:
        """Runs until the percentile may be claimed."""
        return statistics.RUNS_NEEDED.get(self.percentile, statistics.RUNS_NEEDED[99])


@dataclass
class Timed:
    """What the clock found for one candidate (or the baseline, which has no ratios)."""

    name: str
    batch: int = 1  # items per run of what is compared
    ratios: list[list[float]] = field(default_factory=list)  # by start, by round: baseline's cost over its own
    costs: dict[int, list[float]] = field(default_factory=dict)  # by batch size, by block: milliseconds per item
    milliseconds: dict[int, list[float]] = field(default_factory=dict)  # by batch size: every timed run
    peak_memory_bytes: dict[int, int] = field(default_factory=dict)  # by batch size
    starts: int = 0
    spent: float = 0.0
    failure: RuntimeFailure | None = None
    notes: list[str] = field(default_factory=list)

    def runs(self, batch: int) -> int:
        """Timed runs of a batch size."""
        return len(self.milliseconds.get(batch, ()))

    def cost(self, batch: int) -> float:
        """Milliseconds per item at a batch size that was timed."""
        return float(np.median(self.costs[batch]))

    @property
    def best_batch(self) -> int:
        """The batch size of those timed that costs least per item; the smallest where several do."""
        return min(sorted(self.costs), key=self.cost)

    def speedup(self) -> Interval | None:
        """Speed-up over the baseline."""
        return statistics.speedup(self.ratios)

    def stable(self) -> bool:
        """Whether the speed-up's interval is narrow enough to be claimed."""
        found = self.speedup()
        return found is not None and statistics.spread(found) <= statistics.UNSTABLE

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
        schedule: Schedule,
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
        self._finished: list[Timed] = []
        self.baseline = Timed(BASELINE, self._schedule.batch_sizes[0])
        self.runs = 0  # timed, and how many of them other work disturbed
        self.disturbed = 0

    @property
    def throttled(self) -> bool:
        """Whether the CPU quota hit any block, repeated ones included."""
        return self.throttling.seen

    def group(self, names: Sequence[str], batches: Mapping[str, int] | None = None) -> list[Timed]:
        """Time these candidates until all is known that shall be, or their budget is spent.

        `batches` says how many items a candidate takes in what is compared, where that is not the first batch size.
        A candidate that fails carries its failure. Raises RuntimeFailure where the baseline fails.
        """
        timed = {name: Timed(name, (batches or {}).get(name, self._first)) for name in names}
        deadline = self._now() + self._schedule.seconds_per_candidate * (len(names) + 1)
        for number in range(self._schedule.most_starts):
            late = number >= self._schedule.least_starts and self._now() > deadline
            wanted = [] if late else [one.name for one in timed.values() if self._wanted(one, number)]
            if not wanted and (names or number >= self._schedule.starts):
                break
            self._one_start(number, {name: timed[name] for name in wanted})
        self._finished += timed.values()
        return list(timed.values())

    def distributions(self) -> tuple[Distribution, ...]:
        """How the runs of all that were timed are spread, the baseline's first."""
        return tuple(
            Distribution(
                candidate=one.name,
                batch_size=one.batch,
                runs=one.runs(one.batch),
                milliseconds=statistics.quantiles(one.milliseconds[one.batch]),
            )
            for one in (self.baseline, *self._finished)
            if one.runs(one.batch)
        )

    def _wanted(self, one: Timed, number: int) -> bool:
        """Whether a further start is needed: always the first ones, then while something is not known and budget is left."""
        if one.failure is not None:
            return False
        if number < self._schedule.least_starts:
            return True
        known = number >= self._schedule.starts and one.stable() and one.runs(one.batch) >= self._schedule.runs_needed
        return not known and one.spent < self._schedule.seconds_per_candidate

    @property
    def _first(self) -> int:
        return self._schedule.batch_sizes[0]

    def _one_start(self, number: int, timed: dict[str, Timed]) -> None:
        """Start everything anew, run its rounds, end it."""
        running: dict[str, Contestant] = {}
        try:
            self._launch(BASELINE, self.baseline, running)
            if self.baseline.failure is not None:
                raise self.baseline.failure
            for name, one in timed.items():
                self._launch(name, one, running)
            for one in timed.values():
                one.ratios.append([])
            self._rounds(number, timed, running)
            for name in list(running):
                self._finish(self.baseline if name == BASELINE else timed[name], running[name])
        finally:
            for contestant in running.values():
                contestant.close()

    def _launch(self, name: str, one: Timed, running: dict[str, Contestant]) -> None:
        began = self._now()
        try:
            running[name] = self._start(name)
            running[name].stop()
            one.starts += 1
        except RuntimeFailure as error:
            one.failure = error
            log.info("%s failed: %s", name or "the baseline", error.message)
        if self._schedule.loading_counts:
            one.spent += self._now() - began

    def _rounds(self, number: int, timed: Mapping[str, Timed], running: dict[str, Contestant]) -> None:
        for index in range(self._schedule.most_rounds):
            alive = {name: one for name, one in timed.items() if name in running}
            if timed and not alive:
                return
            wanted = alive or {BASELINE: self.baseline}
            wanted = {name: one for name, one in wanted.items() if self._needs_round(number, index, one)}
            if not wanted:
                return
            self._round(number, index, wanted, running)

    def _needs_round(self, number: int, index: int, one: Timed) -> bool:
        """Whether this start needs another round for it."""
        plan = self._schedule
        share = min((number + 1) / plan.starts, 1.0)
        runs, budget = one.runs(one.batch), plan.seconds_per_candidate * share
        if index < plan.least_rounds:
            return True
        if runs < statistics.RUNS_NEEDED[50] * share and one.spent < plan.patience * budget:
            return True
        return (index < plan.rounds or runs < plan.runs_needed * share) and one.spent < budget

    def _round(self, number: int, index: int, wanted: Mapping[str, Timed], running: dict[str, Contestant]) -> None:
        """One block of the baseline and of each that is wanted, in random order, and what it says."""
        costs: dict[str, float] = {}
        for name in self._random.permutation(sorted({BASELINE, *wanted})):
            one = self.baseline if name == BASELINE else wanted[name]
            request = Block(one.batch, self._schedule.block_seconds, self._schedule.block_runs, first=index)
            try:
                costs[name] = self._block(one, running[name], request)
            except RuntimeFailure as error:
                if name == BASELINE:
                    raise
                one.failure = error
                running.pop(name).close()
                log.info("%s failed: %s", name, error.message)
        for name, cost in costs.items():
            if name != BASELINE:
                wanted[name].ratios[-1].append(costs[BASELINE] / cost)
        figures = ", ".join(
            f"{name or 'baseline'} {cost:.3g} ms" + (f" ({costs[BASELINE] / cost:.2f}x)" if name else "")
            for name, cost in sorted(costs.items())
        )
        log.info("start %d, round %d: %s", number + 1, index + 1, figures)

    def _block(self, one: Timed, contestant: Contestant, request: Block) -> float:
        """Time a block and keep its runs; its cost in milliseconds per item. A block that the CPU quota hit is dropped and repeated."""
        for repeat in range(REPEATS + 1):
            self.throttling.begin()
            began = self._now()
            runs = contestant.block(request)
            contestant.stop()
            seconds = self._now() - began
            one.spent += seconds
            if not self.throttling.hit(seconds):
                self._hits = 0
                break
            self._hits += 1
            if self._hits >= HOPELESS or repeat == REPEATS:
                break  # the figures stand, and the run is marked
            self._sleep(PAUSE_SECONDS)
        one.milliseconds.setdefault(request.batch, []).extend(runs.milliseconds)
        self.runs += len(runs.milliseconds)
        self.disturbed += runs.disturbed
        spent = (
            runs.seconds * 1000 / len(runs.milliseconds) if self._schedule.closed_loop else np.median(runs.milliseconds)
        )
        cost = float(spent) / request.batch
        one.costs.setdefault(request.batch, []).append(cost)
        return cost

    def _finish(self, one: Timed, contestant: Contestant) -> None:
        """The further batch sizes, shorter, and the memory."""
        try:
            self._remember(one, contestant, one.batch)
            for batch in self._schedule.batch_sizes:
                needed = self._schedule.runs_needed if batch == self._first else statistics.RUNS_NEEDED[50]
                spent = one.spent >= self._schedule.seconds_per_candidate and batch in one.costs
                if batch == one.batch or one.runs(batch) >= needed or spent:
                    continue
                least = (
                    max(EXTRA_RUNS, math.ceil(needed / self._schedule.starts)) if batch == self._first else EXTRA_RUNS
                )
                self._block(one, contestant, Block(batch, self._schedule.block_seconds, least))
                self._remember(one, contestant, batch)
        except WorkerDied as error:
            one.failure = error
            if one is self.baseline:
                raise
        except RuntimeFailure as error:  # one batch size that does not run leaves the others as they are
            note = f"{one.name or 'the baseline'}: a further batch size does not run: {error.message}"
            if note not in one.notes:
                one.notes.append(note)

    def _remember(self, one: Timed, contestant: Contestant, batch: int) -> None:
        peak = contestant.peak_memory()
        contestant.stop()
        one.peak_memory_bytes[batch] = max(one.peak_memory_bytes.get(batch, 0), peak)


def groups(peaks: Mapping[str, int], baseline: int, left: int, most: int = GROUP) -> list[list[str]]:
    """Which candidates are loaded at once beside the baseline: at most `most`, evenly, and no more than memory holds.

    `peaks` and `baseline` are what each process needed before, `left` what may be used; all in bytes. A fifth stays free.
    """
    room = 0.8 * left - baseline
    size = math.ceil(len(peaks) / max(math.ceil(len(peaks) / most), 1))
    found: list[list[str]] = []
    used = 0.0
    for name, peak in peaks.items():
        if not found or len(found[-1]) >= size or used + peak > room:
            found.append([])
            used = 0.0
        found[-1].append(name)
        used += peak
    return found
