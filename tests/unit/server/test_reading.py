"""Messages that are read so many at once, and clients that send none."""

from __future__ import annotations

import asyncio

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
    read = Reading(2)
    calls = [asyncio.create_task(read.read(Client())) for _ in range(silent)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        assert await read.read(Client(b"x")) == b"x"
    ended = [call for call in calls if call.done()]
    assert ended and all(isinstance(call.exception(), TimeoutError) for call in ended)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_a_client_whom_nobody_waits_for_has_all_the_time_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0)
    read = Reading(2)
    calls = [asyncio.create_task(read.read(Client())) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(call.done() for call in calls)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def test_a_client_that_leaves_while_it_waits_takes_no_turn() -> None:
    read = Reading(1)
    first = asyncio.create_task(read.read(Client()))
    await asyncio.sleep(0)
    waits = asyncio.create_task(read.read(Client()))
    await asyncio.sleep(0)
    for call in (waits, first):
        call.cancel()
    await asyncio.wait([first, waits])
    assert await read.read(Client(b"x")) == b"x"
