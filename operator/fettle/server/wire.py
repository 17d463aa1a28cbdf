"""A gRPC request taken apart: the tensors' contents, which may be large and stay the bytes that they are, and the small rest, which
alone becomes protobuf's objects.

Those take many times the bytes that they come from: an empty message of two bytes becomes an object of eighty. So contents are found on
the wire first, and what is left is bounded. Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from fettle.server.inference_pb2 import ModelInferRequest

MOST_BESIDE = 1 << 16  # bytes of all that is no data: names, shapes, parameters
MOST_FIELDS = 1 << 12  # of the request and of its inputs, contents among them
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # types of fields on the wire
# Fields of ModelInferRequest: inputs and raw_input_contents; of InferInputTensor: contents.
_INPUTS, _RAW, _CONTENTS = 5, 7, 5


class WireError(Exception):
    """The message is none of the protocol's, or has too much in it that is no data."""


class Field(NamedTuple):
    """A field on the wire: its number, its type, where it begins, where its value begins, and where both end. A varint's value is where
    it begins."""

    number: int
    kind: int
    start: int
    value: int
    stop: int


class Request(NamedTuple):
    """A request whose inputs have no contents any more. `contents`: those of each input, part by part; `raw`: raw_input_contents."""

    message: ModelInferRequest
    contents: list[list[memoryview]]
    raw: list[memoryview]


def split(body: bytes | bytearray) -> Request:
    """Raises WireError."""
    view = memoryview(body)
    beside: list[bytes | memoryview] = []
    contents: list[list[memoryview]] = []
    raw: list[memoryview] = []
    room, seen = MOST_BESIDE, 0
    for field in fields(view):
        seen += 1
        if field.number == _RAW and field.kind == BYTES:
            raw.append(view[field.value : field.stop])
        elif field.number == _INPUTS and field.kind == BYTES:
            rest, own, count = _without_contents(view[field.value : field.stop], room)
            beside += (field_head(_INPUTS, len(rest)), rest)
            contents.append(own)
            room, seen = room - len(rest), seen + count
        else:
            beside.append(view[field.start : field.stop])
            room -= field.stop - field.start
        if room < 0:
            raise WireError(f"the request without the inputs' contents is larger than {MOST_BESIDE} bytes")
        if seen > MOST_FIELDS:
            raise WireError(f"the request has more than {MOST_FIELDS} fields")
    try:
        return Request(ModelInferRequest.FromString(b"".join(beside)), contents, raw)
    except DecodeError as error:
        raise WireError(f"the message is not a valid ModelInferRequest: {error}") from error


def _without_contents(view: memoryview, room: int) -> tuple[bytes, list[memoryview], int]:
    """An input without its contents, those, and how many fields it has."""
    beside: list[memoryview] = []
    contents: list[memoryview] = []
    seen = 0
    for seen, field in enumerate(fields(view), 1):
        if field.number == _CONTENTS and field.kind == BYTES:
            contents.append(view[field.value : field.stop])
            continue
        beside.append(view[field.start : field.stop])
        room -= field.stop - field.start
        if room < 0 or seen > MOST_FIELDS:
            break  # which the caller sees as well
    return b"".join(beside), contents, seen


def fields(view: memoryview) -> Iterator[Field]:
    """The fields of a message, one after another. Raises WireError where they are none."""
    at, end = 0, len(view)
    while at < end:
        tag, value = read_varint(view, at)
        kind = tag & 7
        if kind == BYTES:
            size, value = read_varint(view, value)
            stop = value + size
        elif kind == VARINT:
            _, stop = read_varint(view, value)
        elif kind in (FIXED32, FIXED64):
            stop = value + (4 if kind == FIXED32 else 8)
        else:
            raise WireError(f"the message is not valid: a field of the unknown type {kind} at byte {at}")
        if stop > end:
            raise WireError(f"the message is not valid: the field at byte {at} goes beyond the end")
        yield Field(tag >> 3, kind, at, value, stop)
        at = stop


def read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The whole number that begins at `at`, and where it ends."""
    number = shift = 0
    for place in range(at, min(at + 10, len(view))):
        byte = view[place]
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place + 1
        shift += 7
    raise WireError(f"the message is not valid: a number at byte {at} does not end")


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


@lru_cache(256)
def field_head(number: int, size: int) -> bytes:
    """What stands before a field of bytes or of a message."""
    return _varint(number << 3 | BYTES) + _varint(size)
