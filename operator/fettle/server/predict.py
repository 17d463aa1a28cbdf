"""The V1 protocol of TensorFlow Serving and KServe over HTTP: `instances`, a list of items, or `inputs`, a batch for each input.

It names no types and no shapes: those are the signature's, and the nesting of what was sent.
Source: https://www.tensorflow.org/tfx/serving/api_rest.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from fettle.api.signature import Signature, Tensor
from fettle.runtimes.base import Array
from fettle.server import elements
from fettle.server.checks import count_rows, invalid, require_shape, said, unfit
from fettle.server.elements import PIECE, ElementsError, Span
from fettle.server.envelope import EnvelopeError, split
from fettle.server.request import InferRequest

ROWS, COLUMNS = "instances", "inputs"
_BASE64 = "b64"


class Predict:
    """The codec of one request and its answer, which has the form of the request: rows or columns."""

    __slots__ = ("json_size", "rows")

    def __init__(self) -> None:
        self.rows = False
        self.json_size: int | None = None  # of the V2 protocol; this one has no bytes behind its JSON

    def decode(self, body: bytes | bytearray, signature: Signature, max_rows: int) -> InferRequest:
        """Decode and check a request body against the signature. Raises RequestError INVALID."""
        if len(body) > PIECE:
            _require_plain(signature)
        form = ROWS if b'"instances"' in body[:PIECE] else COLUMNS
        try:
            document, spans = split(body, f'"{form}"'.encode())
        except EnvelopeError as error:
            raise invalid(str(error)) from error
        if not isinstance(document, dict) or (ROWS in document) == (COLUMNS in document):
            raise invalid('expected an object with either "instances" or "inputs"')
        self.rows = ROWS in document
        if self.rows:
            _require_items(signature)
        values = document[ROWS if self.rows else COLUMNS]
        if isinstance(values, str) and values in spans:
            arrays = _large(signature, spans[values])
        elif spans:
            raise invalid(f'"{form}" must occur only once in a request')
        else:
            given = _columns_of(values, signature) if self.rows else _named(values, signature)
            arrays = {tensor.name: _array(tensor, given[tensor.name], self.rows) for tensor in signature.inputs}
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        return InferRequest(arrays, count_rows(signature, shapes, max_rows), None, None)

    def encode(
        self, model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
    ) -> bytes:
        """The response body. NaN and infinities become null. Raises RuntimeFailure for a text that is no UTF-8."""
        self.json_size = None
        arrays = {tensor.name: (tensor, outputs[tensor.name]) for tensor in signature.outputs}
        if not self.rows:
            return b"".join((b'{"outputs":', *_object(arrays), b"}"))
        rows = {
            name: (tensor, np.moveaxis(array, tensor.batch_axis or 0, 0)) for name, (tensor, array) in arrays.items()
        }
        if len(rows) == 1:
            return b"".join((b'{"predictions":', *_object(rows), b"}"))
        parts: list[bytes] = [b'{"predictions":[']
        for row in range(request.rows):
            parts += (*_object({name: (tensor, array[row, ...]) for name, (tensor, array) in rows.items()}), b",")
        parts[-1] = b"]}"
        return b"".join(parts)


def _object(arrays: Mapping[str, tuple[Tensor, Array]]) -> list[bytes]:
    """Values by name; of one alone the value."""
    parts: list[bytes] = []
    for name, (tensor, array) in arrays.items():
        parts += (b"," if parts else b"{", orjson.dumps(name), b":", *elements.write_nested(array, tensor.dtype))
    return parts[3:] if len(arrays) == 1 else [*parts, b"}"]


def _require_items(signature: Signature) -> None:
    if not signature.batchable:
        raise invalid(
            'this model has no batch axis, so "instances" is not supported: send "inputs", or use the V2 protocol'
        )


def _require_plain(signature: Signature) -> None:
    """A large body is not read as a whole, so its shape must follow from the model's."""
    tensor = signature.inputs[0]
    if len(signature.inputs) > 1 or tensor.batch_axis != 0 or -1 in tensor.shape[1:] or tensor.dtype == "BYTES":
        message = f"a request of more than {PIECE} bytes is not supported by the V1 protocol for this model: use the V2 protocol"
        raise invalid(f"{message}, which has more inputs than one, strings, or items of no fixed shape")


