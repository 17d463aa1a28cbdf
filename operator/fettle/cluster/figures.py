"""What a pod answers to `GET /fettle/window`, read piece by piece: hours of seconds are megabytes, and one event loop renews the Lease as well.

It is data of somebody else's: an answer that is nonsense raises what was wrong with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from fettle.api.window import Window, WindowsHead

PIECE = 1 << 16  # bytes of seconds that are read at a time, in some milliseconds
MOST_BESIDE = 1 << 16  # bytes of all that is no second

_WINDOWS = re.compile(rb'"windows"\s*:\s*\[')
_BETWEEN = re.compile(rb"\}\s*,\s*\{")  # two seconds: within one there is no list


class UnreadableError(Exception):
    """An answer that is none, and why."""


class _Beside(WindowsHead):
    """What is beside the seconds, which were cut out; a list of them elsewhere, or something else by their name, is nonsense."""

    windows: Annotated[tuple[Window, ...], Field(max_length=0)] = ()


_SECONDS = TypeAdapter(tuple[Window, ...])


@dataclass(frozen=True)
class PodFigures:
    """An answer whose seconds, body[start:stop], are not looked at yet."""

    head: WindowsHead
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
                raise UnreadableError(f"windows.{count}: one second is larger than {3 * PIECE} bytes")
            windows = self._read(at, end, count)
            seconds = [last, *(window.second for window in windows)]
            if any(second >= following for second, following in itertools.pairwise(seconds)):
                raise UnreadableError("the seconds of windows are not in ascending order")
            yield windows
            at, count, last = between.end() - 1 if between is not None else end, count + len(windows), seconds[-1]

    def _read(self, at: int, end: int, count: int) -> tuple[Window, ...]:
        try:
            return _SECONDS.validate_json(b"[%b]" % bytes(self.body[at:end]))
        except ValidationError as error:
            raise UnreadableError(_first_error(error, count)) from error


def parse(body: bytes | bytearray) -> PodFigures:
    """An answer, of which all but the seconds was read. Raises UnreadableError."""
    opening = _WINDOWS.search(body)
    start = opening.end() if opening is not None else len(body)
    stop = body.find(b"]", start) if opening is not None else len(body)
    if stop < 0:
        raise UnreadableError("Invalid JSON: the list of windows is not closed")
    beside = body[:start] + body[stop:]
    if len(beside) > MOST_BESIDE:
        raise UnreadableError(f"it has more than {MOST_BESIDE} bytes beside its windows")
    try:
        head = _Beside.model_validate_json(beside)
    except ValidationError as error:
        raise UnreadableError(_first_error(error)) from error
    return PodFigures(head, body, start, stop)


def _first_error(error: ValidationError, seconds_before: int | None = None) -> str:
    """What was wrong first. `seconds_before`: so many seconds were read before this piece."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    if seconds_before is not None:
        index = [str(seconds_before + int(where[0]))] if where else []
        where = ["windows", *index, *where[1:]]
    return f"{'.'.join(where)}: {first['msg']}"
