"""The queue, in fake time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from tests.unit.controller.fake_time import run

from fettle.cluster.owner import Key
from fettle.controller.queue import BACKOFF_LAST, IDLE_TURN, Queue, Schedule
from fettle.errors import ClusterError, ConflictError

A, B, C = (Key("OptimizedModel", "team", name) for name in "abc")
Passes = list[tuple[float, str]]
Work = Callable[[Key], Awaitable[float | None]]


def test_a_key_is_in_it_once_and_the_earliest_time_wins() -> None:
    schedule = Schedule()
    for due in (10.0, 5.0, 20.0):
        schedule.add(A, due)
    assert len(schedule) == 1 and schedule.next_due() == 5.0
    assert schedule.take(4.9) is None
    assert schedule.take(5.0) == A
    assert schedule.take(99.0) is None


def test_who_is_due_longest_comes_first() -> None:
    schedule = Schedule()
    schedule.add(A, 3.0)
    schedule.add(B, 1.0)
    schedule.add(C, 2.0)
    assert schedule.waiting(2.0) == 2
    assert [schedule.take(9.0) for _ in range(3)] == [B, C, A]


async def watch(
    work: Work, seconds: float, *added: Key, workers: int = 2, script: Callable[[Queue], Awaitable[None]] | None = None
) -> Queue:
    """Run a queue for some fake seconds."""
    queue = Queue(work, workers=workers, clock=asyncio.get_running_loop().time)
    for key in added:
        queue.add(key)
    task = asyncio.create_task(queue.run())
    if script is not None:
        await script(queue)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return queue


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


def test_a_pass_that_asks_for_it_is_repeated_later() -> None:
    passes: Passes = []

    async def work(key: Key) -> float | None:
        passes.append((now(), key.name))
        return 30.0 if len(passes) < 3 else None

    run(watch(work, 100, A))
    assert passes == [(0, "a"), (30, "a"), (60, "a")]


def test_an_event_comes_before_the_later_look() -> None:
    passes: Passes = []

    async def work(key: Key) -> float | None:
        passes.append((now(), key.name))
        return 30.0

    async def script(queue: Queue) -> None:
        await asyncio.sleep(10)
        queue.add(A)

    run(watch(work, 25, A, script=script))
    assert passes == [(0, "a"), (10, "a")], "the look at 30 was replaced by the one at 40"


def test_one_key_is_never_worked_on_twice_at_once_and_its_event_is_not_lost() -> None:
    running: list[str] = []
    passes: Passes = []

    async def work(key: Key) -> float | None:
        assert key.name not in running
        running.append(key.name)
        passes.append((now(), key.name))
        await asyncio.sleep(5)
        running.remove(key.name)
        return None

    async def script(queue: Queue) -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            queue.add(A)

    run(watch(work, 30, A, script=script))
    assert passes == [(0, "a"), (5, "a")], "three events during a pass are one pass more"


def test_no_more_than_the_workers_work_at_once() -> None:
    running: set[str] = set()
    most = 0

    async def work(key: Key) -> float | None:
        nonlocal most
        running.add(key.name)
        most = max(most, len(running))
        await asyncio.sleep(1)
        running.discard(key.name)
        return None

    run(watch(work, 10, A, B, C, workers=2))
    assert most == 2 and not running


def test_errors_bring_a_key_back_slower_and_slower_until_it_succeeds() -> None:
    passes: list[float] = []

    async def work(key: Key) -> float | None:
        passes.append(now())
        if len(passes) < 5:
            raise ClusterError("no")
        return None

    run(watch(work, 1000, A))
    assert passes == [0, 0.5, 1.5, 3.5, 7.5]


def test_the_back_off_has_an_end_and_starts_anew_after_success() -> None:
    passes: list[float] = []

    async def work(key: Key) -> float | None:
        passes.append(now())
        if len(passes) in (13, 14):
            return 1.0
        raise ClusterError("no")

    run(watch(work, 2000, A))
    steps = [round(after - before, 3) for before, after in pairwise(passes)]
    assert max(steps) == BACKOFF_LAST
    assert steps[12:16] == [1.0, 1.0, 0.5, 1.0]


@pytest.mark.parametrize("error", [ValueError("a fault of ours"), ConflictError("changed", retryable=True)])
def test_one_objects_fault_does_not_stop_the_others(error: Exception) -> None:
    passes: Passes = []

    async def work(key: Key) -> float | None:
        passes.append((now(), key.name))
        if key == A and len(passes) < 3:
            raise error
        return None

    run(watch(work, 10, A, B))
    assert [name for _, name in passes] == ["a", "b", "a"]


def test_the_loop_turns_although_nothing_happens() -> None:
    async def work(key: Key) -> float | None:
        return None

    async def look() -> float:
        queue = await watch(work, 100)
        return asyncio.get_running_loop().time() - queue.turned_at

    assert run(look()) <= IDLE_TURN


def test_a_stop_cancels_what_is_running() -> None:
    ended: list[str] = []

    async def work(key: Key) -> float | None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append(key.name)
            raise
        return None

    queue = run(watch(work, 1, A))
    assert ended == ["a"] and queue.idle()


def test_an_object_that_fails_for_days_is_still_tried() -> None:
    passes: list[float] = []

    async def work(key: Key) -> float | None:
        passes.append(now())
        raise ClusterError("no")

    run(watch(work, 1100 * BACKOFF_LAST, A))
    assert len(passes) > 1100
    assert passes[-1] - passes[-2] == BACKOFF_LAST


def test_a_fault_of_the_queue_itself_loses_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[float] = []

    def broken(self: Queue, key: Key) -> float:
        raise OverflowError("int too large to convert to float")

    async def work(key: Key) -> float | None:
        passes.append(now())
        raise ClusterError("no")

    monkeypatch.setattr(Queue, "_backoff", broken)
    run(watch(work, 2.5 * BACKOFF_LAST, A))
    assert passes == [0, BACKOFF_LAST, 2 * BACKOFF_LAST]


def test_a_pass_that_was_cancelled_by_what_it_called_loses_no_key() -> None:
    passes: list[float] = []

    async def work(key: Key) -> float | None:
        passes.append(now())
        raise asyncio.CancelledError

    run(watch(work, 2.5 * BACKOFF_LAST, A))
    assert passes == [0, BACKOFF_LAST, 2 * BACKOFF_LAST]
