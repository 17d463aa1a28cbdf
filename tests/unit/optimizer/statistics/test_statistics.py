"""What may be claimed from what was measured."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fettle.api.interval import tango
from fettle.optimizer import statistics


@pytest.mark.parametrize(
    ("runs", "claimed"),
    [
        (29, set()),
        (30, {"p50"}),
        (35, {"p50"}),
        (36, {"p50", "p90"}),
        (71, {"p50", "p90"}),
        (72, {"p50", "p90", "p95"}),
        (366, {"p50", "p90", "p95"}),
        (367, {"p50", "p90", "p95", "p99"}),
    ],
)
def test_a_percentile_is_claimed_only_with_enough_runs(runs: int, claimed: set[str]) -> None:
    found = statistics.percentiles(np.linspace(1, 2, runs))
    assert {name for name, value in found.model_dump(by_alias=False).items() if value is not None} == claimed


def test_percentiles_are_those_of_the_runs() -> None:
    found = statistics.percentiles(np.arange(1001, dtype=float))
    assert (found.p50, found.p90, found.p95, found.p99) == (500, 900, 950, 990)


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(60):
        found = statistics.mean_interval(rng.exponential(1.0, size=60), alpha=0.1)
        assert found is not None
        hits += found.low <= 1.0 <= found.high
    assert hits >= 46  # 54 expected at 90 %; 46 would be 3.4 standard deviations below


def test_an_interval_of_the_mean_is_the_same_every_time_and_wider_for_a_smaller_alpha() -> None:
    values = np.random.default_rng(1).normal(0.2, 1.0, size=200)
    first, again, wider = (statistics.mean_interval(values, alpha) for alpha in (0.05, 0.05, 0.01))
    assert first is not None
    assert wider is not None
    assert first == again
    assert wider.low < first.low < first.value < first.high < wider.high


@pytest.mark.parametrize("items", [1, 29])
def test_fewer_than_thirty_items_give_no_interval(items: int) -> None:
    assert statistics.mean_interval(np.linspace(0, 1, items), 0.05) is None


def test_equal_differences_have_no_spread() -> None:
    found = statistics.mean_interval([0.0] * 40, 0.05)
    assert found is not None
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_one_outlier_among_equal_items_still_gives_an_interval() -> None:
    found = statistics.mean_interval([0.0] * 39 + [4.0], 0.05)
    assert found is not None
    assert found.low <= 0.1 <= found.high
    assert found.high > 0.1


def test_more_items_than_groups_are_put_together_and_the_interval_stays_right() -> None:
    values = np.random.default_rng(3).normal(5.0, 1.0, size=20_000)
    found = statistics.mean_interval(values, 0.05)
    assert found is not None
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(20_000), rel=0.15)


@pytest.mark.parametrize(("disagreements", "items"), [(0, 20), (3, 100), (100, 100)])
def test_agreement_is_the_other_side_of_the_score_interval(disagreements: int, items: int) -> None:
    found, drop = statistics.agreement_interval(disagreements, items, 0.05), tango(disagreements, 0, items, 0.05)
    assert found.value == pytest.approx(1 - drop.value)
    assert found.low == pytest.approx(1 - drop.high)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_no_disagreement_in_twenty_items_does_not_prove_full_agreement() -> None:
    assert statistics.agreement_interval(0, 20, 0.05).low == pytest.approx(0.84, abs=0.01)


def test_a_speedup_is_the_ratio_that_the_rounds_show() -> None:
    found = statistics.speedup([[2.0, 2.01, 1.99], [2.0, 2.02, 1.98], [2.0, 2.0, 2.0]])
    assert found is not None
    assert found.value == pytest.approx(2.0, rel=0.01)
    assert found.low <= found.value <= found.high
    assert statistics.spread(found) < 0.02


def test_starts_that_differ_widen_the_interval_though_rounds_within_them_agree() -> None:
    calm = statistics.speedup([[1.2] * 8, [1.2] * 8, [1.2] * 8])
    moved = statistics.speedup([[1.06] * 8, [1.2] * 8, [1.37] * 8])
    assert calm is not None
    assert moved is not None
    assert statistics.spread(calm) == pytest.approx(0, abs=1e-9)
    assert statistics.spread(moved) > statistics.UNSTABLE
    assert moved.low < 1.07
    assert moved.high > 1.36


def test_rounds_in_two_modes_give_a_narrower_interval_than_their_medians_would() -> None:
    # As two processors that disturb each other do: a block costs .48 or 1.1 ms, by chance.
    rng = np.random.default_rng(7)
    starts = [list(np.where(rng.random(8) < 0.5, 18.0, 8.0) * np.exp(rng.normal(0, 0.02, 8))) for _ in range(200)]
    centres, medians = ([float(f(np.log(start))) for start in starts] for f in (statistics.centre, np.median))
    assert np.std(centres) < 0.8 * np.std(medians)


def test_runs_in_two_modes_give_a_steadier_block_than_their_median_would() -> None:
    rng = np.random.default_rng(7)
    blocks = [np.where(rng.random(100) < rng.uniform(0.4, 0.6), 0.5, 1.5).tolist() for _ in range(200)]
    means, medians = (np.std(np.log([f(block) for block in blocks])) for f in (statistics.trimmed_mean, np.median))
    assert means < 0.5 * medians


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([2.0], 2.0),
        ([2.0, 4.0], 3.0),
        ([2.0, 3.0, 90.0], 3.0),
        ([0.0, *[2.0] * 8, 90.0], 2.0),
        ([0.0, 0.0, *[2.0] * 16, 90.0, 9.0], 2.0),
    ],
)
def test_an_interrupted_run_does_not_move_its_block(runs: list[float], expected: float) -> None:
    assert statistics.trimmed_mean(runs) == pytest.approx(expected)


def test_a_disturbed_round_does_not_move_the_point() -> None:
    found = statistics.speedup([[2.0, 2.0, 0.3, 2.0, 2.0], [2.0, 2.0, 2.0, 9.0, 2.0], [2.0] * 5])
    assert found is not None
    assert found.value == pytest.approx(2.0)


@pytest.mark.parametrize("starts", [[], [[2.0, 2.1]], [[2.0], []]])
def test_one_process_start_is_no_measurement(starts: list[list[float]]) -> None:
    assert statistics.speedup(starts) is None


def test_the_same_rounds_give_the_same_interval() -> None:
    rounds = np.random.default_rng(5).lognormal(0.7, 0.05, size=(3, 6)).tolist()
    assert statistics.speedup(rounds) == statistics.speedup(rounds)


@pytest.mark.parametrize(("count", "items"), [(0, 9), (1, 9), (5, 9), (9, 9), (40, 300)])
def test_the_least_share_is_the_exact_intervals_lower_end(count: int, items: int) -> None:
    for alpha in (0.05, 0.001):
        exact = stats.binomtest(count, items).proportion_ci(1 - alpha, method="exact")
        assert statistics.least_share(count, items, alpha) == pytest.approx(exact.low, abs=1e-9)
