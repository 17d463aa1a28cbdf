"""Ports of this machine for servers that are told where to listen."""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 12_000, 29_999  # below what the kernel gives to outgoing connections (32768 on), and below node ports
_taken: list[socket.socket] = []  # for as long as this process runs


def free_port() -> int:
    """A port that nobody listens on, and that nothing else takes before the server does.

    A port that the kernel picks may become the local end of somebody's connection as soon as it is let go. These are outside of
    that range, and a UDP socket of the same number tells the other processes that ask here.
    """
    while True:
        port = random.randint(_FIRST, _LAST)
        mark = socket.socket(type=socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("", port))
        except OSError:
            mark.close()
            continue
        _taken.append(mark)
        return port
