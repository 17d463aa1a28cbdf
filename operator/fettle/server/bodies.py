"""Requests' bodies: read within bounds of number, bytes and time, and accounted for until their requests are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Protocol

from fettle.server.protocol import ProtocolError

AT_ONCE = 1 << 16  # a declared body of so many bytes is taken in one go
_RETRY = (("Retry-After", "1"),)


class Incoming(Protocol):
    """What granian hands out to read a body with: in one go, or part by part."""

    def __call__(self) -> Awaitable[bytes]: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


@dataclass
class Bodies:
    """The bounds, and what is held within them. Used by the event loop only."""

    max_bytes: int
    max_bytes_in_all: int
    max_reading: int
    seconds: float
    reading: int = 0
    held: int = 0

    async def read(self, incoming: Incoming, declared: str | None) -> bytes:
        """The body; `release` it when its request is answered. `declared` is the request's Content-Length.

        Raises ProtocolError: 413 too large, 408 too slow, 503 where too many are being read or too many bytes are held already.
        """
        size = int(declared) if declared is not None and declared.isdecimal() else None
        if size is not None and size > self.max_bytes:
            raise self._too_large()
        if self.reading >= self.max_reading:
            raise ProtocolError(503, f"{self.reading} requests' bodies are being read already", _RETRY, unread=True)
        self.reading += 1
        try:
            async with asyncio.timeout(self.seconds):
                if size is not None and size <= AT_ONCE:
                    body = bytes(await incoming())
                    self._hold(len(body))
                else:
                    body = await self._parts(incoming)
        except TimeoutError as error:
            message = f"the body did not arrive within {self.seconds:g} s"
            raise ProtocolError(408, message, unread=True) from error
        finally:
            self.reading -= 1
        if size is not None and len(body) != size:  # the parts of a client that hung up just end
            self.release(len(body))
            raise ProtocolError(400, f"the body ended after {len(body)} of {size} bytes", unread=True)
        return body

    async def _parts(self, incoming: Incoming) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async for part in incoming:
                size += len(part)
                if size > self.max_bytes:
                    raise self._too_large()
                self._hold(len(part))
                parts.append(part)
            return b"".join(parts)
        except BaseException:
            self.release(sum(map(len, parts)))
            raise

    def _hold(self, size: int) -> None:
        if self.held + size > self.max_bytes_in_all:
            message = f"requests of {self.held} bytes are being read or wait for the model"
            raise ProtocolError(503, message, _RETRY, unread=True)
        self.held += size

    def release(self, size: int) -> None:
        """A request of so many bytes is answered."""
        self.held -= size

    def _too_large(self) -> ProtocolError:
        return ProtocolError(413, f"the body is larger than {self.max_bytes} bytes", unread=True)
