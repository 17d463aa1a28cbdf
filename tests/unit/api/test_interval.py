"""Tango's interval against published values, and against the same test inverted slowly by other means."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

from fettle.api.interval import items_needed, tango


@pytest.mark.parametrize(
    ("source", "worse", "better", "items", "low", "high"),
    [
        # Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables (2017), chapter 8.
        ("Bentur 2009", 1, 7, 21, -0.5172, -0.0260),
        ("Cavo 2012", 6, 16, 161, -0.1240, -0.0054),
    ],
)
def test_published_intervals_come_out(
    source: str, worse: int, better: int, items: int, low: float, high: float
) -> None:
    found = tango(worse, better, items)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high), source
    assert found.value == pytest.approx((worse - better) / items)


def _likelihood_score(worse: int, better: int, items: int, drop: float) -> float:
    """The same statistic, its nuisance parameter found by maximising the likelihood instead of by the closed form."""
    lowest, highest = max(0.0, -drop), (1 - drop) / 2

    def loss(share: float) -> float:
        cells = ((worse, share + drop), (better, share), (items - worse - better, 1 - 2 * share - drop))
        return -sum(count * math.log(max(chance, 1e-300)) for count, chance in cells if count)

    share = minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-13}).x
    return (worse - better - items * drop) / math.sqrt(items * (2 * share + drop * (1 - drop)))


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize(("worse", "better", "items"), [(3, 1, 60), (0, 4, 50), (12, 9, 400), (20, 2, 80), (1, 1, 9)])
def test_the_interval_inverts_the_likelihood_score_test(worse: int, better: int, items: int, alpha: float) -> None:
    quantile = norm.ppf(1 - alpha / 2)
    point = (worse - better) / items
    low = brentq(lambda drop: _likelihood_score(worse, better, items, drop) - quantile, -0.9999, point)
    high = brentq(lambda drop: _likelihood_score(worse, better, items, drop) + quantile, point, 0.9999)
    found = tango(worse, better, items, alpha)
    assert found.low == pytest.approx(low, abs=1e-5)
    assert found.high == pytest.approx(high, abs=1e-5)


COUNTS = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 5000))


@given(COUNTS, st.sampled_from([0.05, 0.01, 0.0125, 0.2]))
def test_worse_and_better_are_mirror_images(counts: tuple[int, int, int], alpha: float) -> None:
    worse, better, same = counts
    items = max(worse + better + same, 1)
    one, other = tango(worse, better, items, alpha), tango(better, worse, items, alpha)
    assert one.low == pytest.approx(-other.high, abs=1e-8)
    assert one.high == pytest.approx(-other.low, abs=1e-8)


@given(COUNTS)
def test_the_point_lies_within_and_a_smaller_alpha_is_wider(counts: tuple[int, int, int]) -> None:
    worse, better, same = counts
    items = max(worse + better + same, 1)
    usual, strict = tango(worse, better, items, 0.05), tango(worse, better, items, 0.0125)
    assert -1 <= strict.low <= usual.low <= usual.value <= usual.high <= strict.high <= 1


def test_no_flip_in_twenty_items_still_leaves_a_drop_of_a_sixth() -> None:
    assert tango(0, 0, 20).high == pytest.approx(0.161, abs=1e-3)


@pytest.mark.parametrize(
    ("worse", "better", "items"),
    [(0, 0, 381), (2, 2, 545), (5, 5, 726)],  # pipeline: "about 390, 550, 730"
)
def test_a_drop_of_one_percent_needs_hundreds_of_items(worse: int, better: int, items: int) -> None:
    assert items_needed(0.01, worse, better) == items


@given(st.floats(0.001, 0.3), st.integers(0, 20), st.integers(0, 20))
def test_items_needed_is_the_smallest_that_proves_it(max_drop: float, worse: int, better: int) -> None:
    items = items_needed(max_drop, worse, better)
    assert items is not None
    assert tango(worse, better, items).high <= max_drop
    if items > max(worse + better, 1):
        assert tango(worse, better, items - 1).high > max_drop


def test_no_number_of_items_proves_a_drop_of_nothing_unless_it_clearly_got_better() -> None:
    assert items_needed(0, 0, 0) is None
    assert items_needed(0, 1, 3) is None
    assert items_needed(0, 0, 10) == 10


@pytest.mark.parametrize(
    ("worse", "better", "items", "alpha"), [(1, 1, 1, 0.05), (-1, 0, 5, 0.05), (0, 0, 0, 0.05), (0, 0, 5, 1.0)]
)
def test_counts_that_cannot_be_are_refused(worse: int, better: int, items: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="expected 0"):
        tango(worse, better, items, alpha)
