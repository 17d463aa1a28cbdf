"""The clock, on processes whose times are known: simulated, so that nothing here depends on this machine's speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from tests.unit.optimizer.measure.simulated import Speed, World, one, steady

from fettle.api.bounds import RUNS_NEEDED
from fettle.api.reasons import Reason
from fettle.api.vocabulary import Objective
from fettle.errors import RuntimeFailure
from fettle.optimizer.measure.cgroup import Limits, Throttling
from fettle.optimizer.measure.clock import BASELINE, Clock
from fettle.optimizer.measure.process import WorkerDied
from fettle.optimizer.measure.schedule import TimingSchedule


def test_a_speedup_is_found_beside_the_baseline() -> None:
    world = World({BASELINE: steady(10), "fast": steady(2.5), "slow": steady(30)}, noise=0.02)
    fast, slow = world.clock().group(["fast", "slow"])
    speedup = fast.speedup()
    assert speedup is not None
    assert speedup.value == pytest.approx(4, rel=0.02)
    assert fast.stable()
    assert slow.stable()
    assert fast.measurements()[0].latency_milliseconds.p50 == pytest.approx(2.5, rel=0.02)
    assert fast.measurements()[0].items_per_second == pytest.approx(400, rel=0.02)


def test_everything_is_started_anew_five_times_and_closed() -> None:
    world = World({BASELINE: steady(10), "a": steady(5)})
    timed = one(world.clock().group(["a"]))
    assert timed.starts == 5
    assert world.starts == {BASELINE: timed.starts, "a": timed.starts}
    assert not world.open


def test_the_order_of_blocks_changes_from_round_to_round_and_is_the_same_every_time() -> None:
    def order() -> list[str]:
        world = World({name: steady(10) for name in (BASELINE, "a", "b", "c")})
        world.clock().group(["a", "b", "c"])
        return world.order

    blocks = order()
    rounds = {tuple(blocks[index : index + 4]) for index in range(0, len(blocks), 4)}
    assert len(rounds) > 3
    assert all(set(found) == {BASELINE, "a", "b", "c"} for found in rounds)
    assert blocks == order()


@pytest.mark.parametrize(
    ("sentence", "by_start", "starts"),
    [
        ("the last look ends it", [4.0, 5.5, 4.6, 4.0, 5.5, 4.6, 4.0, 5.5, 4.0, 5.5, 4.0, 5.5], 12),
        ("so much that more starts would be for nothing", [4.0, 9.0, 6.0, 3.0, 12.0], 5),
    ],
)
def test_starts_that_disagree_are_unstable_however_long_the_budget(
    sentence: str, by_start: list[float], starts: int
) -> None:
    world = World({BASELINE: steady(10), "a": lambda number, _: by_start[number]})
    timed = one(world.clock(seconds_per_candidate=60.0).group(["a"]))
    assert not timed.stable()
    assert timed.starts == starts, sentence
    assert not timed.ended_by_budget, "nobody is told to allow more time"


def test_an_unstable_candidate_is_measured_longer_and_a_stable_one_is_not() -> None:
    by_start = [5.0, 7.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    world = World({BASELINE: steady(10), "moving": lambda number, _: by_start[number], "calm": steady(5)})
    moving, calm = world.clock().group(["moving", "calm"])
    assert calm.starts == 5
    assert moving.starts > 5


def test_the_budget_ends_what_cannot_be_settled() -> None:
    by_start = [4.0, 5.2] * 6
    world = World({BASELINE: steady(10), "a": lambda number, _: by_start[number]})
    timed = one(world.clock(seconds_per_candidate=3.0).group(["a"]))
    assert timed.starts < 12
    assert timed.ended_by_budget
    assert not timed.stable()


@pytest.mark.parametrize("percentile", [50, 90, 95, 99])
def test_runs_go_on_until_the_percentile_of_the_constraint_may_be_claimed(percentile: int) -> None:
    world = World({BASELINE: steady(40), "a": steady(40)})
    timed = one(world.clock(percentile=percentile, seconds_per_candidate=60.0).group(["a"]))
    assert timed.runs(1) >= RUNS_NEEDED[percentile]
    assert getattr(timed.measurements()[0].latency_milliseconds, f"p{percentile}") is not None


def test_a_percentile_that_the_budget_does_not_allow_is_not_claimed() -> None:
    world = World({BASELINE: steady(400), "a": steady(400)})
    found = one(world.clock(percentile=99).group(["a"])).measurements()[0]
    assert found.latency_milliseconds.p50 is not None
    assert found.latency_milliseconds.p99 is None


def test_a_very_slow_model_ends_in_bounded_time() -> None:
    world = World({BASELINE: steady(20_000), "a": steady(20_000)})
    timed = one(world.clock().group(["a"]))
    assert timed.ratios == [[1.0]] * 3
    assert not timed.stable()
    assert world.time < 400


def test_further_batch_sizes_are_timed_too_and_claim_their_median() -> None:
    world = World({BASELINE: steady(10), "a": steady(5)})
    clock = world.clock(batch_sizes=(1, 8))
    first, further = one(clock.group(["a"])).measurements()
    assert (first.batch_size, further.batch_size) == (1, 8)
    assert further.latency_milliseconds.p50 == pytest.approx(40)
    assert [row.batch_size for row in clock.baseline.measurements()] == [1, 8]


def test_times_on_the_gpu_are_told_and_decide_nothing() -> None:
    speeds = {BASELINE: steady(10), "a": steady(5)}
    plain, told = (one(World(speeds, on_gpu=share).clock().group(["a"])) for share in (0.0, 0.4))
    assert plain.measurements()[0].gpu_milliseconds is None
    on_gpu = told.measurements()[0].gpu_milliseconds
    assert on_gpu is not None
    assert on_gpu.p50 == pytest.approx(2)
    assert told.measurements()[0].latency_milliseconds == plain.measurements()[0].latency_milliseconds
    assert told.speedup() == plain.speedup()


def test_the_baseline_alone_is_timed_where_no_candidate_is_left() -> None:
    world = World({BASELINE: steady(10)})
    clock = world.clock()
    assert clock.group([]) == []
    assert clock.baseline.starts == 5
    assert clock.baseline.measurements()[0].latency_milliseconds.p50 == pytest.approx(10)


def test_the_quick_clock_takes_a_second_of_each_in_one_start() -> None:
    world = World({BASELINE: steady(10), "a": steady(5), "slow": steady(3000)}, load_seconds=4)
    quick = Clock(world.start, TimingSchedule().quick, Throttling(Limits(None, None)), world.now, world.sleep)
    fast, slow = quick.group(["a", "slow"])
    assert (fast.starts, slow.starts) == (1, 1)
    assert len(fast.ratios[0]) == 5
    assert fast.spent.blocks == pytest.approx(1.0)
    assert slow.runs(1) == 1, "one run of a slow model says enough"
    assert fast.speedup() is None, "one start claims nothing"


def test_in_a_closed_loop_what_counts_is_the_items_that_a_block_answers() -> None:
    world = World({BASELINE: steady(10), "a": lambda _, batch: 4 + batch})
    clock = world.clock(batch_sizes=(1, 8, 32), closed_loop=True)
    quick = Clock(
        world.start,
        TimingSchedule(batch_sizes=(1, 8, 32), closed_loop=True).quick,
        Throttling(Limits(None, None)),
        world.now,
        world.sleep,
    )
    found = one(quick.group(["a"]))
    assert found.best_batch == 32
    compared = [found.compared_batch(objective, 1) for objective in (Objective.THROUGHPUT, Objective.LATENCY)]
    assert compared == [32, 1], "what a latency is told of is the batch that the original answers too"
    gains = [found.best_gain(batch) for batch in compared]
    assert gains == pytest.approx([10 / (36 / 32), 10 / 5]), "each is held against the original at its first batch"
    timed = one(clock.group(["a"], {"a": 32}))
    speedup = timed.speedup()
    assert speedup is not None
    assert speedup.value == pytest.approx(10 / (36 / 32))
    assert [row.batch_size for row in timed.measurements()] == [32, 1, 8]
    assert timed.measurements()[0].items_per_second == pytest.approx(32 / 0.036)


def failing(error: RuntimeFailure, start: int) -> Speed:
    """Runs well until that process start."""

    def speed(number: int, _: int) -> float:
        if number >= start:
            raise error
        return 5.0

    return speed


@pytest.mark.parametrize("start", [0, 1])
def test_a_candidate_that_dies_while_timed_does_not_end_the_others(start: int) -> None:
    death = WorkerDied("timing: the process died of SIGSEGV")
    world = World({BASELINE: steady(10), "dies": failing(death, start), "lives": steady(5)})
    dies, lives = world.clock().group(["dies", "lives"])
    assert dies.failure is death
    assert lives.failure is None
    assert lives.stable()
    assert not world.open


def test_a_baseline_that_dies_ends_the_measurement() -> None:
    world = World({BASELINE: failing(WorkerDied("gone", reason=Reason.OUT_OF_MEMORY), 1), "a": steady(5)})
    with pytest.raises(WorkerDied, match="gone"):
        world.clock().group(["a"])
    assert not world.open


@dataclass
class Quota(Throttling):
    """A quota that hits the blocks it is told to."""

    hits: Iterator[bool] = field(default_factory=lambda: iter(()))

    def hit(self, seconds: float) -> bool:
        """Whether this block was hit."""
        return next(self.hits, False)


def test_a_block_that_the_quota_hit_is_dropped_and_repeated() -> None:
    slowed = iter([True, False, True])

    world = World({BASELINE: steady(10), "a": steady(5)})
    clock = world.clock(Quota(Limits(None, None), hits=slowed))
    timed = one(clock.group(["a"]))
    rounds = sum(map(len, timed.ratios))
    assert (clock.blocks, clock.slowed) == (2 * rounds, 0)
    assert clock.remarks(threads=1) == [], "what counts was not slowed: nothing to say"
    assert len(world.order) == 2 * rounds + 2
    assert timed.runs(1) + clock.baseline.runs(1) == rounds * (20 + 40)


def test_a_quota_that_always_hits_marks_the_run_and_does_not_go_on_for_ever() -> None:
    world = World({BASELINE: steady(10), "a": steady(5)})
    clock = world.clock(Quota(Limits(None, None), hits=iter([True] * 10_000)))
    timed = one(clock.group(["a"]))
    assert clock.throttled
    assert clock.remarks(threads=1) == [
        "the CPU quota slowed 100 % of the timed runs, even when repeated: "
        "the times are too long; raise resources.limits.cpu of this target"
    ]
    assert timed.runs(1) >= 30
    assert len(world.order) <= 2 * sum(map(len, timed.ratios)) + 8


def test_the_report_is_told_how_the_runs_of_each_are_spread() -> None:
    by_start = [5.0, 6.0, 7.0, 8.0, 9.0]
    world = World(
        {
            BASELINE: steady(10),
            "a": lambda number, batch: by_start[number % 5] * batch,
            "dies": failing(WorkerDied("gone"), 0),
        }
    )
    clock = world.clock(batch_sizes=(1, 8))
    a, _ = clock.group(["a", "dies"], {"a": 8})
    baseline, found = clock.distributions()
    assert (baseline.candidate, baseline.batch_size, baseline.runs) == (BASELINE, 1, clock.baseline.runs(1))
    assert set(baseline.milliseconds) == {10.0}
    assert (found.candidate, found.batch_size, found.runs) == ("a", 8, a.runs(8))
    assert len(found.milliseconds) == 101
    assert (found.milliseconds[0], found.milliseconds[-1]) == (40.0, 72.0)
    assert list(found.milliseconds) == sorted(found.milliseconds)
    assert found.milliseconds[50] == pytest.approx(a.measurements()[0].latency_milliseconds.p50)
