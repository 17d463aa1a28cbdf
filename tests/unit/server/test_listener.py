"""A port of the server on a real socket: how long it waits for who sends nothing, and how many it lets in."""

from __future__ import annotations

import asyncio
import resource
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.certificates import PEM, Authority
from tools.ports import free_port

from fettle.server import rsgi
from fettle.server.listener import Listener

LOOPBACK = "127.0.0.1"


class Hello:
    """What answers behind the port."""

    async def __rsgi__(self, scope: Any, connection: Any) -> None:
        connection.response_bytes(200, [], b"hello")


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """A port, listened on while the block runs."""
    port = free_port()
    listener = Listener(Hello(), LOOPBACK, port, None)
    serving = asyncio.ensure_future(listener.serve())
    await listener.begun()
    try:
        yield port
    finally:
        listener.stop()
        await serving


async def said(port: int, data: bytes) -> bytes:
    """All that comes until the server closes the connection."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("secured", [False, True])
async def test_once_the_port_is_said_to_listen_a_client_is_answered_at_once(tmp_path: Path, secured: bool) -> None:
    authority = Authority()
    port, folder = free_port(), authority.issue(tmp_path / "tls") if secured else None
    listener = Listener(Hello(), LOOPBACK, port, folder)
    begun = asyncio.ensure_future(listener.begun())
    await asyncio.sleep(0)
    assert not begun.done(), "nobody listens yet"
    serving = asyncio.ensure_future(listener.serve())
    await begun
    trusted = ssl.create_default_context(cadata=authority.certificate.public_bytes(PEM).decode())
    reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=trusted if secured else None)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).endswith(b"hello")
    writer.close()
    listener.stop()
    await serving


@pytest.mark.parametrize("data", [b"", b"POST /v2/mod", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_whose_head_does_not_arrive_ends(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsgi, "HEAD_MILLISECONDS", 100)
    async with listening() as port:
        assert b"hello" not in await said(port, data)
        assert b"hello" in await said(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


def test_a_port_takes_no_more_connections_than_there_are_file_descriptors_for(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: set_to.append(limits))
    for limits, raised, most in (
        ((1024, 1024), [], 256),
        ((1024, 524288), [(65536, 524288)], rsgi.MOST_CONNECTIONS),
        ((256, resource.RLIM_INFINITY), [(65536, resource.RLIM_INFINITY)], rsgi.MOST_CONNECTIONS),
        ((1048576, 1048576), [], rsgi.MOST_CONNECTIONS),
    ):
        set_to.clear()
        monkeypatch.setattr(resource, "getrlimit", lambda which, limits=limits: limits)
        assert rsgi.server(Hello(), LOOPBACK, 0).backpressure == most
        assert set_to == raised
