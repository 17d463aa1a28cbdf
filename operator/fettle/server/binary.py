"""The elements of one tensor as bytes, as HTTP's binary extension and gRPC's raw contents carry them.

Row by row, little endian, without gaps; BOOL is a byte of 0 or 1, and each string of BYTES stands behind its length of four bytes.
Source: the "binary tensor data" extension, https://github.com/triton-inference-server/server (docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fettle.runtimes.base import Array
from fettle.server.elements import MOST_BYTES_OF_TEXTS, MOST_TEXTS, ElementsError, numpy_type

_LENGTH = struct.Struct("<I")


class Raw(NamedTuple):
    """A tensor's bytes within those of its request."""

    view: memoryview

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return len(self.view)


def read(raw: Raw, dtype: str, shape: Sequence[int]) -> Array:
    """The array of `shape`. It shares the request's bytes, except for strings and where they do not lie as the type needs it.

    Raises ElementsError: another number of bytes than type and shape need, or values that are none of the type.
    """
    count = math.prod(shape)
    if dtype == "BYTES":
        return _texts(raw.view, count, shape)
    target = numpy_type(dtype)
    if raw.size != count * target.itemsize:
        needed = count * target.itemsize
        raise ElementsError(f"shape {list(shape)} of {dtype} needs {needed} bytes, found {raw.size}")
    if dtype == "BOOL" and count and np.frombuffer(raw.view, np.uint8).max() > 1:
        raise ElementsError("the elements of BOOL must be bytes of 0 or 1")
    array = np.frombuffer(raw.view, target)
    # Where a tensor begins depends on the text before it. The runtimes read whole vectors from addresses that fit their type.
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def _texts(view: memoryview, count: int, shape: Sequence[int]) -> Array:
    if count > MOST_TEXTS:
        raise ElementsError(f"expected at most {MOST_TEXTS} strings in a tensor, found shape {list(shape)}")
    if len(view) > MOST_BYTES_OF_TEXTS:
        raise ElementsError(f"expected at most {MOST_BYTES_OF_TEXTS} bytes of strings, found {len(view)}")
    array = np.empty(count, object)
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(view, at)[0] if start <= len(view) else start
        if at > len(view):
            raise ElementsError(
                f"shape {list(shape)} needs {count} strings, found {index} and {len(view)} bytes in all"
            )
        array[index] = text_of(view[start:at], index)
    if at != len(view):
        raise ElementsError(f"shape {list(shape)} needs {count} strings of {at} bytes in all, found {len(view)} bytes")
    return array.reshape(shape)


def text_of(content: memoryview | bytes, index: int) -> str:
    """An element of BYTES as the runtimes take it. Raises ElementsError where it is no UTF-8."""
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise ElementsError(f"string {index} is not valid UTF-8: {error.reason} at byte {error.start}") from error


def encoded(array: Array) -> list[bytes]:
    """The elements of a BYTES array as bytes."""
    return [value if isinstance(value, bytes) else str(value).encode() for value in array.reshape(-1).tolist()]


def write(array: Array, dtype: str) -> Array | bytes:
    """The elements' bytes, as an object that can be joined with others: of numbers a view, which copies nothing."""
    if dtype == "BYTES":
        return b"".join(part for text in encoded(array) for part in (_LENGTH.pack(len(text)), text))
    return np.ascontiguousarray(array, numpy_type(dtype)).reshape(-1).view(np.uint8)
