"""TLS in front of a port that speaks in the clear: connections are decrypted here, in the port's own event loop, and go on to a port of the loopback
address, which answers nobody else.

A new certificate is one for new connections: those that are open end when they are old enough (`connections`), as they do anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import socket
import ssl
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from fettle.errors import UsageError
from fettle.server.mounted import RENEW_SECONDS, MountedFolder

log = logging.getLogger(__name__)

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"  # as Secrets of the type kubernetes.io/tls name them
HANDSHAKE_SECONDS = 10.0
BACKLOG = 1024
LOOPBACK = "127.0.0.1"
Files = tuple[bytes, bytes, bytes | None]  # key, certificates, and the authority of clients that show theirs
# A certificate's validity: from and until when, each a UTCTime or from 2050 on a GeneralizedTime (RFC 5280, 4.1.2.5). ssl tells it of others only.
_VALIDITY = re.compile(rb"\x30.(?:\x17\r\d{12}|\x18\x0f\d{14})Z(?:\x17\r(\d{12})|\x18\x0f(\d{14}))Z", re.DOTALL)


class Certificate:
    """The certificate in a mounted Secret. `clients`: only those are let in that show one signed by the Secret's `ca.crt`."""

    def __init__(self, folder: Path, clients: bool = False) -> None:
        self.mounted, self.clients = MountedFolder(folder), clients
        self.expires = math.nan  # what was loaded last, in seconds since the epoch

    def context(self) -> ssl.SSLContext:
        """What is there now. Raises UsageError where it is no certificate with its key."""
        folder = self.mounted.folder
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(["http/1.1"])
            context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
            if self.clients:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(folder / AUTHORITY)
            self.expires = expiry(leaf((folder / CERTIFICATE).read_text(errors="replace")))
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            needed = f"{CERTIFICATE} and {KEY} of one certificate" + (f", and {AUTHORITY}" if self.clients else "")
            message = f"the TLS Secret in {folder} cannot be used: expected {needed}, found: {error}"
            raise UsageError(message) from error
        return context

    def renewed(self) -> ssl.SSLContext | None:
        """A new context where the files have changed; None where they have not, or cannot be used, which is logged: what was there stays."""
        if not self.mounted.changed():
            return None
        try:
            return self.context()
        except UsageError as error:
            log.error("keeping the old certificate: %s", error.message)
            self.mounted.forget()
            return None

    def files(self) -> Files:
        """Key, certificates and, where clients show theirs, the authority. Raises UsageError."""
        self.context()
        read = [(self.mounted.folder / name).read_bytes() for name in (KEY, CERTIFICATE)]
        return read[0], read[1], (self.mounted.folder / AUTHORITY).read_bytes() if self.clients else None

    def renewed_files(self) -> Files | None:
        """As `files`, where they have changed; None where they have not, or cannot be used, which is logged: what was there stays."""
        if self.renewed() is None:
            return None
        try:
            return self.files()
        except (OSError, UsageError):  # they changed again meanwhile
            self.mounted.forget()
            return None


def leaf(pem: str) -> bytes:
    """The first certificate of several, which is the server's own."""
    body = pem.partition(ssl.PEM_HEADER)[2].partition(ssl.PEM_FOOTER)[0]
    return ssl.PEM_cert_to_DER_cert(f"{ssl.PEM_HEADER}{body}{ssl.PEM_FOOTER}")


def is_valid_for(certificate: bytes, name: str) -> bool:
    """Whether a certificate has this DNS name, or the wildcard that stands for it."""
    return any(_as_stored(each) in certificate for each in (name, f"*.{name.partition('.')[2]}"))


def _as_stored(name: str) -> bytes:
    """A dNSName of a certificate (RFC 5280, 4.2.1.6): its tag, its length, and its letters."""
    size = bytes([len(name)])
    return b"\x82" + (size if len(name) < 0x80 else b"\x81" + size) + name.encode()


