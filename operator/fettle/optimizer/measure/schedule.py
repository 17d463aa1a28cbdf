"""How long to time: which process starts and rounds to make, and when to stop. Pure decisions from the time that was spent.

A claim wants `LOOKS[0]` process starts of `least_rounds` rounds each. `patience` times the budget may be spent on those; everything
else, more rounds and more starts while something is open, only the budget. Loading is no measuring: it has a bound of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fettle.api.bounds import RUNS_NEEDED
from fettle.optimizer import statistics

QUICK_SECONDS, QUICK_PATIENCE = 1.0, 3.0
QUICK_LEAST_ROUNDS, QUICK_ROUNDS = 3, 5


@dataclass
class Spent:
    """Seconds that one candidate has taken. What it is compared with ran as well: the longer of the two counts.

    `blocks` are the seconds of timed runs: where other work has the processor meanwhile, the clock runs longer, not less.
    """

    blocks: float = 0.0
    loading: float = 0.0


@dataclass(frozen=True)
class TimingSchedule:
    """How long the clock runs. The first of `batch_sizes` is what constraints speak of; `percentile` is the one to be claimed.

    `looks`: after so many process starts it is asked whether all is known; `least_starts` are made whatever they cost.
    `least_rounds`: what each start needs for a speed-up to be claimed; `rounds` are made where the budget allows.
    `seconds_per_candidate`: the budget, for blocks. `patience`: how many times the budget the rounds that a claim needs may take,
    and loading may take, before nothing more is started.
    `closed_loop`: what counts is the items that callers, as many as streams, get answered in a block's time.
    """

    batch_sizes: tuple[int, ...] = (1,)
    percentile: int = 50
    seconds_per_candidate: float = 20.0
    patience: float = 5.0
    least_starts: int = 3
    looks: tuple[int, ...] = tuple(statistics.LOOKS)
    least_rounds: int = statistics.LEAST_ROUNDS
    rounds: int = 8
    most_rounds: int = 25
    block_seconds: float = 0.2
    block_runs: int = 3
    closed_loop: bool = False

    @property
    def quick(self) -> TimingSchedule:
        """One second per candidate in one process start: enough for screening, not for a claim."""
        return replace(
            self,
            percentile=50,
            seconds_per_candidate=QUICK_SECONDS,
            patience=QUICK_PATIENCE,
            least_starts=1,
            looks=(1,),
            least_rounds=QUICK_LEAST_ROUNDS,
            rounds=QUICK_ROUNDS,
            most_rounds=QUICK_ROUNDS,
            block_runs=1,
        )

    @property
    def starts(self) -> int:
        """The number of process starts before the first evaluation."""
        return self.looks[0]

    @property
    def runs_needed(self) -> int:
        """Runs until the percentile may be claimed."""
        return RUNS_NEEDED.get(self.percentile, RUNS_NEEDED[99])

    def another_start(self, made: int, spent: Spent) -> bool:
        """Whether there is time for another start after `made` starts."""
        if made < self.least_starts:
            return True
        if made >= self.looks[-1] or spent.loading >= self.patience * self.seconds_per_candidate:
            return False
        patience = self.patience if made < self.starts else 1.0
        return spent.blocks < patience * self.seconds_per_candidate

    def another_round(self, start: int, made: int, runs: int, spent: Spent) -> bool:
        """Whether process start number `start` (from 0) needs another round after `made` rounds; `runs` were timed in all starts.

        The first starts share the budget evenly, so that none uses up what a later one needs.
        """
        if made >= self.most_rounds:
            return False
        share = min((start + 1) / self.starts, 1.0)
        if made < self.least_rounds:
            return made == 0 or spent.blocks < self.patience * self.seconds_per_candidate * share
        open_still = made < self.rounds or runs < self.runs_needed * share
        return open_still and spent.blocks < self.seconds_per_candidate * share
