"""The inference service without a process: sessions and bodies that do as they are told, and what was counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from tests.unit.server import serving

from fettle.runtimes.base import Array, Interrupt
from fettle.server.service import InferenceService

BODY = orjson.dumps(serving.BODY)


class Scripted:
    """A session that answers with what it is given, or raises it."""

    def __init__(self, does: Mapping[str, Any] | BaseException) -> None:
        self.does = does

    def infer(self, inputs: Mapping[str, Array], interrupt: Interrupt | None = None) -> dict[str, Any]:
        if isinstance(self.does, BaseException):
            raise self.does
        return dict(self.does)

    def close(self) -> None:
        """Nothing to free."""


class Sent:
    """A body on its way: some parts, and then its end, an error, or nothing ever."""

    def __init__(self, *parts: bytes, then: Exception | None = None, ends: bool = True) -> None:
        self.parts, self.then, self.ends = parts, then, ends

    async def __call__(self) -> bytes:
        return b"".join([part async for part in self])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part
        if self.then is not None:
            raise self.then
        if not self.ends:
            await asyncio.Event().wait()


@contextmanager
def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The event loop's clock is an hour ahead, so whatever has a limit below that is over it at once."""
    loop = asyncio.get_running_loop()
    now = loop.time
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: now() + 3600)
        yield


def counted(service: InferenceService) -> tuple[int, int, dict[int, float]]:
    """Requests and errors of the windows, and answers by code of the metrics."""
    window = service.windows._current
    codes = {int(code): float(count) for code, count in service.metrics.requests.counts.items()}
    return (window.requests, window.errors, codes) if window is not None else (0, 0, codes)


def timed(service: InferenceService) -> int:
    """Requests whose latency was observed."""
    sample = service.metrics.registry.get_sample_value(
        "fettle_server_request_seconds_count", {"model": "lookup", "revision": "r"}
    )
    assert sample is not None
    return int(sample)
