"""Messages of a library that holds each of them until it is whole, and tells nobody how much of it is there: so many are read at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

PATIENCE_SECONDS = 1.0  # for a message to arrive while others wait


@dataclass
class Places:
    """A limit on the number of concurrent calls of one kind."""

    most: int
    taken: int = 0


class Sender(Protocol):
    """A call whose client sends messages."""

    async def read(self) -> Any:
        """The next message, as the library gives it."""


class Reading:
    """Reads so many messages at once.

    The others wait for their turn, and for whoever waits one of those that are read, the longest first, gets only `PATIENCE_SECONDS` in all:
    clients that send nothing do not keep others from sending, however many they are.
    """

    def __init__(self, at_once: int) -> None:
        self._turn = asyncio.Semaphore(at_once)
        self._waiting = 0
        self._since: dict[asyncio.Timeout, float] = {}  # those that have no limit yet, the longest first

    async def read(self, sender: Sender) -> Any:
        """The next message. Raises TimeoutError for one that kept others waiting."""
        if self._turn.locked() and self._since:
            longest = next(iter(self._since))
            longest.reschedule(self._since.pop(longest) + PATIENCE_SECONDS)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._in_turn(sender)
        finally:
            self._turn.release()

    async def _in_turn(self, sender: Sender) -> Any:
        if self._waiting:  # who came before this one's turn found nobody left to hurry
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await sender.read()
        async with asyncio.timeout(None) as limit:
            self._since[limit] = asyncio.get_running_loop().time()
            try:
                return await sender.read()
            finally:
                self._since.pop(limit, None)
