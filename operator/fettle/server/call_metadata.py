"""The metadata of a gRPC call, which are its headers."""

from __future__ import annotations

from typing import Any

from fettle.server.logs import Header

Context = Any  # grpc.aio.ServicerContext


def headers(context: Context) -> Header:
    """A function that reads a call's metadata by name, only when needed."""
    given: dict[str, str] | None = None

    def header(name: str) -> str | None:
        nonlocal given
        if given is None:  # the library makes them anew each time that it is asked
            given = {}
            for key, value in context.invocation_metadata() or ():
                given.setdefault(key, str(value))
        return given.get(name)

    return header


def values(context: Context, name: str) -> list[str]:
    """All values of a call's metadata of that name."""
    return [str(value) for key, value in context.invocation_metadata() or () if key == name]
