"""The metadata of a gRPC call, which are its headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fettle.server.logs import Header

Context = Any  # grpc.aio.ServicerContext


def headers(metadata: Iterable[tuple[str, str | bytes]]) -> Header:
    """A function that reads a call's metadata by name, the first value of each."""

    def header(name: str) -> str | None:
        for key, value in metadata:  # a generator costs twice as much, with every request
            if key == name:
                return str(value)
        return None

    return header


def values(context: Context, name: str) -> list[str]:
    """All values of a call's metadata of that name."""
    return [str(value) for key, value in context.invocation_metadata() or () if key == name]
