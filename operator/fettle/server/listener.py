"""A port that answers HTTP/1.1, in the clear or over TLS."""

from __future__ import annotations

import asyncio
import math
import socket
from pathlib import Path
from typing import Any

from fettle.server import rsgi
from fettle.server.ports import require_free, until_open
from fettle.server.tls import LOOPBACK, Certificate, TlsPort


class Listener:
    """Answers with `target.__rsgi__`, in the event loop in which it is told to serve. `tls`: the folder of a certificate's Secret. `shared`: other
    processes listen on the port as well, and the kernel spreads connections over them, as granian's own port always allows."""

    def __init__(
        self, target: Any, host: str, port: int, tls: Path | None, clients: bool = False, shared: bool = False
    ) -> None:
        self._address, self._shared = (host, port), shared
        self._tls: TlsPort | None = None
        if tls is not None:
            self._held = _held_port()
            inner = self._held.getsockname()[1]
            self._tls = TlsPort(host, port, Certificate(tls, clients), inner, shared)
            host, port = LOOPBACK, inner
        self._server = rsgi.server(target, host, port)

    async def serve(self) -> None:
        """Listen until `stop`. Raises OSError where the port is taken; UsageError without a usable certificate."""
        if not self._shared:
            require_free(*self._address)
        if self._tls is None:
            await self._server.serve()
            return
        serving = [asyncio.ensure_future(self._server.serve())]
        inner = asyncio.ensure_future(until_open(*self._held.getsockname()))
        try:
            await asyncio.wait((inner, *serving), return_when=asyncio.FIRST_COMPLETED)
            serving.append(asyncio.ensure_future(self._tls.serve()))
            await asyncio.gather(*serving)
        except BaseException:
            self.stop()
            raise
        finally:
            inner.cancel()
            self._held.close()

    async def begun(self) -> None:
        """Wait until the port takes connections: granian listens some time after it is told to."""
        await until_open(*self._address)

    def stop(self) -> None:
        """Stop listening; connections end once their requests are answered."""
        if self._tls is not None:
            self._tls.stop()
        self._server.stop()

    @property
    def expires(self) -> float:
        """When the certificate of its connections expires, in seconds since the epoch; NaN before it is loaded, and in the clear."""
        return self._tls.certificate.expires if self._tls is not None else math.nan

    def client(self, told: str) -> str | None:
        """Who sent a request that came from `told`, as address:port; None where it did not come through this port."""
        return told if self._tls is None else self._tls.clients.get(told)

    def has_left(self, told: str) -> bool:
        """Whether who sent a request that came from `told` hung up since."""
        return self._tls is not None and told in self._tls.left


def _held_port() -> socket.socket:
    """A free port of the loopback address, held until it is listened on: granian shares ports with whoever allows it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((LOOPBACK, 0))
    return held
