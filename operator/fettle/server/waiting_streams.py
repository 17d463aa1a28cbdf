"""Streams that wait for their next message: how long they may, and how all of them end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fettle.server.call_metadata import Context
from fettle.server.request import Code, RequestError

_CHECK_SECONDS = 60.0  # without a message on a stream, after which its token is checked again


class WaitingStreams:
    """The streams of a port. `idle_seconds`: how long one may be without a message."""

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._reading: set[asyncio.Future[Any]] = set()
        self._ended = False

    def end(self) -> None:
        """Let each stream end instead of reading its next message."""
        self._ended = True
        for reading in self._reading:
            reading.cancel()

    async def next(self, context: Context, admit: Callable[[Context], Awaitable[object]]) -> Any:
        """The next message of a stream, or the library's mark of its end. While none comes, `admit` says whether its client still may.

        Raises RequestError UNAVAILABLE if streams end, TIMEOUT, and what `admit` raises.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._idle_seconds
        reading = asyncio.ensure_future(context.read())
        self._reading.add(reading)
        try:
            if self._ended:
                reading.cancel()
            while not (await asyncio.wait((reading,), timeout=min(_CHECK_SECONDS, ends - loop.time())))[0]:
                if loop.time() >= ends:
                    text = f"no message came within {self._idle_seconds:g} s: open the stream again"
                    raise RequestError(Code.TIMEOUT, text)
                await admit(context)
            return await reading
        except asyncio.CancelledError:
            if not self._ended:
                raise
            raise RequestError(Code.UNAVAILABLE, "the server is stopping: open the stream again") from None
        finally:
            reading.cancel()
            self._reading.discard(reading)
