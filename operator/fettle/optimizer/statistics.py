"""What may be claimed from measured figures: intervals of accuracy and of speed-up, and percentiles.

Everything is pure and seeded: the same figures give the same interval. Proportions (Accuracy, Agreement) have Tango's score interval
(`fettle.api.interval`). This module is for metrics that are not proportions, and for times.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from fettle.api.bounds import RUNS_NEEDED
from fettle.api.interval import tango
from fettle.api.measured import Interval, Percentiles
from fettle.runtimes.base import Array

SEED = 20_240_229
MINIMUM_GROUPS = 30  # fewer, and a bootstrap's ends are not to be believed
# More items are put together into this many groups: the interval is the same, the work is bounded.
MAXIMUM_GROUPS = 1_000
RESAMPLES = 2_000
BATCH_NUMBERS = 4_000_000  # numbers that a bootstrap may hold at once

# After so many process starts the clock asks whether a speed-up's interval is narrow enough, and its error is then this. To stop when
# an interval is narrow favours those that are too narrow; the share of runs that claim one without the truth stays below 5 %.
LOOKS: dict[int, float] = {5: 0.02, 8: 0.03, 12: 0.04}
LEAST_ROUNDS = 5  # in each process start; fewer, and one disturbed round decides what a start is taken for
# With starts as different as those so far the last look would find so many times `UNSTABLE`: seven more starts would be for nothing.
# Where they really differ by 12 %, 1 % of runs give up by mistake.
OUT_OF_REACH = 1.5
TRIMMED = 0.1  # of a block's runs, at either end
UNSTABLE = 0.10  # a speed-up whose interval reaches further than this from its point is not claimed

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


def groups_of(items: int) -> Indices:
    """The group number of each of `items`. A bootstrap draws groups.

    Up to `MAXIMUM_GROUPS`, each item is its own group. Above that, items are distributed in turn, so that groups have the same size.
    """
    return np.arange(items, dtype=np.int64) % MAXIMUM_GROUPS


def by_group(values: Array) -> Array:
    """Sums over the items of each group: `[items, ...]` -> `[groups, ...]`."""
    group = groups_of(len(values))
    totals = np.zeros((int(group.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(totals, group, values)
    return totals


def group_mean(values: Array) -> tuple[int, Callable[[Indices], Array]]:
    """For the mean of one number per item: the number of groups, and the function of the drawn groups."""
    totals, sizes = by_group(values), by_group(np.ones(len(values)))
    return len(totals), lambda drawn: np.asarray(totals[drawn].sum(axis=-1) / sizes[drawn].sum(axis=-1))


def times(drawn: Indices, groups: int) -> Array:
    """How often each group was drawn: `[..., draws]` -> `[..., groups]`."""
    flat = drawn.reshape(-1, drawn.shape[-1])
    codes = flat + groups * np.arange(len(flat))[:, None]
    counts = np.bincount(codes.reshape(-1), minlength=len(flat) * groups)
    return counts.reshape(*drawn.shape[:-1], groups).astype(np.float64)


def draws_at_once(numbers: int) -> int:
    """How many draws fit into memory together if each has `numbers` numbers."""
    return max(1, BATCH_NUMBERS // max(numbers, 1))


def ratio(above: Array, below: Array, empty: float) -> Array:
    """The quotient, element by element; `empty` where `below` is 0."""
    return np.asarray(np.where(below > 0, above / np.where(below > 0, below, 1), empty))


def bca(groups: int, statistic: Callable[[Indices], Numbers], alpha: float, batch: int = 200) -> Interval | None:
    """Bias-corrected, accelerated bootstrap over groups: the interval of level 1 - `alpha` around `statistic` of all groups.

    `statistic` gets the numbers of the drawn groups along the last axis, `batch` draws at once, and reduces that axis.
    None with fewer than `MINIMUM_GROUPS` groups, because nothing may be claimed then.
    B. Efron, "Better bootstrap confidence intervals", JASA 82, 171-185 (1987).
    """
    if groups < MINIMUM_GROUPS:
        return None
    from scipy import stats  # most of a second, and most tasks have no such metric

    every = np.arange(groups, dtype=np.int64)
    value = float(statistic(every))
    for method in ("BCa", "percentile"):  # the acceleration is undefined where leaving out any group changes nothing
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            interval = stats.bootstrap(
                (every,),
                lambda drawn, axis: statistic(np.moveaxis(drawn, axis, -1)),
                n_resamples=RESAMPLES,
                batch=batch,
                vectorized=True,
                confidence_level=1 - alpha,
                method=method,
                rng=np.random.default_rng(SEED),
            ).confidence_interval
        low, high = float(interval.low), float(interval.high)
        if math.isfinite(low) and math.isfinite(high):
            return Interval(value=value, low=min(low, value), high=max(high, value))
    return None


def mean_interval(differences: Sequence[float] | Numbers, alpha: float) -> Interval | None:
    """Interval of the mean of paired differences, one per item. None with fewer than `MINIMUM_GROUPS` items."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < MINIMUM_GROUPS:
        return None
    if np.ptp(values) == 0:
        # Every item changed by the same amount, as when outputs are equal bit by bit: there is no spread to draw from.
        return Interval(value=float(values[0]), low=float(values[0]), high=float(values[0]))
    return bca(*group_mean(values), alpha)


