"""Messages of a library that holds each of them until it is whole, and tells nobody how much of it is there: so many are read at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from fettle.server.shares import Who, nobody
from fettle.server.time_limits import TimeLimit, TimeLimits

PATIENCE_SECONDS = 1.0  # for a message to arrive while others wait


class Sender(Protocol):
    """A call whose client sends messages."""

    async def read(self) -> Any:
        """The next message, as the library gives it."""


class _FairTurns:
    """So many turns at once. Who waits for one gets it in order of arrival among its client's, and clients after one another."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the client whose turn is next first

    def take(self) -> bool:
        """Take a turn, if one is free."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def wait(self, who: Who) -> None:
        """Wait for a turn."""
        client, turn = who(), asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(client, turn)
            else:  # it came at the same moment
                self.release()
            raise

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(client, deque())
        if turn in turns:
            turns.remove(turn)
        if not turns:
            self._waiting.pop(client, None)

    def release(self) -> None:
        """A turn is over."""
        while self._waiting:
            client = next(iter(self._waiting))
            turns = self._waiting.pop(client)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # behind all others
            if not turn.done():  # and its client is not about to leave
                turn.set_result(None)
                return
        self._free += 1


class Reading:
    """Reads so many messages at once, each within `seconds`.

    The others wait for their turn, and for whoever waits one of those that are read, the longest first, gets only `PATIENCE_SECONDS` in all:
    clients that send nothing do not keep others from sending, however many they are, nor does a client with any number of calls.
    """

    def __init__(self, at_once: int, seconds: float) -> None:
        self._turns, self._seconds, self._limits = _FairTurns(at_once), seconds, TimeLimits()
        self._waiting = 0
        self._since: dict[TimeLimit, float] = {}  # those whose limit is not shortened yet, the longest first

    async def read(self, sender: Sender, who: Who = nobody) -> Any:
        """The next message. Raises TimeoutError for one that did not arrive in time, or kept others waiting."""
        with self._limits.within(self._seconds) as limit:
            if not self._turns.take():
                await self._wait(who)
            began = self._limits.loop.time()
            if self._waiting:  # who came before this one's turn found nobody left to hurry
                limit.shorten(began + PATIENCE_SECONDS)
            else:
                self._since[limit] = began
            try:
                return await sender.read()
            finally:
                self._since.pop(limit, None)
                self._turns.release()

    async def _wait(self, who: Who) -> None:
        """Wait for a turn, and hurry the message that is read the longest."""
        if self._since:
            longest = next(iter(self._since))
            longest.shorten(self._since.pop(longest) + PATIENCE_SECONDS)
        self._waiting += 1
        try:
            await self._turns.wait(who)
        finally:
            self._waiting -= 1
