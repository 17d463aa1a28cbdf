"""What a pod answers to `GET /fettle/window`, read piece by piece: hours of seconds are megabytes, and one event loop renews the Lease as well.

It is data of somebody else's: each field is bounded, and an answer that is nonsense raises what was wrong with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from fettle.api.base import ApiModel
from fettle.api.reasons import Reason

PIECE = 1 << 16  # bytes of seconds that are read at a time, in some milliseconds
MOST_BESIDE = 1 << 16  # bytes of all that is no second
OLD_RING_SECONDS = 900  # that a server keeps which does not say how many
HIGHEST_BUCKET = 1000  # far beyond a day at the server's own ratio; any ratio up to 2 stays a number

Count = Annotated[int, Field(ge=0, le=1_000_000_000, strict=True)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False, strict=True)]  # Unix time

_WINDOWS = re.compile(rb'"windows"\s*:\s*\[')
_BETWEEN = re.compile(rb"\}\s*,\s*\{")  # two seconds: within one there is no list


class UnreadableError(Exception):
    """An answer that is none, and why."""


class Problem(ApiModel):
    """Why a pod does not compare its answers with the stable revision's."""

    reason: Reason
    message: str = Field(max_length=4096)


class Agreement(ApiModel):
    """With which revision a pod compares its answers."""

    stable: str | None = None
    problem: Problem | None = None


class Outcomes(ApiModel):
    """Items compared in a second."""

    agreed: Count = 0
    disagreed: Count = 0
    unsure: Count = 0


class Window(ApiModel):
    """One second."""

    second: Annotated[int, Field(ge=0, le=10**11, strict=True)]
    requests: Count = 0
    errors: Count = 0
    outcomes: Outcomes = Outcomes()
    buckets: dict[Annotated[int, Field(ge=0, le=HIGHEST_BUCKET)], Count] = {}

    @model_validator(mode="after")
    def _adds_up(self) -> Window:
        if self.errors > self.requests or sum(self.buckets.values()) > self.requests:
            raise ValueError("more errors, or more answers in buckets, than requests")
        return self

    def latencies(self) -> dict[int, int]:
        """Answers by bucket. A server that counts failures in buckets too is taken to have failed fast: the fastest go."""
        failed = sum(self.buckets.values()) - (self.requests - self.errors)
        if failed <= 0:
            return self.buckets
        kept: dict[int, int] = {}
        for index, count in sorted(self.buckets.items()):
            gone = min(max(failed, 0), count)
            failed -= gone
            kept |= {index: count - gone} if count > gone else {}
        return kept


class Head(ApiModel):
    """An answer without its seconds."""

    start: Seconds
    now: Seconds
    kept: Seconds | None = None
    windows: Annotated[tuple[Window, ...], Field(max_length=0)] = ()
    bucket_base: float = Field(gt=0, le=1e3, allow_inf_nan=False)
    bucket_ratio: float = Field(gt=1, le=2, allow_inf_nan=False)
    agreement: Agreement | None = None

    @property
    def known_since(self) -> float:
        """From when on every second is known to the process, on its own clock."""
        return self.kept if self.kept is not None else max(self.start, self.now - OLD_RING_SECONDS + 1)


_SECONDS = TypeAdapter(tuple[Window, ...])


@dataclass(frozen=True)
class Answer:
    """An answer whose seconds, body[start:stop], are not looked at yet."""

    head: Head
    body: bytes | bytearray
    start: int
    stop: int

    def pieces(self) -> Iterator[tuple[Window, ...]]:
        """Its seconds, ascending, some at a time. Raises UnreadableError."""
        at, count, last = self.start, 0, -1
        while at < self.stop:
            between = _BETWEEN.search(self.body, at + PIECE, self.stop)
            end = between.start() + 1 if between is not None else self.stop
            if end - at > 4 * PIECE:
                raise UnreadableError(f"windows.{count}: one second takes more than {3 * PIECE} bytes")
            windows = self._read(at, end, count)
            seconds = [last, *(window.second for window in windows)]
            if any(one >= next_one for one, next_one in itertools.pairwise(seconds)):
                raise UnreadableError("the seconds of windows do not ascend")
            yield windows
            at, count, last = between.end() - 1 if between is not None else end, count + len(windows), seconds[-1]

    def _read(self, at: int, end: int, count: int) -> tuple[Window, ...]:
        try:
            return _SECONDS.validate_json(b"[%b]" % bytes(self.body[at:end]))
        except ValidationError as error:
            raise UnreadableError(_said(error, count)) from error


def parse(body: bytes | bytearray) -> Answer:
    """An answer, of which all but the seconds was read. Raises UnreadableError."""
    found = _WINDOWS.search(body)
    start = found.end() if found is not None else len(body)
    stop = body.find(b"]", start) if found is not None else len(body)
    if stop < 0:
        raise UnreadableError("Invalid JSON: its windows have no end")
    beside = body[:start] + body[stop:]
    if len(beside) > MOST_BESIDE:
        raise UnreadableError(f"more than {MOST_BESIDE} bytes of it are no seconds")
    try:
        head = Head.model_validate_json(beside)
    except ValidationError as error:
        raise UnreadableError(_said(error)) from error
    return Answer(head, body, start, stop)


def _said(error: ValidationError, before: int | None = None) -> str:
    """What was wrong first. `before`: so many seconds were read before this piece."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    if before is not None:
        index = [str(before + int(where[0]))] if where else []
        where = ["windows", *index, *where[1:]]
    return f"{'.'.join(where)}: {first['msg']}"
