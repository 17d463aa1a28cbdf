"""Open Inference Protocol V2 over JSON: bytes to arrays and back, with errors that say which input and what was expected.

Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from fettle.api.signature import Signature, Tensor
from fettle.runtimes.base import Array, numpy_dtype

KINDS = {"FP": "fiu", "BF": "fiu", "IN": "iu", "UI": "iu", "BO": "b", "BY": "U"}


class ProtocolError(Exception):
    """An answer other than 200. `status` is the HTTP status, `headers` what goes with it."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


@dataclass(frozen=True)
class InferRequest:
    """A decoded request: arrays by input name, the outputs asked for (None = all) and the client's id."""

    inputs: dict[str, Array]
    rows: int
    outputs: tuple[str, ...] | None
    id: str | None


def decode(body: bytes, signature: Signature, max_rows: int) -> InferRequest:
    """Decode and check a request body against the signature. Raises ProtocolError 400."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(400, f"the body is not JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise ProtocolError(400, 'expected an object with a list "inputs"')
    given = {_name(entry): entry for entry in document["inputs"]}
    expected = [tensor.name for tensor in signature.inputs]
    if sorted(given) != sorted(expected) or len(given) != len(document["inputs"]):
        raise ProtocolError(400, f"expected the inputs {expected}, found {[_name(e) for e in document['inputs']]}")
    inputs = {tensor.name: _decode_tensor(tensor, given[tensor.name]) for tensor in signature.inputs}
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise ProtocolError(400, '"id" must be a string')
    return InferRequest(inputs, _rows(signature, inputs, max_rows), _wanted(document, signature), identity)


def _name(entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ProtocolError(400, 'each input needs a string "name"')
    return str(entry["name"])


def _wanted(document: dict[str, Any], signature: Signature) -> tuple[str, ...] | None:
    wanted = document.get("outputs")
    if wanted is None:
        return None
    if not isinstance(wanted, list):
        raise ProtocolError(400, '"outputs" must be a list')
    names = tuple(_name(entry) for entry in wanted)
    known = [tensor.name for tensor in signature.outputs]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ProtocolError(400, f"unknown outputs {unknown}; this model has {known}")
    return names or None


def _decode_tensor(tensor: Tensor, entry: dict[str, Any]) -> Array:
    where = f"input {tensor.name}"
    if entry.get("datatype") != tensor.dtype:
        raise ProtocolError(400, f"{where}: expected datatype {tensor.dtype}, found {entry.get('datatype')}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ProtocolError(400, f'{where}: "shape" must be a list of sizes')
    _check_shape(tensor, shape, where)
    if "data" not in entry:
        raise ProtocolError(400, f'{where}: no "data" (binary tensors are not supported: send JSON)')
    array = _numbers(entry["data"], tensor, where)
    if array.size != int(np.prod(shape, dtype=np.int64)):
        raise ProtocolError(400, f"{where}: shape {shape} needs {int(np.prod(shape))} elements, found {array.size}")
    return array.reshape(shape)


def _check_shape(tensor: Tensor, shape: list[int], where: str) -> None:
    expected = list(tensor.shape)
    fits = len(shape) == len(expected) and all(
        wanted in (-1, found) or axis == tensor.batch_axis
        for axis, (wanted, found) in enumerate(zip(expected, shape, strict=True))
    )
    if not fits:
        if tensor.batch_axis is not None:
            expected[tensor.batch_axis] = -1
        raise ProtocolError(400, f"{where}: expected shape {expected} (-1 = any size), found {shape}")


def _numbers(data: Any, tensor: Tensor, where: str) -> Array:
    if not isinstance(data, list):
        raise ProtocolError(400, f'{where}: "data" must be a list')
    if not data:
        return np.zeros(0, numpy_dtype(tensor.dtype))
    try:
        raw = np.array(data)
        if raw.dtype.kind not in KINDS[tensor.dtype[:2]]:
            raise ProtocolError(400, f"{where}: the elements of data do not fit {tensor.dtype}")
        if tensor.dtype == "BYTES":
            return raw.astype(object)
        array: Array = raw.astype(numpy_dtype(tensor.dtype))
    except (ValueError, OverflowError) as error:
        raise ProtocolError(400, f"{where}: data is not a list of {tensor.dtype}: {error}") from error
    if raw.dtype.kind in "iu" and array.dtype.kind in "iu" and not np.array_equal(raw, array):
        raise ProtocolError(400, f"{where}: data holds values that do not fit {tensor.dtype}")
    return array


def _rows(signature: Signature, inputs: Mapping[str, Array], max_rows: int) -> int:
    sizes = {
        tensor.name: inputs[tensor.name].shape[tensor.batch_axis]
        for tensor in signature.inputs
        if tensor.batch_axis is not None
    }
    if len(set(sizes.values())) > 1:
        raise ProtocolError(400, f"the inputs hold different numbers of items: {sizes}")
    rows = next(iter(sizes.values()), 1)
    if not 1 <= rows <= max_rows:
        raise ProtocolError(400, f"expected 1 to {max_rows} items in a request, found {rows}")
    return rows


def encode(
    model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
) -> bytes:
    """The response body. NaN and infinities become null, as JSON has no word for them."""
    by_name = {tensor.name: tensor for tensor in signature.outputs}
    names = request.outputs or tuple(by_name)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = [
        {
            "name": name,
            "datatype": by_name[name].dtype,
            "shape": list(outputs[name].shape),
            "data": _elements(outputs[name], by_name[name].dtype),
        }
        for name in names
    ]
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _elements(array: Array, dtype: str) -> Any:
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype == "BYTES":
        return [value.decode() if isinstance(value, bytes) else str(value) for value in flat.tolist()]
    return flat.astype(np.float32) if dtype in ("BF16", "FP16") else flat


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
