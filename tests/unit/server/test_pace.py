"""Which runs the event loop does itself."""

from __future__ import annotations

import pytest

from fettle.server.pace import (
    LONG_SECONDS,
    PATIENCE,
    PROOF,
    SHORT_SECONDS,
    SHORT_SECONDS_ON_ONE_CORE,
    VERY_LONG_SECONDS,
    Pace,
    short_seconds,
)

SIZE = 1000
SHORT, LONG, STALL = SHORT_SECONDS / 2, LONG_SECONDS * 2, VERY_LONG_SECONDS * 2


def in_the_loop() -> Pace:
    pace = Pace()
    pace.measured(SIZE, SHORT)
    return pace


@pytest.mark.parametrize(("seconds", "stays"), [(SHORT, True), (SHORT_SECONDS, False), (LONG, False)])
def test_what_warm_up_measured_decides_at_first(seconds: float, stays: bool) -> None:
    pace = Pace()
    assert not pace.is_short(SIZE), "nothing is known of it"
    pace.measured(SIZE, seconds)
    assert pace.is_short(SIZE) is stays


def test_with_one_core_longer_runs_stay_in_the_loop_for_a_thread_would_gain_nothing() -> None:
    assert short_seconds(1) == SHORT_SECONDS_ON_ONE_CORE > short_seconds(2) == short_seconds(64) == SHORT_SECONDS


def test_what_is_short_for_one_item_is_not_therefore_short_for_many() -> None:
    pace = in_the_loop()
    assert pace.is_short(SIZE + 1)
    assert not pace.is_short(8 * SIZE)


@pytest.mark.parametrize(
    ("what", "runs", "stays"),
    [
        ("a machine that puts a run aside now and then", ([SHORT] * 3 + [LONG]) * 100, True),
        ("as many long runs as short ones", [LONG, SHORT] * 100, True),
        ("not yet the rule", [LONG] * (PATIENCE - 1), True),
        ("a model that has become slow", [LONG] * PATIENCE, False),
        ("a model that is mostly slow", [LONG, LONG, SHORT] * PATIENCE, False),
        ("a pod that is out of CPU every now and then", ([SHORT] * 5 + [STALL]) * 100, True),
        ("runs that take very long", [STALL, SHORT, STALL, STALL], False),
        ("runs between short and long", [(SHORT_SECONDS + LONG_SECONDS) / 2] * 100, True),
    ],
)
def test_a_size_leaves_the_loop_where_long_runs_are_the_rule(what: str, runs: list[float], stays: bool) -> None:
    pace = in_the_loop()
    for seconds in runs:
        if pace.is_short(SIZE):
            pace.ran_here(SIZE, seconds)
    assert pace.is_short(SIZE) is stays


def short_runs_until_it_is_back(pace: Pace) -> int:
    count = 0
    while not pace.is_short(SIZE):
        pace.ran_there(SIZE, SHORT)
        count += 1
    return count


def test_a_size_that_was_sent_out_again_and_again_has_to_prove_itself_ever_longer() -> None:
    pace = Pace()
    proofs = []
    for _ in range(4):
        proofs.append(short_runs_until_it_is_back(pace))
        pace.ran_here(SIZE, STALL)
        pace.ran_here(SIZE, STALL)
    assert proofs == [PROOF, 2 * PROOF, 4 * PROOF, 8 * PROOF]


def test_long_runs_in_threads_undo_short_ones() -> None:
    pace = Pace()
    for _ in range(100 * PROOF):
        pace.ran_there(SIZE, SHORT)
        pace.ran_there(SIZE, LONG)
    assert not pace.is_short(SIZE)
