"""Granian's embedded server, as both ports are served with it. No other module knows granian."""

from __future__ import annotations

import resource
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.rsgi import ProtocolClosed
from granian.server.embed import Server

__all__ = ["ProtocolClosed", "Server", "server"]

MOST_HEADERS = 1 << 16  # bytes; more: 431
HEAD_MILLISECONDS = 30_000  # for the head of a request, and between two requests; the connection ends then
MOST_CONNECTIONS = 1 << 12  # of a port at once: whoever comes then waits until one of them ends
_MOST_DESCRIPTORS = 1 << 16


def server(target: Any, host: str, port: int) -> Server:
    """A server of HTTP/1.1 that calls `target.__rsgi__`, in the event loop in which it is told to serve."""
    head = HTTP1Settings(header_read_timeout=HEAD_MILLISECONDS, max_buffer_size=MOST_HEADERS)
    return Server(
        target,
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        http1_settings=head,
        websockets=False,
        log_level=LogLevels.error,
        backlog=1024,
        backpressure=_most_connections(),
    )


def _most_connections() -> int:
    """How many connections a port may have. Two ports and gRPC's share the file descriptors of this process, which may now have as many as the system
    allows: container runtimes begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return min(MOST_CONNECTIONS, max(soft, most) // 4)
