"""How often a claimed speed-up holds the truth: whole runs of the clock on processes whose speed-up is known."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.optimizer.measure.simulated import World, one, steady

from fettle.optimizer.measure.clock import BASELINE

TRUTH, RUNS = 2.0, 100


def claims(between_starts: float, between_rounds: float) -> tuple[float, float]:
    """Share of runs that claim a speed-up, and share of those claims that hold the truth."""
    claimed = held = 0
    for seed in range(RUNS):
        world = World(
            {BASELINE: steady(100), "a": steady(100 / TRUTH)},
            noise=0.05,
            between_rounds=between_rounds,
            between_starts=between_starts,
            seed=seed,
        )
        timed = one(world.clock(block_seconds=0.1, seconds_per_candidate=60).group(["a"]))
        found = timed.speedup()
        if timed.stable() and found is not None:
            claimed += 1
            held += found.low <= TRUTH <= found.high
    return claimed / RUNS, held / max(claimed, 1)


@pytest.mark.parametrize(
    ("sentence", "between_starts", "between_rounds", "least_claimed"),
    [
        ("a quiet machine: five starts are enough", 0.02, 0.02, 1.0),
        ("starts that differ: most runs go on, and stop when the interval is narrow", 0.06, 0.02, 0.9),
        ("rounds that differ, as on a machine that others use as well", 0.02, 0.2, 0.8),
        ("so much noise that a third is never settled", 0.09, 0.05, 0.5),
    ],
)
def test_of_the_speedups_that_are_claimed_nine_of_ten_hold_the_truth(
    sentence: str, between_starts: float, between_rounds: float, least_claimed: float
) -> None:
    claimed, held = claims(between_starts, between_rounds)
    assert claimed >= least_claimed, sentence
    assert held >= 0.9, sentence
    assert claimed * (1 - held) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / RUNS), (
        "of all runs, those that claim what is not so"
    )


def test_where_nothing_can_be_known_next_to_nothing_is_claimed() -> None:
    claimed, _ = claims(between_starts=0.25, between_rounds=0.1)
    assert claimed < 0.05
