"""Granian's embedded server, as both ports are served with it. No other module knows granian."""

from __future__ import annotations

from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.rsgi import ProtocolClosed
from granian.server.embed import Server

__all__ = ["ProtocolClosed", "Server", "server"]

MOST_HEADERS = 1 << 16  # bytes; more: 431


def server(target: Any, host: str, port: int) -> Server:
    """A server of HTTP/1.1 that calls `target.__rsgi__`, in the event loop in which it is told to serve."""
    return Server(
        target,
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(max_buffer_size=MOST_HEADERS),
        websockets=False,
        log_level=LogLevels.error,
        backlog=1024,
    )