def agreement_interval(disagreements: int, items: int, alpha: float) -> Interval:
    """The interval of the share of items on which two answers agree (Tango's interval for 1 - agreement)."""
    drop = tango(disagreements, 0, items, alpha)
    return Interval(value=1 - drop.value, low=max(1 - drop.high, 0.0), high=min(1 - drop.low, 1.0))


def least_share(count: int, items: int, alpha: float) -> float:
    """The lower end of the interval of a share that was observed as `count` of `items`: Clopper and Pearson's, which is exact for few items too."""
    return float(special.betaincinv(count, items - count + 1, alpha / 2)) if count else 0.0


def clipped(interval: Interval) -> Interval:
    """The interval of a share, limited to 0 to 1."""
    low, value, high = (min(max(number, 0.0), 1.0) for number in (interval.low, interval.value, interval.high))
    return Interval(value=value, low=low, high=high)


def percentiles(milliseconds: Sequence[float] | Numbers) -> Percentiles:
    """The percentiles for which there are enough runs."""
    runs = np.asarray(milliseconds, dtype=np.float64)
    claimed = {
        f"p{percent}": round(float(np.quantile(runs, percent / 100)), 6)
        for percent, needed in RUNS_NEEDED.items()
        if len(runs) >= needed
    }
    return Percentiles(**claimed)


def quantiles(milliseconds: Sequence[float] | Numbers) -> tuple[float, ...]:
    """The smallest, every percentile between, the largest: 101 numbers of four significant digits."""
    levels = np.quantile(np.asarray(milliseconds, dtype=np.float64), np.linspace(0, 1, 101))
    return tuple(float(f"{value:.4g}") for value in levels)


def speedup(starts: Sequence[Sequence[float]]) -> Interval | None:
    """The interval of a speed-up. `starts[s][r]` is the ratio of the baseline's block cost to the candidate's in round r of process start s.

    The point estimate is the geometric mean of the `centre` of each start. The rounds of a start share its conditions, so only starts are
    independent: the interval is Student's t over their centres, on a logarithmic scale, at the level of this look (`look_error`).
    None without at least two starts with a round.
    """
    centres = _centres(starts)
    if len(centres) < 2:
        return None
    point, half = float(np.mean(centres)), float(np.std(centres, ddof=1)) * _reach(len(centres))
    return Interval(value=math.exp(point), low=math.exp(point - half), high=math.exp(point + half))


def out_of_reach(starts: Sequence[Sequence[float]]) -> bool:
    """Whether even the interval at the last look would be too wide, because the starts differ too much (`OUT_OF_REACH`)."""
    centres = _centres(starts)
    if len(centres) < 2:
        return False
    return float(np.std(centres, ddof=1)) * _reach(max(LOOKS)) > OUT_OF_REACH * math.log1p(UNSTABLE)


def _centres(starts: Sequence[Sequence[float]]) -> list[float]:
    return [float(centre(np.log(np.asarray(start, dtype=np.float64)))) for start in starts if len(start)]


def _reach(starts: int) -> float:
    """Half the width of the interval with `starts` starts, in standard deviations between them."""
    return float(special.stdtrit(starts - 1, 1 - look_error(starts) / 2)) / math.sqrt(starts)


def look_error(starts: int) -> float:
    """The error probability of an interval after `starts` process starts: that of the look at this number.

    Fewer starts than at the first look mean that there was no time for more. That did not depend on the interval, so the error is 5 %.
    """
    if starts < min(LOOKS):
        return 0.05
    return next((error for look, error in LOOKS.items() if starts <= look), max(LOOKS.values()))


def trimmed_mean(milliseconds: Sequence[float]) -> float:
    """The typical time of a run in a block: the mean without a tenth at either end (of three to ten runs, without one).

    Other work on the same core slows some runs of a block. The median would jump from one mode to the other, but the mean moves with their
    shares. The runs that are cut off are interrupts, which say nothing about the model.
    """
    runs = sorted(milliseconds)
    cut = min(math.ceil(TRIMMED * len(runs)), (len(runs) - 1) // 2)
    return math.fsum(runs[cut : len(runs) - cut]) / (len(runs) - 2 * cut)


def centre(values: Numbers) -> Numbers:
    """The Hodges-Lehmann estimate along the last axis: the median of the means of all pairs, including each value with itself.

    Disturbed rounds (up to 29 % of them) change it as little as the median, and it jumps less if rounds fall into two modes.
    J. L. Hodges, E. L. Lehmann, "Estimates of location based on rank tests", Ann. Math. Statist. 34, 598-611 (1963).
    """
    first, other = np.triu_indices(values.shape[-1])
    return np.asarray(np.median((values[..., first] + values[..., other]) / 2, axis=-1))


def spread(interval: Interval) -> float:
    """The distance from the point estimate to the farther end of the interval, relative to the point estimate: .1 is +-10 %."""
    return max(interval.high - interval.value, interval.value - interval.low) / interval.value
