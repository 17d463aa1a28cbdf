"""One timer for the time limits of many requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.unit.server.in_process import an_hour_later

from fettle.server.time_limits import TimeLimits


@pytest.fixture
async def limits() -> AsyncIterator[TimeLimits]:
    """Limits that nothing is left of."""
    made = TimeLimits()
    yield made
    assert not made.running


async def waited(limits: TimeLimits, seconds: float) -> str:
    """How it ends to wait for something that never comes."""
    try:
        with limits.within(seconds):
            await asyncio.Event().wait()
    except TimeoutError:
        assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]
        return "late"
    return "done"


async def test_whatever_takes_longer_than_its_limit_ends_with_a_timeout_and_the_others_go_on(
    limits: TimeLimits,
) -> None:
    long = asyncio.create_task(waited(limits, 60))
    await asyncio.sleep(0)
    assert await asyncio.gather(*[waited(limits, seconds) for seconds in (0.02, 0, 0.01)]) == ["late"] * 3
    assert not long.done()
    long.cancel()
    await asyncio.wait([long])
    assert long.cancelled()


async def test_a_limit_can_be_shortened_but_not_extended(limits: TimeLimits) -> None:
    now = asyncio.get_running_loop().time()
    with limits.within(60) as limit:
        limit.shorten(now + 90)
        assert limit.ends < now + 61
    with pytest.raises(TimeoutError), limits.within(60) as limit:
        limit.shorten(now)
        await asyncio.Event().wait()


async def test_a_block_that_ends_in_time_leaves_no_cancellation_behind(
    limits: TimeLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    with limits.within(60):
        await asyncio.sleep(0)
    with an_hour_later(monkeypatch):
        for _ in range(3):  # until the timer has gone off
            await asyncio.sleep(0)
    assert limits._timer is None
    with limits.within(60):
        await asyncio.sleep(0)


async def test_a_task_that_is_cancelled_while_its_time_is_over_is_cancelled(limits: TimeLimits) -> None:
    async def work() -> None:
        with limits.within(0):
            task.cancel()
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    assert task.cancelled()


async def test_limits_may_be_nested(limits: TimeLimits) -> None:
    outer = TimeLimits()
    with pytest.raises(TimeoutError), outer.within(60):
        assert await waited(limits, 0) == "late"
        with limits.within(0):
            await asyncio.Event().wait()


async def test_whose_limits_run_is_known_until_they_end(limits: TimeLimits) -> None:
    with limits.within(60, "a"), limits.within(60, "b") as second:
        second.shorten(second.ends - 1)
        assert [*limits.running.values()] == ["a", "b"]
