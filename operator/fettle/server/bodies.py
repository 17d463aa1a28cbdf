"""Requests' bodies: read within bounds of number, bytes and time, and accounted for until their requests are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol

from fettle.server.request import Code, RequestError
from fettle.server.settings import ServerSettings

AT_ONCE = 1 << 16  # a declared body of so many bytes is taken in one go


class Incoming(Protocol):
    """What a front reads a body with: in one go, or part by part."""

    def __call__(self) -> Awaitable[bytes]: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Bodies:
    """The bounds, and what is held within them. Used by one event loop only."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.held = 0
        # By task, when it is late. One timer for all, since asyncio.timeout would cost each small request a twentieth of its time.
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, incoming: Incoming, size: int | None) -> bytes | bytearray:
        """The body; `release` it when its request is answered. `size`: bytes that the client says it has.

        Raises RequestError: TOO_LARGE, TIMEOUT, UNAVAILABLE where too many are being read or too many bytes are held already, INVALID
        where it is not as long as the client said.
        """
        if size is not None and size > self._settings.max_body_bytes:
            raise self._too_large()
        if len(self._reading) >= self._settings.max_reading:
            message = f"{len(self._reading)} request bodies are already being read"
            raise RequestError(Code.UNAVAILABLE, message, unread=True)
        task = self._begin()
        try:
            body: bytes | bytearray
            if size is not None and size <= AT_ONCE:
                body = bytes(await incoming())
                self.reserve(len(body))
            else:
                body = await self._parts(incoming)
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            message = f"the body did not arrive within {self._settings.body_seconds:g} s"
            raise RequestError(Code.TIMEOUT, message, unread=True) from None
        finally:
            del self._reading[task]
            self._late.discard(task)
        if size is not None and len(body) != size:  # the parts of a client that hung up just end
            self.release(len(body))
            raise RequestError(Code.INVALID, f"the body ended after {len(body)} of {size} bytes", unread=True)
        return body

    def _begin(self) -> asyncio.Task[Any]:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._reading[task] = late = loop.time() + self._settings.body_seconds
        if self._timer is None:
            self._timer = loop.call_at(late, self._end_late_ones, loop)
        return task

    def _end_late_ones(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, late in self._reading.items():  # the earliest first
            if late > loop.time():
                self._timer = loop.call_at(late, self._end_late_ones, loop)
                return
            if task not in self._late:
                self._late.add(task)
                task.cancel()

    async def _parts(self, incoming: Incoming) -> bytearray:
        body = bytearray()  # which grows in place: parts that are joined would be there twice
        try:
            async for part in incoming:
                if len(body) + len(part) > self._settings.max_body_bytes:
                    raise self._too_large()
                self.reserve(len(part))
                body += part
        except BaseException:
            self.release(len(body))
            raise
        return body

    def reserve(self, size: int) -> None:
        """Account for so many bytes of a request; `release` them when it is answered. Raises RequestError UNAVAILABLE."""
        if self.held + size > self._settings.max_bodies_bytes:
            message = f"requests of {self.held} bytes in total are being read or waiting for the model"
            raise RequestError(Code.UNAVAILABLE, message, unread=True)
        self.held += size

    def hold(self, body: bytes) -> bytes:
        """A body that a front's library has read; `release` it when its request is answered. Raises RequestError UNAVAILABLE."""
        self.reserve(len(body))
        return body

    def release(self, size: int) -> None:
        """A request of so many bytes is answered."""
        self.held -= size

    def _too_large(self) -> RequestError:
        message = f"the body is larger than {self._settings.max_body_bytes} bytes"
        return RequestError(Code.TOO_LARGE, message, unread=True)
