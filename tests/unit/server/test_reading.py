"""Messages that are read so many at once, and clients that send none."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from fettle.server import reading
from fettle.server.reading import Reading


class Client:
    """Sends its message, or none ever."""

    def __init__(self, message: bytes | None = None) -> None:
        self.message = message

    async def read(self) -> bytes:
        if self.message is None:
            await asyncio.Event().wait()
        return self.message or b""


@pytest.mark.parametrize("silent", [2, 3, 9])
async def test_however_many_clients_send_nothing_they_do_not_keep_others_from_sending(
    monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.01)
    read = Reading(2, 60)
    calls = [asyncio.create_task(read.read(Client())) for _ in range(silent)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        assert await read.read(Client(b"x")) == b"x"
    ended = [call for call in calls if call.done()]
    assert ended and all(isinstance(call.exception(), TimeoutError) for call in ended)
    assert silent > 2 or ended == calls[:1], "one has to give way, and the other has its time"
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_a_client_whom_nobody_waits_for_has_all_the_time_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0)
    read = Reading(2, 60)
    calls = [asyncio.create_task(read.read(Client())) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_a_client_that_leaves_while_it_waits_takes_no_turn() -> None:
    read = Reading(1, 60)
    first = asyncio.create_task(read.read(Client()))
    await asyncio.sleep(0)
    waits = asyncio.create_task(read.read(Client()))
    await asyncio.sleep(0)
    for call in (waits, first):
        call.cancel()
    await asyncio.wait([first, waits])
    assert await read.read(Client(b"x")) == b"x"


async def test_a_client_with_any_number_of_calls_keeps_others_waiting_for_one_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.01)
    read = Reading(1, 60)
    greedy = [asyncio.create_task(read.read(Client(), lambda: "greedy")) for _ in range(50)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        assert await read.read(Client(b"x"), lambda: "other") == b"x"
    assert sum(call.done() for call in greedy) == 2, "the one that was read, and the next"
    for call in greedy:
        call.cancel()
    await asyncio.wait(greedy)
    assert await read.read(Client(b"y"), lambda: "other") == b"y"


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_turns_are_given_on_however_those_who_wait_leave(turns: int) -> None:
    read = Reading(turns, 60)
    silent = [asyncio.create_task(read.read(Client(), lambda: "a")) for _ in range(turns)]
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(read.read(Client(b"x"), partial(str, name))) for name in "abab"]
    await asyncio.sleep(0)
    for call in (*silent, waiting[0], waiting[3]):  # whose turn it would be, and one that waits
        call.cancel()
    await asyncio.wait([*silent, *waiting])
    assert [waiting[place].result() for place in (1, 2)] == [b"x", b"x"]
    async with asyncio.timeout(30):
        assert await asyncio.gather(*[read.read(Client(b"y")) for _ in range(turns + 1)]) == [b"y"] * (turns + 1)


async def test_a_turn_that_comes_just_as_its_client_leaves_goes_to_the_next() -> None:
    read = Reading(1, 60)
    silent = asyncio.create_task(read.read(Client()))
    await asyncio.sleep(0)
    leaving, waiting = (asyncio.create_task(read.read(Client(b"x"), partial(str, name))) for name in "ab")
    await asyncio.sleep(0)
    silent.cancel()
    await asyncio.sleep(0)
    leaving.cancel()
    async with asyncio.timeout(30):
        assert await waiting == b"x"
        assert await read.read(Client(b"y")) == b"y"
    assert leaving.cancelled()
