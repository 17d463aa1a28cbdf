"""The elements of one tensor: from JSON text to an array and back, in pieces.

orjson and numpy hold the interpreter lock for a whole call, and a Python object takes ten times the memory of its text. So the text is checked
before anything is built from it (the number of elements, their type, their nesting), and is then converted 256 KiB at a time. No call takes
more than a few milliseconds, and the memory of a request is proportional to its size, whatever it contains.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from fettle.api.reasons import Reason
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array, numpy_dtype

PIECE = 1 << 18  # bytes of a request that are worked on at a time
NUMBERS_AT_ONCE, TEXTS_AT_ONCE = 1 << 16, 1 << 8  # elements of an answer
# Strings of one tensor: each is a Python object, of which the runtimes make others, all at once and with the lock held.
MOST_TEXTS = 1 << 16
MOST_TEXT_BYTES = 4 << 20  # of one text, as JSON
MOST_BYTES_OF_TEXTS = 8 << 20  # of all texts of a request, as JSON, for the same reason
MOST_ELEMENTS = 2**31 - 1
FEW = 256  # elements whose types are looked at as fast as their values

_NESTED = re.compile(rb"\[\s*+\[")
_SPACE = b" \t\r\n"
_TO_SPACES = bytes.maketrans(b"[]", b"  ")
_TO_QUOTES = bytes(code if code in b"[]," else ord('"') for code in range(256))
_EMPTY = b"[]," + _SPACE


class ElementsError(Exception):
    """The elements that the client sent do not fit the tensor. The message follows the tensor's name."""


class Span(NamedTuple):
    """The text of an array, with its brackets, within a request's body."""

    body: bytes | bytearray
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Size of the text in bytes."""
        return self.stop - self.start


class _Kind(NamedTuple):
    """How elements are written: their name in messages, the characters that they may contain (of a string, only the quote), and their types
    after orjson."""

    called: str
    letters: bytes
    types: frozenset[type]


_FLOATS = _Kind("numbers", b"0123456789+-.eE" + _SPACE, frozenset({int, float}))
_WHOLE = _Kind("integers without a decimal point or exponent", b"0123456789-" + _SPACE, frozenset({int}))
_FLAGS = _Kind("true or false", b"truefals" + _SPACE, frozenset({bool}))
_TEXTS = _Kind("strings", b'"' + _SPACE, frozenset({str}))
_KINDS = {"FP": _FLOATS, "BF": _FLOATS, "IN": _WHOLE, "UI": _WHOLE, "BO": _FLAGS, "BY": _TEXTS}
numpy_type = functools.cache(numpy_dtype)


def take(values: list[Any], dtype: str, shape: Sequence[int], *, flags: bool = True) -> Array:
    """The array of `shape` from elements of a small body that was parsed as a whole. `flags`: whether true and false may be among them.

    Raises ElementsError like `read`.
    """
    count, flat, size = math.prod(shape), values, 1
    for axis in range(len(shape) if values and type(values[0]) is list else 0):
        size *= shape[axis]
        if len(flat) != size:
            raise _otherwise(shape)
        if axis + 1 < len(shape):
            if set(map(type, flat)) > {list} or set(map(len, flat)) - {shape[axis + 1]}:
                raise _otherwise(shape)
            flat = list(itertools.chain.from_iterable(flat))
    if len(flat) != count:
        raise ElementsError(f"shape {list(shape)} needs {count} elements, found {len(flat)}")
    return _converted(flat, dtype, flags).reshape(shape)


def read(span: Span, dtype: str, shape: Sequence[int]) -> Array:
    """The array of `shape` from the elements in `span`, which are flat or nested like the shape. The memory is proportional to the text.

    Raises ElementsError for a wrong number of elements, a wrong type or nesting, or values that do not fit the type.
    """
    count, room, kind = math.prod(shape), span.size, _KINDS[dtype[:2]]
    if count > room // 2:  # an element takes a character at least, and a comma or bracket
        raise ElementsError(f"shape {list(shape)} needs {count} elements, more than data can contain")
    if kind is _TEXTS and count > MOST_TEXTS:
        raise ElementsError(f"expected at most {MOST_TEXTS} strings in a tensor, found shape {list(shape)}")
    nested = _NESTED.match(*span) is not None
    expected = _skeleton(shape if nested else (count,), room)
    array = np.empty(count, numpy_dtype(dtype))
    place = filled = 0
    for piece in _pieces(span, kind):
        skeleton = piece.structure.translate(None, kind.letters)
        if not expected.startswith(skeleton, place):
            raise _misfit(piece, skeleton, dtype, shape, None if nested else filled)
        # Had a number been true or false, the skeleton would have told.
        elements = _converted(_values(piece, dtype, nested), dtype, flags=False)
        if filled + elements.size > count:
            raise ElementsError(f"shape {list(shape)} needs {count} elements, found more")
        array[filled : filled + elements.size] = elements
        place, filled = place + len(skeleton), filled + elements.size
    if place != len(expected) or filled != count:
        raise ElementsError(f"shape {list(shape)} needs {count} elements, found {filled}")
    return array.reshape(shape)


def _skeleton(form: Sequence[int], room: int) -> bytes:
    """The brackets and commas of an array nested like `form`. Raises ElementsError if they do not fit into `room` bytes."""
    text = b""
    for size in reversed(form):
        if 2 + size * (len(text) + 1) - 1 > room:
            raise _otherwise(form)
        text = b"".join((b"[", (text + b",") * (size - 1), text * min(size, 1), b"]"))
    return text


def _otherwise(shape: Sequence[int]) -> ElementsError:
    return ElementsError(f"the nesting of data does not match its shape {list(shape)}")


def _misfit(piece: _Piece, skeleton: bytes, dtype: str, shape: Sequence[int], flat: int | None) -> ElementsError:
    """The error in a piece whose brackets and commas are not the expected ones. `flat`: number of elements before it, if the data is flat."""
    if skeleton.translate(None, b"[],"):
        return ElementsError(f"the elements of data do not fit {dtype}: expected {_KINDS[dtype[:2]].called}")
    if flat is None or b"[" in skeleton[1:] or b"]" in skeleton[:-1]:
        return _otherwise(shape)
    count = flat + skeleton.count(b",") + bool(piece.last and piece.text.translate(None, _EMPTY))
    more = "" if piece.last else " and more"
    return ElementsError(f"shape {list(shape)} needs {math.prod(shape)} elements, found {count}{more}")


# --------------------------------------------------------------------------------------------------------------- text to array


class _Piece(NamedTuple):
    """Some complete elements. `parts`: the text outside and inside of strings, alternating; escapes are blanked out."""

    text: bytes
    parts: list[bytes]
    last: bool

    @property
    def structure(self) -> bytes:
        """The text, with each string replaced by one quote."""
        return b'"'.join(self.parts[::2]) if len(self.parts) > 1 else self.text


def without_escapes(text: bytes) -> bytes:
    r"""`text` with \\ and \" blotted out, so that every quote left begins or ends a string. It stays as long as it was."""
    return text.replace(rb"\\", b"__").replace(rb"\"", b"__") if b"\\" in text else text


