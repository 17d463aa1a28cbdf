"""Requests' bodies: read within bounds of number, bytes and time, and accounted for until their requests are answered.

Small bodies count in total only, since there is always room for them beside the shares of clients with large ones.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Protocol

from fettle.server.request import Code, RequestError
from fettle.server.settings import ServerSettings
from fettle.server.shares import Crowd, Shares, Slots, Who, most_of, nobody
from fettle.server.time_limits import TimeLimits

NO_MEMORY = "the server does not have enough memory for this request: send fewer items, or try again later"
AT_ONCE = 1 << 16  # a declared body of so many bytes is small where memory allows: see `Bodies`


class Incoming(Protocol):
    """What a front reads a body with: in one go, or part by part."""

    def __call__(self) -> Awaitable[bytes]: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Bodies:
    """The bounds, and what is held within them. Used by one event loop only.

    A body is small if as many as may be read have room, so that no client fills it with them. One that is declared is taken in one go, and no small
    one counts against the share of its client.
    """

    def __init__(self, settings: ServerSettings, crowd: Crowd | None = None) -> None:
        self._settings = settings
        self.held = 0
        self._small = min(AT_ONCE, settings.max_bodies_bytes // settings.max_reading)
        # A larger one could never be held.
        self._largest = min(settings.max_body_bytes, most_of(settings.max_bodies_bytes))
        what = "requests of this client with {held} bytes in total are being read or waiting for the model"
        self._shares = Shares(what, Code.UNAVAILABLE, crowd=crowd, unread=True)
        self._reading = TimeLimits()  # of the bodies that are being read, each its client's
        self._places = Slots(
            settings.max_reading, "request bodies", "being read", unread=True, taken=self._reading.running
        )

    async def read(self, incoming: Incoming, size: int | None, who: Who = nobody) -> bytes | bytearray:
        """The body; `release` it when its request is answered. `size`: bytes that the client says it has.

        Raises RequestError: TOO_LARGE, TIMEOUT, UNAVAILABLE where too many are being read, too many bytes are held already or memory is short,
        LIMITED where too many of these are the client's, INVALID where it is not as long as the client said.
        """
        if size is not None and size > self._largest:
            raise self._too_large()
        self._places.require(who)
        try:
            with self._reading.within(self._settings.body_seconds, who):
                body: bytes | bytearray
                if size is not None and size <= self._small:
                    body = bytes(await incoming())
                    self._reserve(len(body), who() if len(body) > self._small else None)
                else:
                    body = await self._parts(incoming, who())
        except TimeoutError:
            message = f"the body did not arrive within {self._settings.body_seconds:g} s"
            raise RequestError(Code.TIMEOUT, message, unread=True) from None
        except MemoryError:
            raise RequestError(Code.UNAVAILABLE, NO_MEMORY, unread=True) from None
        if size is not None and len(body) != size:  # the parts of a client that hung up just end
            self.release(len(body), who)
            raise RequestError(Code.INVALID, f"the body ended after {len(body)} of {size} bytes", unread=True)
        return body

    async def _parts(self, incoming: Incoming, client: str) -> bytearray:
        body, reserved = bytearray(), 0  # which grows in place: parts that are joined would be there twice
        try:
            async for part in incoming:
                if len(body) + len(part) > self._largest:
                    raise self._too_large()
                self._reserve(len(part), client)
                reserved += len(part)
                body += part
        except BaseException:
            self.held -= reserved
            self._shares.give(client, reserved)
            raise
        if len(body) <= self._small:
            self._shares.give(client, len(body))
        return body

    def reserve(self, size: int, who: Who = nobody) -> None:
        """Account for so many bytes of a request; `release` them when it is answered. Raises RequestError UNAVAILABLE, LIMITED, and TOO_LARGE for
        more than could ever be held."""
        if size > max(self._largest, self._small):  # small ones have no share to exceed
            raise self._too_large()
        self._reserve(size, who() if size > self._small else None)

    def _reserve(self, size: int, client: str | None) -> None:
        most = self._settings.max_bodies_bytes
        if self.held + size > most:
            message = f"requests of {self.held} bytes in total are being read or waiting for the model"
            raise RequestError(Code.UNAVAILABLE, message, unread=True)
        if client is not None:
            self._shares.take(client, size, most - self.held)
        self.held += size

    def hold(self, body: bytes, who: Who = nobody) -> bytes:
        """A body that a front's library has read; `release` it when its request is answered. Raises RequestError as `reserve`."""
        self.reserve(len(body), who)
        return body

    def release(self, size: int, who: Who = nobody) -> None:
        """A request of so many bytes, all reserved at once, is answered."""
        self.held -= size
        if size > self._small:
            self._shares.give(who(), size)

    def _too_large(self) -> RequestError:
        message = f"the body is larger than {self._largest} bytes"
        return RequestError(Code.TOO_LARGE, message, unread=True)
