"""A request's JSON taken apart: the arrays under "data", which may be large, and the small rest, which alone becomes Python objects."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

import orjson

from fettle.server.elements import MOST_TEXTS, PIECE, Span, without_escapes

MOST_BESIDE = 1 << 20  # bytes of all that is no data: names, shapes, parameters
# Quotes and brackets of one tensor of texts: two quotes for each, and a list of its own.
MOST_MARKS = 4 * MOST_TEXTS + (1 << 16)
KEY = b'"data"'
_OPENS = re.compile(rb"\s*+:\s*+\[")
_LEAD = re.compile(rb"\[[\s\[]*+")
_BRACKET = re.compile(rb"[\[\]]")
_BETWEEN = re.compile(rb"[\s,]*+")
# Stands where an array stood; nobody outside of this process can write one.
_MARK = secrets.token_hex(8)


class EnvelopeError(Exception):
    """The body is no JSON, or has too much in it that is no data."""


def split(body: bytes | bytearray, key: bytes = KEY) -> tuple[Any, dict[str, Span]]:
    """The document, in which a mark stands for each array under a key `key` (with its quotes), and the arrays' places by mark.

    A small body is read as a whole: its arrays are in the document. Raises EnvelopeError. Whether the arrays are arrays is not known before
    they are read.
    """
    parts: list[bytes | bytearray] = []
    spans: dict[str, Span] = {}
    at, room = 0, MOST_BESIDE
    for start, stop in _arrays(body, key) if len(body) > PIECE else ():
        mark = f"{_MARK}{len(spans)}"
        spans[mark] = Span(body, start, stop)
        parts += (body[at:start], b'"%b"' % mark.encode())
        room -= start - at
        if room < 0:
            break
        at = stop
    if len(body) - at > room:
        raise EnvelopeError(f"the request without the inputs' data is larger than {MOST_BESIDE} bytes")
    try:
        return orjson.loads(b"".join((*parts, body[at:])) if parts else body), spans
    except orjson.JSONDecodeError as error:
        # Where it went wrong can only be told of the body as it came.
        raise EnvelopeError(f"the body is not valid JSON: {error.msg if parts else error}") from error


def _arrays(body: bytes | bytearray, key: bytes) -> Iterator[tuple[int, int]]:
    """Where the arrays under that key begin and end. Looks no further than MOST_BESIDE for the next."""
    at = 0
    while (place := body.find(key, at, at + MOST_BESIDE + len(key))) >= 0:
        at = place + len(key)
        opens = _OPENS.match(body, at)
        # Behind a backslash the quote belongs to a string: within one, `"data"` can only be written as `\"data\"`.
        if opens is not None and body[place - 1 : place] != b"\\":
            at = _end(body, opens.end() - 1)
            yield opens.end() - 1, at


def _end(body: bytes | bytearray, start: int) -> int:
    """The place behind the array that begins at `start`."""
    lead = _LEAD.match(body, start)
    first = lead.end() if lead is not None else start
    if body[first : first + 1] != b'"':
        # Numbers hold no quote and no brace: the next one, of the next key or the end of the tensor, is behind the array.
        quote = body.find(b'"', first)
        brace = body.find(b"}", first, quote if quote >= 0 else len(body))
        behind = next((place for place in (brace, quote) if place >= 0), len(body))
        closing = body.rfind(b"]", start, behind)
        between = _BETWEEN.match(body, closing + 1, behind)
        if closing >= 0 and between is not None and between.end() == behind:
            return closing + 1
    return _end_among_strings(body, start)


def _end_among_strings(body: bytes | bytearray, start: int) -> int:
    depth = outside = seen = 0
    escaped = False
    for at in range(start, len(body), PIECE):
        text = bytes(body[at : at + PIECE])
        text = without_escapes(b"_" + text[1:] if escaped else text)
        escaped = text.endswith(b"\\")
        place = at
        parts = text.split(b'"')
        for index, part in enumerate(parts, outside):
            for bracket in _BRACKET.finditer(part) if index % 2 == 0 else ():
                depth += 1 if bracket[0] == b"[" else -1
                seen += 1
                if not depth:
                    return place + bracket.end()
            place += len(part) + 1
        outside = (outside + len(parts) - 1) % 2
        seen += len(parts)
        if seen > MOST_MARKS:
            raise EnvelopeError(f"one tensor's data contains more than {MOST_MARKS} quotes and brackets")
    raise EnvelopeError("the body is not valid JSON: an array of data is not closed")