def _pieces(span: Span, kind: _Kind) -> Iterator[_Piece]:
    """The text in pieces that end after a comma outside of strings."""
    at, width = span.start, PIECE
    while at < span.stop:
        text = bytes(span.body[at : min(at + width, span.stop)])
        parts = without_escapes(text).split(b'"') if kind is _TEXTS else [text]
        if at + len(text) == span.stop:
            yield _Piece(text, parts, last=True)
            return
        piece = _cut(text, parts)
        if piece is not None:
            yield piece
            at, width = at + len(piece.text), PIECE
        elif width < MOST_TEXT_BYTES:
            width *= 2
        else:
            raise ElementsError(f"one element of data takes more than {MOST_TEXT_BYTES} bytes")


def _cut(text: bytes, parts: list[bytes]) -> _Piece | None:
    """The text up to the last comma outside of strings; None if there is no such comma."""
    stop = len(text)
    for index in range(len(parts) - 1, -1, -1):
        start = stop - len(parts[index])
        comma = parts[index].rfind(b",") if index % 2 == 0 else -1
        if comma >= 0:
            return _Piece(text[: start + comma + 1], [*parts[:index], parts[index][: comma + 1]], last=False)
        stop = start - 1
    return None


def _values(piece: _Piece, dtype: str, nested: bool) -> list[Any]:
    text = piece.text.strip(_EMPTY)
    if nested:
        bare = piece.structure.translate(_TO_QUOTES, _SPACE)
        if b'"[' in bare or b']"' in bare:
            raise ElementsError("data is not valid JSON: missing comma next to a bracket")
        text = _flat(piece)
    return _loads(b"[%b]" % text, dtype)


def _loads(text: bytes, dtype: str) -> list[Any]:
    try:
        values: list[Any] = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ElementsError(f"data is not a list of {dtype}: {error.msg}") from error
    return values


def _flat(piece: _Piece) -> bytes:
    """The elements without the brackets around them. Brackets in strings are kept."""
    place, rows = 0, []
    for index, part in enumerate(piece.parts):
        row = piece.text[place : place + len(part)]
        rows.append(row if index % 2 else row.translate(_TO_SPACES))
        place += len(part) + 1
    return b'"'.join(rows).strip(_EMPTY)