def _large(signature: Signature, span: Span) -> dict[str, Array]:
    """The one input of a large request; its shape follows from that of an item and from how often something is closed."""
    tensor = signature.inputs[0]
    item = tensor.shape[1:]
    closed = span.body.count(b"]" if item else b",", span.start, span.stop)
    per_item = sum(math.prod(item[:axis]) for axis in range(len(item)))  # brackets
    shape = [(closed - 1) // max(1, per_item) if item else closed + 1, *item]
    require_shape(tensor, tensor.dtype, shape)
    try:
        return {tensor.name: elements.read(span, tensor.dtype, shape)}
    except ElementsError as error:
        raise unfit(tensor, error) from error


def _named(values: Any, signature: Signature) -> dict[str, Any]:
    """What was sent for each input. A model's only input needs no name."""
    expected = [tensor.name for tensor in signature.inputs]
    is_text = isinstance(values, dict) and values.keys() == {_BASE64} and _BASE64 not in expected
    if not isinstance(values, dict) or is_text:
        if len(expected) == 1:
            return {expected[0]: values}
        raise invalid(f"expected an object with the inputs {expected}")
    if values.keys() != set(expected):
        raise invalid(f"expected the inputs {expected}, found {said(list(values))}")
    return values


def _columns_of(items: Any, signature: Signature) -> dict[str, list[Any]]:
    """The items' values by input."""
    if not isinstance(items, list) or not items:
        raise invalid('"instances" must be a list of at least one item')
    rows = [_named(item, signature) for item in items]
    return {tensor.name: [row[tensor.name] for row in rows] for tensor in signature.inputs}


def _array(tensor: Tensor, values: Any, are_items: bool) -> Array:
    """`values`: the tensor, or a list of its items, which `batch_axis` then becomes of."""
    rank, axis = len(tensor.shape), tensor.batch_axis or 0
    if tensor.dtype == "BYTES":
        values = _texts(values, rank, tensor.name)
    shape = _form(values, rank, tensor.name)
    own = [*shape[1 : axis + 1], shape[0], *shape[axis + 1 :]] if are_items and shape else shape
    require_shape(tensor, tensor.dtype, own)
    try:
        array = elements.take(values if rank else [values], tensor.dtype, shape)
    except ElementsError as error:
        raise unfit(tensor, error) from error
    return np.ascontiguousarray(np.moveaxis(array, 0, axis)) if are_items and rank else array


def _form(values: Any, rank: int, name: str) -> list[int]:
    """The shape by the first elements of each list; whether the others have it as well is seen when they are read."""
    shape: list[int] = []
    for _ in range(rank):
        if not isinstance(values, list):
            raise invalid(f"input {name}: expected lists nested {rank} deep, found {len(shape)}")
        shape.append(len(values))
        values = values[0] if values else []
    if isinstance(values, list) and 0 not in shape:
        raise invalid(f"input {name}: expected lists nested {rank} deep, found more")
    return shape


def _texts(values: Any, depth: int, name: str) -> Any:
    """`values`, in which `{"b64": …}` became the text that it encodes."""
    if isinstance(values, list) and depth:
        return [_texts(value, depth - 1, name) for value in values]
    if not isinstance(values, dict) or values.keys() != {_BASE64}:
        return values
    try:
        return base64.b64decode(values[_BASE64], validate=True).decode()
    except (TypeError, ValueError, binascii.Error) as error:
        raise invalid(f'input {name}: "b64" must be UTF-8 text in base64: {said(error)}') from error
