"""What the data port answers, as an OpenAPI 3.1 document of this very model: its name in the paths, its tensors in the schemas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fettle import __version__
from fettle.api.signature import Signature, Tensor
from fettle.runtimes.base import numpy_dtype
from fettle.server.checks import least_shape
from fettle.server.protocol import LINES, PICTURES, TEXT
from fettle.server.settings import ServerSettings

PATH = "/openapi.json"
Json = dict[str, Any]

_ERRORS = {
    "400": "The request is invalid. The message says what was expected and what was found.",
    "401": "The token is missing or unknown.",
    "408": "The body did not arrive in time.",
    "413": "The body, or what is in it, is too large.",
    "415": "The body is compressed, or of a type that the model does not accept.",
    "429": "The client exceeds its limits. Retry after `Retry-After` seconds.",
    "500": "The model failed.",
    "503": "The queue is full, or the server is shutting down. Retry after `Retry-After` seconds.",
}
_TEXT, _FLAG = {"type": "string"}, {"type": "boolean"}
_RAW = {"schema": {"type": "string", "format": "binary"}}
_PARAMETERS = {"type": ["object", "null"], "description": "Unknown parameters are ignored."}
_MOST_IN_EXAMPLE = 64  # elements of a tensor
# The least numbers that round to infinity.
_BEYOND = {"FP16": 65520.0, "BF16": 2.0**128 - 2.0**119, "FP32": 2.0**128 - 2.0**103}
_JSON_SIZE = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Number of bytes of JSON at the start of the body; the bytes of the tensors follow. If absent, the whole body is JSON.",
    "schema": {"type": "integer", "minimum": 1},
}


def document(settings: ServerSettings, signature: Signature, *, pictures: bool = False, texts: bool = False) -> Json:
    """The document. `pictures`, `texts`: the model takes them."""
    asked = _asked(signature, pictures, texts)
    paths: dict[str, Json] = {
        "/v2": {"get": _tells("Name, version and extensions of the server.", "ServerMetadata")},
        "/v2/health/live": {"get": _tells("Liveness.", "Live")},
        "/v2/health/ready": {"get": _tells("Readiness.", "Ready", "503")},
    }
    for name in (settings.model, f"{settings.model}/versions/{settings.revision}"):
        paths[f"/v2/models/{name}"] = {"get": _tells("Inputs and outputs of the model.", "ModelMetadata")}
        paths[f"/v2/models/{name}/ready"] = {"get": _tells("Whether the model is ready.", "Ready", "503")}
        paths[f"/v2/models/{name}/infer"] = {"post": _infer(asked)}
        paths[f"/v1/models/{name}"] = {"get": _tells("The state of the model.", "ModelStatus")}
        if signature.batchable:
            paths[f"/v1/models/{name}:predict"] = {"post": _predict(_predict_example(signature))}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Inference server of {settings.model}",
            "version": __version__,
            "description": "Open Inference Protocol V2, and the V1 protocol of TensorFlow Serving.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(settings, signature)},
    }


def _tells(summary: str, schema: str, *errors: str) -> Json:
    content = {"application/json": {"schema": _ref(schema)}}
    unready = {code: {"description": "Not ready.", "content": content} for code in errors}
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": content}, **unready}}


def _asked(signature: Signature, pictures: bool, texts: bool) -> Json:
    """The bodies that a request may have, by their type."""
    asked: Json = {
        "application/json": {"schema": _ref("InferRequest"), **_infer_example(signature)},
        "application/octet-stream": _RAW,
    }
    if pictures:
        image = {"type": "string", "format": "binary", "description": "One image, which becomes the input of one item."}
        asked |= {kind: {"schema": image} for kind in PICTURES}
    if texts:
        text = {"type": "string", "pattern": "^[^{]", "description": "One text, which becomes the inputs of one item."}
        lines = {
            "type": "string",
            "description": "A line of JSON for each item, an object with `text`, and `text_pair` for pairs.",
        }
        asked |= {TEXT: {"schema": text}, LINES: {"schema": lines}}
    return asked


def _infer(asked: Json) -> Json:
    answered = {
        "description": "The outputs: JSON, followed by the bytes of the outputs that were requested as binary.",
        "content": {"application/json": {"schema": _ref("InferResponse")}, "application/octet-stream": _RAW},
    }
    return {
        "summary": "Inference by the V2 protocol.",
        "parameters": [_JSON_SIZE],
        "requestBody": {"required": True, "content": asked},
        "responses": _responses(answered),
    }


def _predict(example: Json) -> Json:
    content = {"application/json": {"schema": _ref("PredictRequest"), **example}}
    answered = {"description": "OK", "content": {"application/json": {"schema": _ref("PredictResponse")}}}
    return {
        "summary": "Inference by the V1 protocol.",
        "requestBody": {"required": True, "content": content},
        "responses": _responses(answered),
    }


def _infer_example(signature: Signature) -> Json:
    """An item of zeros, under the key `example`; nothing where it would be long."""
    tensors = []
    for tensor in signature.inputs:
        shape = least_shape(tensor)
        if math.prod(shape) > _MOST_IN_EXAMPLE:
            return {}
        data = [_zero(tensor.dtype)] * math.prod(shape)
        tensors.append({"name": tensor.name, "datatype": tensor.dtype, "shape": shape, "data": data})
    return {"example": {"inputs": tensors}}


def _predict_example(signature: Signature) -> Json:
    if any(abs(math.prod(_item(tensor))) > _MOST_IN_EXAMPLE for tensor in signature.inputs):
        return {}
    row = {tensor.name: _zeros(tensor.dtype, _item(tensor)) for tensor in signature.inputs}
    return {"example": {"instances": [row if len(row) > 1 else next(iter(row.values()))]}}


def _item(tensor: Tensor) -> list[int]:
    return [size for axis, size in enumerate(tensor.shape) if axis != tensor.batch_axis]


def _zero(dtype: str) -> object:
    return {"BYTES": "", "BOOL": False}.get(dtype, 0)


def _zeros(dtype: str, shape: list[int]) -> Any:
    values: Any = _zero(dtype)
    for size in reversed(shape):
        values = [values] * (1 if size == -1 else size)
    return values


def _responses(answered: Json) -> Json:
    """The responses to a request for inference: `answered`, and the errors."""
    content = {"application/json": {"schema": _ref("Error")}}
    return {"200": answered, **{code: {"description": text, "content": content} for code, text in _ERRORS.items()}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas(settings: ServerSettings, signature: Signature) -> Json:
    inputs, outputs = signature.inputs, signature.outputs
    tensor = {"name": _TEXT, "datatype": _TEXT, "shape": _list({"type": "integer"})}
    model = {"name": _TEXT, "versions": _list(_TEXT), "platform": _TEXT, "parameters": {"type": "object"}}
    model |= {"inputs": _list(_object(tensor)), "outputs": _list(_object(tensor))}
    states = _list({"type": "object"})
    wanted = [_object({"name": {"const": output.name}, "parameters": _PARAMETERS}, "parameters") for output in outputs]
    request = {
        "id": {"type": ["string", "null"], "description": "Returned in the response."},
        "parameters": _PARAMETERS,
        "inputs": {
            **_list({"anyOf": [_sent(each) for each in inputs]}),
            "minItems": len(inputs),
            "maxItems": len(inputs),
        },
        "outputs": {
            "type": ["array", "null"],
            "items": {"anyOf": wanted},
            "description": "Outputs to return. If absent, all.",
        },
    }
    answer = {
        "model_name": {"const": settings.model},
        "model_version": {"const": settings.revision},
        "id": _TEXT,
        "outputs": _list({"anyOf": [_answered(each) for each in outputs]}),
    }
    return {
        "Error": _object({"error": _TEXT}),
        "Live": _object({"live": _FLAG}),
        "Ready": _object({"ready": _FLAG}),
        "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
        "ModelMetadata": _object(model),
        "ModelStatus": _object({"name": _TEXT, "ready": _FLAG, "model_version_status": states}),
        "InferRequest": _object(request, "id", "parameters", "outputs"),
        "InferResponse": _object(answer, "id"),
        "PredictRequest": _rows(inputs, settings.max_rows),
        "PredictResponse": {"anyOf": [_object({"predictions": {"type": "array"}}), _object({"outputs": {}})]},
    }


def _object(properties: Mapping[str, Json], *optional: str) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": dict(properties)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _shape(tensor: Tensor) -> Json:
    sizes = [{"type": "integer", "minimum": 0} if size == -1 else {"const": size} for size in tensor.free_shape]
    return {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}


def _sent(tensor: Tensor) -> Json:
    described = {"description": "The elements: a flat list, or nested lists that match the shape."}
    size = {"binary_data_size": {"type": "integer", "minimum": 0}}
    properties: Json = {
        "name": {"const": tensor.name},
        "datatype": {"const": tensor.dtype},
        "shape": _shape(tensor),
        "parameters": {"type": ["object", "null"], "properties": size},
        "data": {"type": "array", **described},
    }
    return _object(properties, "parameters", "data")


def _answered(tensor: Tensor) -> Json:
    elements = _element(tensor.dtype)
    if elements["type"] == "number":
        elements = {"type": ["number", "null"], "description": "null stands for NaN or infinity."}
    properties: Json = {
        "name": {"const": tensor.name},
        "datatype": {"const": tensor.dtype},
        "shape": _list({"type": "integer"}),
        "parameters": {"type": "object"},
        "data": _list(elements),
    }
    return _object(properties, "parameters", "data")


def _rows(inputs: tuple[Tensor, ...], max_rows: int) -> Json:
    items = [_nested(tensor) for tensor in inputs]
    named = _object({tensor.name: item for tensor, item in zip(inputs, items, strict=True)})
    row = {**named, "additionalProperties": False} if len(inputs) > 1 else items[0]
    return {
        **_object({"instances": {**_list(row), "minItems": 1, "maxItems": max_rows}}),
        "not": {"required": ["inputs"]},
    }


def _nested(tensor: Tensor) -> Json:
    schema = _element(tensor.dtype)
    for size in reversed(_item(tensor)):
        schema = _list(schema) if size == -1 else {**_list(schema), "minItems": size, "maxItems": size}
    return schema


def _element(dtype: str) -> Json:
    if dtype == "BYTES":
        return {"type": "string"}
    if dtype == "BOOL":
        return {"type": "boolean"}
    kind = numpy_dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
    beyond = _BEYOND.get(dtype)
    return {"type": "number", **({"exclusiveMinimum": -beyond, "exclusiveMaximum": beyond} if beyond else {})}
