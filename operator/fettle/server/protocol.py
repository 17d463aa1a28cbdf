"""Open Inference Protocol V2 over JSON: bytes to arrays and back, with errors that say which input and what was expected.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from fettle.api.signature import Signature, Tensor
from fettle.api.text import clip
from fettle.runtimes.base import Array
from fettle.server import elements, usual
from fettle.server.elements import ElementsError, Span
from fettle.server.envelope import EnvelopeError, split
from fettle.server.request import Code, InferRequest, RequestError

MOST_SAID = 300  # bytes of what a client wrote that an error repeats


def decode(body: bytes | bytearray, signature: Signature, max_rows: int) -> InferRequest:
    """Decode and check a request body against the signature. Raises RequestError INVALID."""
    request = usual.read(body, signature, max_rows)
    if request is not None:
        return request
    try:
        document, spans = split(body)
    except EnvelopeError as error:
        raise _invalid(str(error)) from error
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise _invalid('expected an object with a list "inputs"')
    entries = document["inputs"]
    expected = [tensor.name for tensor in signature.inputs]
    if len(entries) > len(expected):
        raise _invalid(f"expected the inputs {expected}, found {len(entries)} inputs")
    given = {_name(entry, "input"): entry for entry in entries}
    if given.keys() != set(expected):
        names = _said([entry["name"] for entry in entries])
        raise _invalid(f"expected the inputs {expected}, found {names}")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise _invalid('"id" must be a string')
    outputs = _outputs(document, signature)
    shapes = {tensor.name: _shape(tensor, given[tensor.name]) for tensor in signature.inputs}
    rows = _rows(signature, shapes, max_rows)
    data = {tensor.name: _data(tensor, given[tensor.name], spans) for tensor in signature.inputs}
    if spans:
        _check_texts(signature, data)
    inputs = {tensor.name: _array(tensor, shapes[tensor.name], data[tensor.name]) for tensor in signature.inputs}
    return InferRequest(inputs, rows, outputs, identity)


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID, message)


def _said(value: Any) -> str:
    """What a client wrote, as far as it needs to be repeated."""
    return clip(str(value), MOST_SAID)


def _name(entry: Any, what: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise _invalid(f'each {what} needs a string "name"')
    return str(entry["name"])


def _outputs(document: dict[str, Any], signature: Signature) -> tuple[str, ...] | None:
    """The names of the outputs that the client asks for; None = all."""
    entries = document.get("outputs")
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise _invalid('"outputs" must be a list')
    names = [_name(entry, "output") for entry in entries]
    known = [tensor.name for tensor in signature.outputs]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise _invalid(f"unknown outputs {_said(unknown)}; this model has {known}")
    if len(set(names)) < len(names):
        raise _invalid(f"each output can be requested only once, found {_said(names)}")
    return tuple(names) or None


def _shape(tensor: Tensor, entry: dict[str, Any]) -> list[int]:
    """The shape that the client names. It fits the signature, and numpy can count its elements."""
    where = f"input {tensor.name}"
    if entry.get("datatype") != tensor.dtype:
        raise _invalid(f"{where}: expected datatype {tensor.dtype}, found {_said(entry.get('datatype'))}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise _invalid(f'{where}: "shape" must be a list of non-negative integers')
    expected = list(tensor.shape)
    fits = len(shape) == len(expected) and all(
        size in (-1, given) or axis == tensor.batch_axis
        for axis, (size, given) in enumerate(zip(expected, shape, strict=True))
    )
    if not fits:
        if tensor.batch_axis is not None:
            expected[tensor.batch_axis] = -1
        raise _invalid(f"{where}: expected shape {expected} (-1 = any size), found {_said(shape)}")
    if math.prod(filter(None, shape)) > elements.MOST_ELEMENTS:
        raise _invalid(f"{where}: shape {shape} is too large: at most {elements.MOST_ELEMENTS} elements")
    return shape


def _rows(signature: Signature, shapes: Mapping[str, list[int]], max_rows: int) -> int:
    sizes = {t.name: shapes[t.name][t.batch_axis] for t in signature.inputs if t.batch_axis is not None}
    if len(set(sizes.values())) > 1:
        raise _invalid(f"the inputs hold different numbers of items: {sizes}")
    rows = next(iter(sizes.values()), 1)
    if not 1 <= rows <= max_rows:
        raise _invalid(f"expected 1 to {max_rows} items in a request, found {rows}")
    return rows


def _data(tensor: Tensor, entry: dict[str, Any], spans: Mapping[str, Span]) -> Span | list[Any]:
    """What the client sent as elements: a place in the body, or of a small one what it held."""
    if "data" not in entry:
        raise _invalid(f'input {tensor.name}: no "data" (binary tensors are not supported: send JSON)')
    data = entry["data"]
    if isinstance(data, str) and data in spans:
        return spans[data]
    if not isinstance(data, list) or spans:
        raise _invalid(f'input {tensor.name}: "data" must be a list')
    return data


def _check_texts(signature: Signature, data: Mapping[str, Span | list[Any]]) -> None:
    texts = sum(span.size for t in signature.inputs if t.dtype == "BYTES" and isinstance(span := data[t.name], Span))
    if texts > elements.MOST_BYTES_OF_TEXTS:
        most = elements.MOST_BYTES_OF_TEXTS
        raise _invalid(f"expected at most {most} bytes of strings in a request, found {texts}")


def _array(tensor: Tensor, shape: list[int], data: Span | list[Any]) -> Array:
    try:
        if isinstance(data, Span):
            return elements.read(data, tensor.dtype, shape)
        return elements.take(data, tensor.dtype, shape)
    except ElementsError as error:
        raise _invalid(f"input {tensor.name}: {_said(error)}") from error


def encode(
    model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
) -> bytes:
    """The response body. NaN and infinities become null, as JSON has no word for them. Raises RuntimeFailure for a text that is no UTF-8."""
    answer = usual.write(model, version, request, signature, outputs)
    if answer is not None:
        return answer
    by_name = {tensor.name: tensor for tensor in signature.outputs}
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    tensors = []
    for name in request.outputs or by_name:
        array, dtype = outputs[name], by_name[name].dtype
        head = orjson.dumps({"name": name, "datatype": dtype, "shape": list(array.shape)})
        tensors += [head[:-1], b',"data":', *elements.write(array, dtype), b"},"]
    tensors[-1] = b"}"
    return b"".join([orjson.dumps(document)[:-1], b',"outputs":[', *tensors, b"]}"])


def metadata(model: str, version: str, platform: str, signature: Signature) -> dict[str, Any]:
    """Model metadata, as `GET /v2/models/<model>` answers it; -1 stands where a size varies."""

    def tensors(side: tuple[Tensor, ...]) -> list[dict[str, Any]]:
        rows = []
        for tensor in side:
            shape = [-1 if axis == tensor.batch_axis else size for axis, size in enumerate(tensor.shape)]
            rows.append({"name": tensor.name, "datatype": tensor.dtype, "shape": shape})
        return rows

    return {
        "name": model,
        "versions": [version],
        "platform": platform,
        "inputs": tensors(signature.inputs),
        "outputs": tensors(signature.outputs),
    }
