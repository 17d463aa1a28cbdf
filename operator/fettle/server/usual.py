"""Requests and answers in JSON as nearly all are: small, the signature's inputs in their order, each with a name, a type, a shape and data, and
nothing else; all outputs, and they numbers.

It does it all or nothing. What it does not take as it stands, the codec looks at part by part, and says what is wrong with it; what it takes, the
codec would take as well, and make the same of it. Small requests spend half of their time on questions that are not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from fettle.api.signature import Signature, Tensor
from fettle.runtimes.base import Array
from fettle.server import elements
from fettle.server.elements import ElementsError
from fettle.server.request import InferRequest

_INTEGERS = {int}
_NUMBERS = frozenset(("FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"))


def read(body: bytes | bytearray, signature: Signature, max_rows: int) -> InferRequest | None:
    """The request that a small body is; None where it has to be looked at more closely."""
    if len(body) > elements.PIECE:
        return None
    flags = b"true" in body or b"false" in body  # a search of the text is ten times as fast as one of types
    try:
        document = orjson.loads(body)
        entries, identity = document["inputs"], document.get("id")
        if len(document) > 1 and (len(document) > 2 or type(identity) is not str):
            return None
        if len(entries) != len(signature.inputs):
            return None
        rows, inputs = 0, {}
        for tensor, entry in zip(signature.inputs, entries, strict=True):
            shape, data = entry["shape"], entry["data"]
            if entry["name"] != tensor.name or entry["datatype"] != tensor.dtype or len(entry) != 4:
                return None
            if type(data) is not list or type(shape) is not list or not {*map(type, shape)} <= _INTEGERS:
                return None
            known = rows_with(tensor, shape, rows, max_rows)
            if known is None:
                return None
            rows = known
            inputs[tensor.name] = elements.take(data, tensor.dtype, shape, flags=flags)
    except (AttributeError, KeyError, TypeError, orjson.JSONDecodeError, ElementsError):
        return None
    return InferRequest(inputs, rows or 1, None, identity)


def rows_with(tensor: Tensor, shape: list[int], rows: int, max_rows: int) -> int | None:
    """The rows of a request with an input of this shape. `rows`: of its inputs before that, 0 where none has a batch axis. None where these are not
    the signature's sizes, or any where they may vary, or there are more rows than allowed or others than before."""
    expected, batch = tensor.shape, tensor.batch_axis
    if len(shape) != len(expected):
        return None
    for axis, size in enumerate(shape):  # a generator costs twice as much, with every request
        if size < 1 or (size != expected[axis] != -1 and axis != batch):  # beside a 0, another may be of any size
            return None
    if batch is None:
        return rows
    size = shape[batch]
    return size if size <= max_rows and rows in (0, size) else None


def write(
    model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
) -> bytes | None:
    """The answer; None where there is more to it than all outputs, as numbers, at once."""
    if request.outputs is not None or request.binary:
        return None
    rows, size = [], 0
    for tensor in signature.outputs:
        array = outputs[tensor.name]
        size += array.size
        if tensor.dtype not in _NUMBERS or size > elements.NUMBERS_AT_ONCE or not array.flags.c_contiguous:
            return None
        rows.append({"name": tensor.name, "datatype": tensor.dtype, "shape": array.shape, "data": array.reshape(-1)})
    document = {"model_name": model, "model_version": version, "id": request.id, "outputs": rows}
    if request.id is None:
        del document["id"]
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
