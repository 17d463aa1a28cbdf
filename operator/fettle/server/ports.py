"""Ports that a server is about to listen on."""

from __future__ import annotations

import asyncio
import socket

_AGAIN_SECONDS = 0.005


def require_free(host: str, port: int) -> None:
    """Raises OSError, with a sentence as its `strerror`, where the port cannot be listened on, also for one that somebody else would share."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror or error}") from error


async def until_open(host: str, port: int) -> None:
    """Wait until the port takes connections."""
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            writer.close()
            return
