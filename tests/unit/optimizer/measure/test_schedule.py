"""How long the clock runs: what a claim needs, what the budget buys, and what ends a run that cannot be settled."""

from __future__ import annotations

import pytest
from tests.unit.optimizer.measure.simulated import World, one, steady

from fettle.optimizer.measure.clock import BASELINE
from fettle.optimizer.measure.schedule import Spent, TimingSchedule

PLAN = TimingSchedule()
BUDGET, PATIENCE = PLAN.seconds_per_candidate, PLAN.patience * PLAN.seconds_per_candidate


@pytest.mark.parametrize(
    ("sentence", "made", "spent", "expected"),
    [
        ("three starts are made whatever they cost", 2, Spent(blocks=1e6, loading=1e6), True),
        ("five are what a claim needs: patience pays for them", 4, Spent(blocks=PATIENCE - 1), True),
        ("patience ends", 3, Spent(blocks=PATIENCE), False),
        ("more of them come out of the budget", 5, Spent(blocks=BUDGET - 1), True),
        ("the budget ends", 5, Spent(blocks=BUDGET), False),
        ("loading is not what the budget is for", 5, Spent(blocks=1, loading=BUDGET), True),
        ("but a model that loads for minutes does not make the run endless", 3, Spent(blocks=1, loading=PATIENCE), False),
        ("after the last look there is nothing more to come", 12, Spent(), False),
    ],
)  # fmt: skip
def test_another_process_start(sentence: str, made: int, spent: Spent, expected: bool) -> None:
    assert PLAN.another_start(made, spent) == expected, sentence


@pytest.mark.parametrize(
    ("sentence", "start", "made", "runs", "spent", "expected"),
    [
        ("every start has a round", 4, 0, 100, 1e6, True),
        ("five are what a claim needs: patience pays for them", 0, 4, 100, PATIENCE / 5 - 1, True),
        ("a start takes its own share of patience, no more", 0, 1, 100, PATIENCE / 5, False),
        ("three more come out of the start's share of the budget", 0, 7, 100, BUDGET / 5 - 1, True),
        ("that share ends", 0, 5, 100, BUDGET / 5, False),
        ("eight are enough", 0, 8, 100, 0, False),
        ("unless too few runs were timed for the percentile", 4, 8, 29, BUDGET - 1, True),
        ("and even then not for ever", 4, 25, 29, 0, False),
    ],
)
def test_another_round(sentence: str, start: int, made: int, runs: int, spent: float, expected: bool) -> None:
    assert PLAN.another_round(start, made, runs, Spent(blocks=spent)) == expected, sentence


def test_loading_does_not_take_the_time_of_measuring() -> None:
    quick, slow = (World({BASELINE: steady(10), "a": steady(5)}, load_seconds=seconds) for seconds in (0.1, 10.0))
    assert one(quick.clock().group(["a"])).ratios == one(slow.clock().group(["a"])).ratios


def test_a_model_that_loads_for_a_minute_is_started_no_more_often_than_must_be() -> None:
    world = World({BASELINE: steady(10), "a": steady(5)}, load_seconds=60)
    timed = one(world.clock().group(["a"]))
    assert timed.starts == 3
    assert timed.stable()
    assert world.time < 3 * 2 * 60 + 20


def test_a_baseline_that_is_slow_takes_time_of_those_it_is_compared_with() -> None:
    world = World({BASELINE: steady(2_000), "a": steady(1)})
    timed = one(world.clock().group(["a"]))
    assert not timed.stable(), "three rounds of eight seconds are the share of a start"
    assert world.time < 1.1 * PATIENCE


@pytest.mark.parametrize(("milliseconds", "claimed"), [(100, True), (800, True), (2_000, False)])
def test_each_start_of_what_is_claimed_has_at_least_five_rounds(milliseconds: float, claimed: bool) -> None:
    world = World({BASELINE: steady(milliseconds), "a": steady(milliseconds)})
    timed = one(world.clock().group(["a"]))
    assert timed.stable() == claimed
    assert (min(map(len, timed.ratios)) >= 5) == claimed
