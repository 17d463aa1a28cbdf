"""Open Inference Protocol V2 over gRPC: the bytes of a ModelInferRequest to arrays, and arrays to those of a ModelInferResponse.

An answer has the form of its request: raw contents, or typed ones, of which FP16 and BF16 know nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from fettle.api.signature import Signature, Tensor
from fettle.runtimes.base import Array
from fettle.server import binary, contents, usual
from fettle.server.binary import Raw
from fettle.server.checks import (
    chosen_outputs,
    count_rows,
    invalid,
    refuse_parameters,
    require_inputs,
    require_shape,
    require_texts,
    said,
    unfit,
)
from fettle.server.elements import ElementsError
from fettle.server.inference_pb2 import ModelInferRequest, ModelInferResponse
from fettle.server.request import InferRequest, not_found
from fettle.server.wire import MOST_BESIDE, Request, WireError, field_head, split

# Fields of ModelInferResponse: outputs and raw_output_contents; of InferOutputTensor: contents.
_OUTPUTS, _RAW, _CONTENTS = 5, 6, 5
Content = Raw | list[memoryview]  # raw, or the parts of a typed one
_SPECIAL = ("BYTES", "BOOL")  # whose raw bytes have to be looked at


def encode(
    model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
) -> bytes:
    """The bytes of the response."""
    dtypes = {tensor.name: tensor.dtype for tensor in signature.outputs}
    names = request.outputs or tuple(dtypes)
    as_raw = bool(request.binary) or not all(contents.has_field(dtypes[name]) for name in names)
    parts: list[Any] = [_beginning(model, version)]
    if request.id:
        parts.append(ModelInferResponse(id=request.id).SerializeToString())
    behind: list[Any] = []
    for name in names:
        array, dtype = outputs[name], dtypes[name]
        head = _described(name, dtype, array.shape)
        if as_raw:
            content = binary.write(array, dtype)
            parts += (field_head(_OUTPUTS, len(head)), head)
            behind += (field_head(_RAW, len(content)), content)
        else:
            typed = contents.write(array, dtype)
            size = sum(map(len, typed))
            before = field_head(_CONTENTS, size)
            parts += (field_head(_OUTPUTS, len(head) + len(before) + size), head, before, *typed)
    return b"".join((*parts, *behind))


@lru_cache(1)
def _beginning(model: str, version: str) -> bytes:
    """What every response begins with."""
    beginning: bytes = ModelInferResponse(model_name=model, model_version=version).SerializeToString()
    return beginning


@lru_cache(256)
def _described(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """An output without its contents."""
    tensor = ModelInferResponse.InferOutputTensor(name=name, datatype=dtype, shape=shape)
    described: bytes = tensor.SerializeToString()
    return described


class Messages:
    """The codec of a model's requests."""

    encode = staticmethod(encode)

    def __init__(self, model: str, version: str) -> None:
        self._model, self._version = model, version

    def decode(self, body: bytes | bytearray, signature: Signature, max_rows: int) -> InferRequest:
        """Decode and check a message against the signature. Raises RequestError INVALID, NOT_FOUND for another model or version."""
        usual_request = self._usual(body, signature, max_rows) if len(body) <= MOST_BESIDE else None
        if usual_request is not None:
            return usual_request
        try:
            request = split(body)
        except WireError as error:
            raise invalid(str(error)) from error
        self.require_model(request.message.model_name, request.message.model_version)
        return _checked(request, signature, max_rows)

    def _usual(self, body: bytes | bytearray, signature: Signature, max_rows: int) -> InferRequest | None:
        """The request that a small message is which has the signature's inputs in their order, as raw contents, and asks for all outputs; None
        where it has to be looked at more closely, part by part, which takes several times as long (see `usual`)."""
        try:
            message = ModelInferRequest.FromString(bytes(body))
        except DecodeError:
            return None
        entries, raw = message.inputs, message.raw_input_contents
        if message.model_name != self._model or message.model_version not in ("", self._version):
            return None
        if message.parameters or message.outputs or not len(entries) == len(raw) == len(signature.inputs):
            return None
        rows, inputs = 0, {}
        for tensor, entry, content in zip(signature.inputs, entries, raw, strict=True):
            shape = list(entry.shape)
            if entry.name != tensor.name or entry.datatype != tensor.dtype or tensor.dtype in _SPECIAL:
                return None
            known = usual.rows_with(tensor, shape, rows, max_rows)
            if entry.parameters or entry.HasField("contents") or known is None:
                return None
            rows = known
            try:
                inputs[tensor.name] = binary.read(Raw(memoryview(content)), tensor.dtype, shape)
            except ElementsError:
                return None
        answered = frozenset([tensor.name for tensor in signature.outputs])
        return InferRequest(inputs, rows or 1, None, message.id, answered)

    def require_model(self, name: str, version: str) -> None:
        """Raises RequestError NOT_FOUND. A version may be left out."""
        if name != self._model or version not in ("", self._version):
            found = f"the model {said(name)!r}" + (f", version {said(version)!r}" if version else "")
            raise not_found(found, self._model, self._version)


def _checked(request: Request, signature: Signature, max_rows: int) -> InferRequest:
    message = request.message
    require_inputs(signature, [entry.name for entry in message.inputs[: len(signature.inputs) + 1]])
    refuse_parameters(message.parameters, "the request")
    given = dict(zip((entry.name for entry in message.inputs), _contents(request), strict=True))
    shapes = {entry.name: _shape(entry) for entry in message.inputs}
    types = {entry.name: entry.datatype for entry in message.inputs}
    for tensor in signature.inputs:
        require_shape(tensor, types[tensor.name], shapes[tensor.name])
    rows = count_rows(signature, shapes, max_rows)
    texts = (given[tensor.name] for tensor in signature.inputs if tensor.dtype == "BYTES")
    require_texts(each.size if isinstance(each, Raw) else sum(map(len, each)) for each in texts)
    outputs = _outputs(message, signature)
    inputs = {tensor.name: _array(tensor, shapes[tensor.name], given[tensor.name]) for tensor in signature.inputs}
    wanted = outputs or tuple(tensor.name for tensor in signature.outputs)
    return InferRequest(inputs, rows, outputs, message.id, frozenset(wanted if request.raw else ()))


def _contents(request: Request) -> list[Content]:
    """What the client sent for each input, in the message's order."""
    if not request.raw:
        return list(request.contents)
    count = len(request.contents)
    if len(request.raw) != count:
        raise invalid(f"expected raw_input_contents for each of {count} inputs, found {len(request.raw)}")
    if any(map(any, request.contents)):
        raise invalid("expected either raw_input_contents or the inputs' contents, found both")
    return [Raw(view) for view in request.raw]


def _shape(entry: ModelInferRequest.InferInputTensor) -> list[int]:
    refuse_parameters(entry.parameters, f"input {entry.name}")
    shape = list(entry.shape)
    if any(size < 0 for size in shape):
        raise invalid(f"input {entry.name}: expected a shape of non-negative integers, found {said(shape)}")
    return shape


def _outputs(message: ModelInferRequest, signature: Signature) -> tuple[str, ...] | None:
    for entry in message.outputs:
        refuse_parameters(entry.parameters, f"output {said(entry.name)}")
    return chosen_outputs(signature, [entry.name for entry in message.outputs])


def _array(tensor: Tensor, shape: list[int], content: Content) -> Array:
    module: Any = binary if isinstance(content, Raw) else contents
    try:
        array: Array = module.read(content, tensor.dtype, shape)
    except ElementsError as error:
        raise unfit(tensor, error) from error
    return array