def expiry(certificate: bytes) -> float:
    """The end of a certificate's validity, in seconds since the epoch; NaN if it cannot be found."""
    found = _VALIDITY.search(certificate)
    if found is None:
        return math.nan
    until = found[2] or b"20" + found[1]
    return datetime.strptime(f"{until.decode()}+0000", "%Y%m%d%H%M%S%z").timestamp()


class TlsPort:
    """Listens with TLS, and hands what clients send to the loopback port `inner`."""

    def __init__(self, host: str, port: int, certificate: Certificate, inner: int, shared: bool = False) -> None:
        self.address, self.certificate, self.inner, self.shared = (host, port), certificate, inner, shared
        self.clients: dict[str, str] = {}  # who is behind a connection from here to `inner`, both as address:port
        self.left: deque[str] = deque(maxlen=BACKLOG)  # those that ended last
        self._stopping = asyncio.Event()

    async def serve(self) -> None:
        """Listen until `stop`. Raises OSError where the port is taken, UsageError without a certificate."""
        host, port = self.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=self.shared) as listening:
            self.certificate.mounted.changed()
            server = await self._listen(listening, self.certificate.context())
            self._log_certificate(renewed=False)
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), RENEW_SECONDS)
                context = self.certificate.renewed()
                if context is not None and not self._stopping.is_set():
                    # Both listen for a moment: whoever connects meanwhile is let in by one of them.
                    server, before = await self._listen(listening, context), server
                    before.close()
                    self._log_certificate(renewed=True)
            server.close()

    def stop(self) -> None:
        """Let nobody in any more. Connections end with those to `inner`."""
        self._stopping.set()

    def _log_certificate(self, renewed: bool) -> None:
        port, expires = self.address[1], self.certificate.expires
        if expires <= time.time():
            since = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            log.warning("the certificate of port %d expired at %s: put a valid one into the TLS Secret", port, since)
        elif renewed:
            log.info("the certificate of port %d was renewed", port)

    async def _listen(self, listening: socket.socket, context: ssl.SSLContext) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            lambda: _Outside(self),
            sock=listening.dup(),
            ssl=context,
            backlog=BACKLOG,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
        )


class _Side(asyncio.Protocol):
    """One of two connections: what arrives on it goes out on the other one, and is read only as fast as that takes it."""

    transport: asyncio.Transport | None = None
    other: _Side

    def data_received(self, data: bytes) -> None:
        if self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.resume_reading()


class _Outside(_Side):
    """A client's connection. It is read once the one to the inner port is there."""

    def __init__(self, port: TlsPort) -> None:
        self._port = port
        self.other = _Inside(self)
        self._opening: asyncio.Task[None] | None = None
        self._key = ""  # under which the port knows it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()
        self._opening = asyncio.get_running_loop().create_task(self._open(self.transport))

    async def _open(self, outside: asyncio.Transport) -> None:
        try:
            inside, _ = await asyncio.get_running_loop().create_connection(
                lambda: self.other, LOOPBACK, self._port.inner
            )
        except OSError as error:
            log.info("a connection was not accepted: %s", error)
            outside.abort()
            return
        if outside.is_closing():
            inside.close()
            return
        self._key = _name(inside, "sockname")
        self._port.clients[self._key] = _name(outside, "peername")
        outside.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other.transport is not None:
            self.other.transport.close()

    def forget(self) -> None:
        """The connection to the inner port has ended, and this one ends when all of it has been sent."""
        if self._port.clients.pop(self._key, None) is not None:
            self._port.left.append(self._key)
        if self.transport is not None:
            self.transport.close()


class _Inside(_Side):
    """The connection to the inner port."""

    def __init__(self, outside: _Outside) -> None:
        self.other = self._outside = outside

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._outside.forget()


def _name(transport: asyncio.Transport, side: str) -> str:
    """An end of a connection, as granian tells it."""
    host, port = transport.get_extra_info(side)[:2]
    return f"{host}:{port}"
