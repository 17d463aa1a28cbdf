"""Weights beside the model's file: which part of which file a tensor is.

https://onnx.ai/onnx/repo-docs/ExternalData.html: `offset` and `length` may be absent. What a tensor takes follows from its data type
and dimensions; a length that is given has to say the same, and the file has to hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx

from fettle.api.reasons import Reason
from fettle.errors import SourceError

# Types whose elements are packed, and the bits of one.
_SMALL = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_NO_BYTES = ("UNDEFINED", "STRING")


@dataclass(frozen=True)
class Part:
    """Bytes `offset` to `offset + length` of the file at `location`, which is relative to the model's folder."""

    location: str
    offset: int
    length: int


def part(tensor: onnx.TensorProto, folder: Path) -> Part:
    """What `tensor` takes of a file in `folder`. Raises SourceError (SourceCorrupted) where that cannot be, naming file and tensor."""
    stated = {entry.key: entry.value for entry in tensor.external_data}
    location = stated.get("location", "")
    where = f"{location}: the tensor {tensor.name!r}"
    needed = _bytes_of(tensor, where)
    offset, length = _number(stated, "offset", where), _number(stated, "length", where) or needed
    if length != needed:
        shape = f"{type_name(tensor.data_type)} {list(tensor.dims)}"
        raise _corrupted(f"{where} is {shape} and needs {needed} bytes, but its length is {length}")
    size = (folder / location).stat().st_size
    if offset + length > size:
        raise _corrupted(
            f"{where} needs {length} bytes from byte {offset}, but the file has {size}: it was truncated, or belongs to another model"
        )
    return Part(location, offset, length)


def take_in(tensor: onnx.TensorProto, stored: Part, folder: Path) -> None:
    """Put the bytes into the tensor itself."""
    with (folder / stored.location).open("rb") as stream:
        stream.seek(stored.offset)
        tensor.raw_data = stream.read(stored.length)
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def state(tensor: onnx.TensorProto, stored: Part) -> None:
    """Say offset and length in the tensor: libraries that read it later take what is absent to be the rest of the file."""
    del tensor.external_data[:]
    for key, value in (("location", stored.location), ("offset", str(stored.offset)), ("length", str(stored.length))):
        tensor.external_data.add(key=key, value=value)


def _bytes_of(tensor: onnx.TensorProto, where: str) -> int:
    kind = type_name(tensor.data_type)
    if kind in _NO_BYTES or any(size < 0 for size in tensor.dims):
        raise _corrupted(f"{where} is {kind} {list(tensor.dims)}, which cannot be stored in an external file")
    bits = _SMALL.get(kind) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return -(-math.prod(map(int, tensor.dims)) * int(bits) // 8)


def type_name(number: int) -> str:
    """Name of a data type of ONNX: 'FLOAT'; 'UNDEFINED' also for a number that is none."""
    known = onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(number)) if number in known else "UNDEFINED"


def _number(stated: dict[str, str], key: str, where: str) -> int:
    text = stated.get(key) or "0"
    if not (text.isascii() and text.isdigit()):
        raise _corrupted(f"{where}: expected {key} as a number of bytes, found {text!r}")
    return int(text)


def _corrupted(message: str) -> SourceError:
    return SourceError(message, reason=Reason.SOURCE_CORRUPTED)
