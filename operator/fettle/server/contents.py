"""The elements of one tensor in the protobuf form of gRPC's typed contents: a field for each group of types, its numbers packed.

They are read where they lie on the wire, floats without a copy and whole numbers a piece at a time: as protobuf's own lists they would take eight
times the memory, and each would become a Python object on its way to numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fettle.runtimes.base import Array
from fettle.server.binary import encoded, text_of
from fettle.server.elements import MOST_BYTES_OF_TEXTS, MOST_TEXTS, NUMBERS_AT_ONCE, ElementsError, numpy_type
from fettle.server.inference_pb2 import InferTensorContents
from fettle.server.wire import BYTES, FIXED32, FIXED64, MOST_FIELDS, VARINT, WireError, field_head, fields

PIECE = 1 << 16  # bytes of whole numbers that are worked on at a time
_LONGEST = 10  # bytes of a varint
_FIELDS = {"BOOL": 1, "INT64": 3, "UINT64": 5, "FP32": 6, "FP64": 7, "BYTES": 8}
_FIELDS |= dict.fromkeys(("INT8", "INT16", "INT32"), 2) | dict.fromkeys(("UINT8", "UINT16", "UINT32"), 4)
_NAMES = {number: field.name for number, field in InferTensorContents.DESCRIPTOR.fields_by_number.items()}
_UNPACKED = {"FP32": FIXED32, "FP64": FIXED64}  # types of fields on the wire of elements that are not packed


def has_field(dtype: str) -> bool:
    """Whether contents have a field for the type; FP16 and BF16 only go as bytes."""
    return dtype in _FIELDS


def read(parts: Sequence[memoryview], dtype: str, shape: Sequence[int]) -> Array:
    """The array of `shape` of the messages InferTensorContents `parts`, which together are one.

    Raises ElementsError: another number of elements, another type, or values that do not fit it.
    """
    if not has_field(dtype):
        raise ElementsError(f"{dtype} has no field in contents: send raw_input_contents")
    count = math.prod(shape)
    if dtype == "BYTES":
        array: Array = _texts(parts, count, shape)
    elif dtype in _UNPACKED:
        array = _floats(_joined(parts, dtype), dtype, count, shape)
    else:
        array = _whole(_joined(parts, dtype), dtype, count, shape)
    return array.reshape(shape)


def _elements(parts: Sequence[memoryview], dtype: str) -> Iterator[memoryview]:
    """The values of the one field that the type has: many elements each where they are packed, else one."""
    expected = _FIELDS[dtype]
    kinds = (BYTES,) if dtype == "BYTES" else (BYTES, _UNPACKED.get(dtype, VARINT))
    seen = 0
    try:
        for part in parts:
            for field in fields(part):
                if field.number != expected or field.kind not in kinds:
                    found = _NAMES.get(field.number, f"field {field.number}")
                    raise ElementsError(f"the contents of {dtype} go into {_NAMES[expected]}, found {found}")
                seen += 1
                if seen > (MOST_TEXTS if dtype == "BYTES" else MOST_FIELDS):
                    raise _too_many(dtype)
                yield part[field.value : field.stop]
    except WireError as error:
        raise ElementsError(str(error)) from error


def _too_many(dtype: str) -> ElementsError:
    if dtype == "BYTES":
        return ElementsError(f"expected at most {MOST_TEXTS} strings in a tensor")
    return ElementsError(f"expected at most {MOST_FIELDS} fields in contents: pack their elements")


def _joined(parts: Sequence[memoryview], dtype: str) -> memoryview | bytes:
    found = list(_elements(parts, dtype))
    return found[0] if len(found) == 1 else b"".join(found)


def _require_count(count: int, found: int, shape: Sequence[int]) -> None:
    if count != found:
        raise ElementsError(f"shape {list(shape)} needs {count} elements, found {found}")


def _floats(content: memoryview | bytes, dtype: str, count: int, shape: Sequence[int]) -> Array:
    target = numpy_type(dtype)
    if len(content) % target.itemsize:
        raise ElementsError(f"{len(content)} bytes are not a multiple of the size of {dtype}")
    _require_count(count, len(content) // target.itemsize, shape)
    array = np.frombuffer(content, target)
    return array if array.flags.aligned else array.copy()


def _whole(content: memoryview | bytes, dtype: str, count: int, shape: Sequence[int]) -> Array:
    octets = np.frombuffer(content, np.uint8)
    if octets.size and octets[-1] >= 128:
        raise ElementsError("the last number of contents does not end")
    _require_count(count, int(np.count_nonzero(octets < 128)), shape)  # the last byte of each is below 128
    array = np.empty(count, numpy_type(dtype))
    at = filled = 0
    while at < octets.size:
        stop = min(at + PIECE, octets.size)
        ends = np.flatnonzero(octets[max(at, stop - _LONGEST) : stop] < 128)
        if not ends.size:
            raise ElementsError(f"a number of contents takes more than {_LONGEST} bytes")
        stop = max(at, stop - _LONGEST) + int(ends[-1]) + 1
        values = _fitting(_varints(octets[at:stop]), dtype)
        array[filled : filled + values.size] = values
        at, filled = stop, filled + values.size
    return array


def _varints(octets: Array) -> Array:
    """Unsigned 64-bit numbers. Source: https://protobuf.dev/programming-guides/encoding/#varints."""
    ends = np.flatnonzero(octets < 128)
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    longest = int(sizes.max())
    if longest > _LONGEST:
        raise ElementsError(f"a number of contents takes more than {_LONGEST} bytes")
    values: Array = (octets[starts] & 127).astype(np.uint64)
    for place in range(1, longest):
        longer = np.flatnonzero(sizes > place)
        values[longer] |= (octets[starts[longer] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
    return values


def _fitting(values: Array, dtype: str) -> Array:
    if dtype == "BOOL":
        truths: Array = values != 0
        return truths
    limits = np.iinfo(numpy_type(dtype))
    signed = values.view(np.int64) if limits.min < 0 else values
    odd = signed[(signed < limits.min) | (signed > limits.max)]
    if odd.size:
        raise ElementsError(f"contents have values that do not fit {dtype}: {odd[0]}")
    return signed


def _texts(parts: Sequence[memoryview], count: int, shape: Sequence[int]) -> Array:
    size = sum(map(len, parts))
    if size > MOST_BYTES_OF_TEXTS:
        raise ElementsError(f"expected at most {MOST_BYTES_OF_TEXTS} bytes of strings, found {size}")
    found = [text_of(content, index) for index, content in enumerate(_elements(parts, "BYTES"))]
    _require_count(count, len(found), shape)
    array = np.empty(count, object)
    array[:] = found
    return array


def write(array: Array, dtype: str) -> list[Array | bytes]:
    """The message InferTensorContents, in parts to be joined."""
    number = _FIELDS[dtype]
    if dtype == "BYTES":
        return [part for text in encoded(array) for part in (field_head(number, len(text)), text)]
    flat = np.ascontiguousarray(array, numpy_type(dtype)).reshape(-1)
    if dtype in _UNPACKED or dtype == "BOOL":
        return [field_head(number, flat.nbytes), flat.view(np.uint8)]
    pieces = (flat[at : at + NUMBERS_AT_ONCE].tolist() for at in range(0, flat.size, NUMBERS_AT_ONCE))
    return [InferTensorContents(**{_NAMES[number]: piece}).SerializeToString() for piece in pieces]