# How `struct` writes numbers. It is three times as fast as numpy, and as strict, but for true and false, which it takes for 1 and 0.
_LETTERS = {"FP32": "f", "FP64": "d", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"}
_LETTERS |= {"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"}


@functools.lru_cache(256)
def _packing(dtype: str, count: int) -> struct.Struct | None:
    """How `struct` writes so many elements; None where it does not."""
    letter = _LETTERS.get(dtype)
    return None if letter is None else struct.Struct(f"={count}{letter}")


def _converted(flat: list[Any], dtype: str, flags: bool) -> Array:
    """The elements in their data type. Values that do not fit it are refused, except that floats may lose digits.

    `flags`: whether true and false may be among them.
    """
    packing = _packing(dtype, len(flat))
    if packing is not None:
        array: Array = np.empty(len(flat), numpy_type(dtype))
        try:
            packing.pack_into(array.data, 0, *flat)
        except (struct.error, OverflowError):
            return _bent(flat, dtype)  # which says what is wrong
        if not flags or (len(flat) > FEW and not ((array == 0) | (array == 1)).any()):
            return array
        if bool not in set(map(type, flat)):
            return array
    return _bent(flat, dtype)


def _bent(flat: list[Any], dtype: str) -> Array:
    """Like `_converted`, by numpy. Each element is checked first, because numpy would accept some wrong types."""
    kind = _KINDS[dtype[:2]]
    target = numpy_type(dtype)
    if not kind.types.issuperset(map(type, flat)):
        raise _odd(flat, dtype)
    if kind is not _FLOATS:
        try:
            return np.array(flat, target)
        except OverflowError as error:
            limits = np.iinfo(target)
            odd = next(value for value in flat if not limits.min <= value <= limits.max)
            raise ElementsError(f"data contains values that do not fit {dtype}: {odd}") from error
    try:
        with np.errstate(over="raise"):
            return np.array(flat, target) if dtype != "BF16" else _bfloat16(flat, target)
    except FloatingPointError as error:
        with np.errstate(over="ignore"):
            odd = next(value for value in flat if not np.isfinite(np.float64(value).astype(target)))
        raise ElementsError(f"data contains values that do not fit {dtype}: {odd}") from error


def _bfloat16(flat: list[Any], target: np.dtype[Any]) -> Array:
    """Convert to bfloat16 and check for overflow: ml_dtypes, which adds this type to numpy, does not report it."""
    array: Array = np.array(flat, np.float64).astype(target)
    if not np.isfinite(array).all():
        raise FloatingPointError
    return array


def _odd(flat: list[Any], dtype: str) -> ElementsError:
    kind = _KINDS[dtype[:2]]
    value = next(value for value in flat if type(value) not in kind.types)
    # orjson makes floats of whole numbers beyond 64 bits.
    if kind is _WHOLE and type(value) is float and abs(value) >= 2**63:
        return ElementsError(f"data contains values that do not fit {dtype}: {value}")
    return ElementsError(f"the elements of data do not fit {dtype}: expected {kind.called}")


# --------------------------------------------------------------------------------------------------------------- array to text


def write(array: Array, dtype: str) -> list[bytes]:
    """The elements as a flat JSON array, in parts to be joined. NaN and infinities become null, because JSON cannot represent them.

    Raises RuntimeFailure (OutputsInvalid) for a string that is not valid UTF-8.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    step = TEXTS_AT_ONCE if dtype == "BYTES" else NUMBERS_AT_ONCE
    if flat.size <= step:
        return [_written(flat, dtype)]
    parts = [b"["]
    for at in range(0, flat.size, step):
        parts += (_written(flat[at : at + step], dtype)[1:-1], b",")
    return [*parts[:-1], b"]"]


def write_nested(array: Array, dtype: str) -> list[bytes]:
    """The elements as JSON arrays nested like the shape, in parts to be joined; a scalar is just its element. Otherwise like `write`."""
    if array.ndim < 2:
        written = write(array, dtype)
        return written if array.ndim else [b"".join(written)[1:-1]]
    step = 1 if dtype == "BYTES" else NUMBERS_AT_ONCE // max(1, math.prod(array.shape[1:]))
    parts = [b"["]
    step = max(1, step) if array.size else 1
    for at in range(0, len(array), step):
        if step > 1:
            parts += (_written(np.ascontiguousarray(array[at : at + step]), dtype)[1:-1], b",")
        else:
            parts += (*write_nested(array[at], dtype), b",")
    return [*parts[: max(1, len(parts) - 1)], b"]"]


def _written(flat: Array, dtype: str) -> bytes:
    if dtype != "BYTES":
        return orjson.dumps(
            flat.astype(np.float32) if dtype in ("BF16", "FP16") else flat, option=orjson.OPT_SERIALIZE_NUMPY
        )
    try:
        return orjson.dumps([value.decode() if isinstance(value, bytes) else str(value) for value in flat.tolist()])
    except (UnicodeDecodeError, orjson.JSONEncodeError) as error:
        message = f"an output string is not valid UTF-8, which JSON requires: {error}"
        raise RuntimeFailure(message, reason=Reason.OUTPUTS_INVALID) from error
