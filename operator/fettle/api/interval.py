"""Tango's score interval for the difference of two paired proportions: how much accuracy may really have been lost.

The same items are answered by original and candidate. Only the items on which exactly one of them is right carry
information: `worse` (right before, wrong now) and `better` (wrong before, right now). The interval inverts the score
test, so it is honest where others are not: with no flip at all in 20 items it still reaches .16, a bootstrap says [0, 0].

T. Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
Statistics in Medicine 17, 891-908 (1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

from fettle.api.measured import Interval

TOLERANCE = 1e-10  # in units of the drop; evaluation sets have at most some millions of items


def tango(worse: int, better: int, items: int, alpha: float = 0.05) -> Interval:
    """Two-sided interval of level 1 - `alpha` for the drop (worse - better) / items; positive = worse.

    ValueError where the counts cannot be: negative, no items, more flips than items; or `alpha` outside (0, 1).
    """
    if items < 1 or worse < 0 or better < 0 or worse + better > items:
        raise ValueError(f"expected 0 <= worse + better <= items, items >= 1; found {worse} + {better} of {items}")
    if not 0 < alpha < 1:
        raise ValueError(f"expected 0 < alpha < 1, found {alpha}")
    quantile = NormalDist().inv_cdf(1 - alpha / 2)
    value = (worse - better) / items

    def score(drop: float) -> float:
        return _score(worse, better, items, drop)

    # The score falls as the assumed drop grows, and is 0 at the point estimate.
    low = _bisect(lambda drop: score(drop) > quantile, -1.0, value)
    high = _bisect(lambda drop: score(drop) >= -quantile, value, 1.0)
    return Interval(value=value, low=low, high=high)


def items_needed(max_drop: float, worse: int = 0, better: int = 0, alpha: float = 0.05) -> int | None:
    """Smallest number of items for which `worse` and `better` flips still prove a drop of at most `max_drop`.

    None where no number does: nothing but a clear gain proves a drop of 0.
    """

    def proved(items: int) -> bool:
        return tango(worse, better, items, alpha).high <= max_drop

    fewest = max(worse + better, 1)
    if proved(fewest):
        return fewest
    if max_drop <= 0:
        return None  # at 0 the score does not depend on the number of items; below, more items only dilute the gain
    enough = fewest * 2
    while not proved(enough):
        enough *= 2
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if proved(middle) else (middle, enough)
    return enough


def _score(worse: int, better: int, items: int, drop: float) -> float:
    """Tango's statistic for the hypothesis that the drop is `drop`; under it, about standard normal."""
    a = 2.0 * items
    b = -worse - better + (2.0 * items - worse + better) * drop
    c = -better * drop * (1 - drop)
    # Most likely share of `better` flips under that hypothesis. Written so that no two near numbers are subtracted.
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    share = (root - b) / (2 * a) if b <= 0 else -2 * c / (root + b)
    variance = items * (2 * share + drop * (1 - drop))
    distance = worse - better - items * drop
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where `holds` turns from True to False between `low` and `high`."""
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2
