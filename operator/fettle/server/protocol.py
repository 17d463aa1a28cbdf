"""Open Inference Protocol V2 over HTTP: bytes to arrays and back, with errors that say which input and what was expected.

A request is JSON, and the bytes of some of its tensors may follow it (the binary extension); an answer likewise.
Source: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md), and for the extension `binary`.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from fettle.api.signature import Signature, Tensor
from fettle.api.text import clip, joined
from fettle.runtimes.base import Array
from fettle.server import binary, elements, usual
from fettle.server.binary import Raw
from fettle.server.checks import (
    chosen_outputs,
    count_rows,
    invalid,
    refuse_parameters,
    require_inputs,
    require_shape,
    require_texts,
    unfit,
)
from fettle.server.elements import ElementsError, Span
from fettle.server.envelope import EnvelopeError, split
from fettle.server.request import Code, InferRequest, RequestError

if TYPE_CHECKING:
    from fettle.server.pictures import Pictures
    from fettle.server.texts import Room, Texts

Data = Span | Raw | list[Any]  # what the client sent as elements: a place in the body, or of small JSON what it held
PICTURES = ("image/jpeg", "image/png")  # media types of one picture
TEXT, LINES = "text/plain", "application/x-ndjson"  # media types of one text, and of items with texts
UTF_8 = ("utf-8", "utf8", "us-ascii")


class HttpExchange:
    """The codec of one request and its answer. `json_size`: bytes of JSON before the tensors' bytes, None where all is JSON."""

    __slots__ = ("json_size",)

    def __init__(self, json_size: int | None = None) -> None:
        self.json_size = json_size

    def decode(self, body: bytes | bytearray, signature: Signature, max_rows: int) -> InferRequest:
        """As `decode`."""
        return decode(body, signature, max_rows, self.json_size)

    def encode(
        self, model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
    ) -> bytes:
        """As `encode`; `json_size` is then the answer's."""
        body, self.json_size = _answer(model, version, request, signature, outputs)
        return body


class PreparedExchange(HttpExchange):
    """The codec of a request of whose body the server itself makes the inputs, which takes its time, and of its answer in JSON.

    What a server cannot prepare is known when the model is loaded, and refused here in the same words, whatever it is.
    """

    __slots__ = ()

    def require(self) -> None:
        """Raises RequestError UNSUPPORTED, before the body is read, for a model that does not take such bodies."""
        raise NotImplementedError


class PictureExchange(PreparedExchange):
    """The codec of a request whose body is a picture. `kind`: its media type."""

    __slots__ = ("_kind", "_most_pixels", "_pictures")

    def __init__(self, kind: str, pictures: Pictures | str, most_pixels: int) -> None:
        """`pictures`: as a string, why there are none."""
        super().__init__()
        self._kind, self._pictures, self._most_pixels = kind, pictures, most_pixels

    def require(self) -> None:
        """See PreparedExchange."""
        if isinstance(self._pictures, str):
            message = f"this model does not accept images, because {self._pictures}"
            raise RequestError(Code.UNSUPPORTED, message, unread=True)
        if self._kind not in PICTURES:
            message = f"expected an image of type {joined(PICTURES, 'or')}, found Content-Type {clip(self._kind, 64)!r}"
            raise RequestError(Code.UNSUPPORTED, message, unread=True)

    def decode(self, body: bytes | bytearray, signature: Signature, max_rows: int) -> InferRequest:
        """One item. Raises RequestError INVALID, TOO_LARGE."""
        assert not isinstance(self._pictures, str), "require() was not called"
        return InferRequest(self._pictures.inputs(body, self._kind, self._most_pixels), 1, None, None)


class TextExchange(PreparedExchange):
    """The codec of a request whose body is a text, or a line of JSON with texts for each item.

    A body of `text/plain` that begins with { is a V2 request, which JavaScript sends under that name. `kind`: its media type.
    """

    __slots__ = ("_charset", "_kind", "_room", "_texts")

    def __init__(self, kind: str, parameters: str, texts: Texts | str, room: Room) -> None:
        """`texts`: as a string, why there are none."""
        super().__init__()
        self._kind, self._charset, self._texts, self._room = kind, _charset(parameters), texts, room

    def require(self) -> None:
        """See PreparedExchange. Of `text/plain`, only the body tells whether it is a text: it is refused once it is read."""
        if self._kind != TEXT:
            self._taken(unread=True)

    def decode(self, body: bytes | bytearray, signature: Signature, max_rows: int) -> InferRequest:
        """Raises RequestError INVALID, TOO_LARGE, UNSUPPORTED."""
        if self._kind == TEXT and body[:4].removeprefix(BOM_UTF8).startswith(b"{"):
            return super().decode(body, signature, max_rows)
        texts = self._taken(unread=False)
        return texts.plain(body, self._room) if self._kind == TEXT else texts.lines(body, self._room, max_rows)

    def _taken(self, *, unread: bool) -> Texts:
        """What makes inputs of texts. Raises RequestError UNSUPPORTED."""
        if isinstance(self._texts, str):
            message = f"this model does not accept texts, because {self._texts}"
            raise RequestError(Code.UNSUPPORTED, message, unread=unread)
        if self._charset not in UTF_8:
            message = f"expected a text in UTF-8, found the charset {clip(self._charset, 64)!r}"
            raise RequestError(Code.UNSUPPORTED, message, unread=unread)
        return self._texts


def _charset(parameters: str) -> str:
    """The charset of a Content-Type, from what follows its media type."""
    pairs = (part.strip().lower().partition("=") for part in parameters.split(";"))
    return next((value.strip('"') for name, _, value in pairs if name == "charset"), UTF_8[0])


def decode(body: bytes | bytearray, signature: Signature, max_rows: int, json_size: int | None = None) -> InferRequest:
    """Decode and check a request body against the signature. Raises RequestError INVALID."""
    request = usual.read(body, signature, max_rows) if json_size is None else None
    if request is not None:
        return request
    if json_size is not None and json_size > len(body):
        raise invalid(f"Inference-Header-Content-Length is {json_size}, but the body has {len(body)} bytes")
    try:
        document, spans = split(body if json_size is None else bytes(memoryview(body)[:json_size]))
    except EnvelopeError as error:
        raise invalid(str(error)) from error
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise invalid('expected an object with a list "inputs"')
    entries = document["inputs"]
    require_inputs(signature, [_name(entry, "input") for entry in entries[: len(signature.inputs) + 1]])
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise invalid('"id" must be a string')
    outputs, as_bytes = _outputs(document, signature)
    given = {entry["name"]: entry for entry in entries}
    shapes = {tensor.name: _shape(tensor, given[tensor.name]) for tensor in signature.inputs}
    rows = count_rows(signature, shapes, max_rows)
    behind = memoryview(body)[len(body) if json_size is None else json_size :]
    data = _data(entries, spans, behind)
    texts = [data[tensor.name] for tensor in signature.inputs if tensor.dtype == "BYTES"]
    require_texts(each.size for each in texts if not isinstance(each, list))
    inputs = {tensor.name: _array(tensor, shapes[tensor.name], data[tensor.name]) for tensor in signature.inputs}
    return InferRequest(inputs, rows, outputs, identity, as_bytes)


def _name(entry: Any, what: str) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise invalid(f'each {what} needs a string "name"')
    return str(entry["name"])


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise invalid(f'{where}: "parameters" must be an object')
    refuse_parameters(parameters, where)
    return parameters


def _flag(parameters: dict[str, Any], name: str, where: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise invalid(f"{where}: the parameter {name} must be true or false")
    return value


def _outputs(document: dict[str, Any], signature: Signature) -> tuple[tuple[str, ...] | None, frozenset[str]]:
    """The names of the outputs that the client asks for, None = all, and of those that it wants as bytes."""
    every = _flag(_parameters(document, "the request"), "binary_data_output", "the request")
    entries = document.get("outputs")
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise invalid('"outputs" must be a list')
    chosen = chosen_outputs(signature, [_name(entry, "output") for entry in entries])
    if chosen is None:
        return None, frozenset(tensor.name for tensor in signature.outputs if every)
    wanted = []
    for name, entry in zip(chosen, entries, strict=True):
        where = f"output {name}"
        if _flag(_parameters(entry, where), "binary_data", where, every):
            wanted.append(name)
    return chosen, frozenset(wanted)


def _shape(tensor: Tensor, entry: dict[str, Any]) -> list[int]:
    """The shape that the client names; it fits the signature."""
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise invalid(f'input {tensor.name}: "shape" must be a list of non-negative integers')
    require_shape(tensor, entry.get("datatype"), shape)
    return shape


def _data(entries: list[dict[str, Any]], spans: Mapping[str, Span], behind: memoryview) -> dict[str, Data]:
    """The elements of each input. `behind`: the bytes that follow the JSON, in the order in which the JSON names their inputs."""
    data: dict[str, Data] = {}
    place = 0
    for entry in entries:
        where = f"input {entry['name']}"
        size = _parameters(entry, where).get("binary_data_size")
        if size is None:
            data[entry["name"]] = _listed(entry, where, spans)
            continue
        if type(size) is not int or size < 0:
            raise invalid(f"{where}: the parameter binary_data_size must be a number of bytes")
        if "data" in entry:
            raise invalid(f'{where}: expected either "data" or the parameter binary_data_size, found both')
        if place + size > len(behind):
            found = len(behind) - place
            raise invalid(f"{where}: expected {size} bytes after the JSON and the inputs before it, found {found}")
        data[entry["name"]] = Raw(behind[place : place + size])
        place += size
    if place != len(behind):
        raise invalid(f"expected {place} bytes after the JSON, found {len(behind)}")
    return data


def _listed(entry: dict[str, Any], where: str, spans: Mapping[str, Span]) -> Span | list[Any]:
    if "data" not in entry:
        raise invalid(f'{where}: expected "data", or bytes after the JSON and the parameter binary_data_size')
    data = entry["data"]
    if isinstance(data, str) and data in spans:
        return spans[data]
    if not isinstance(data, list) or spans:
        raise invalid(f'{where}: "data" must be a list')
    return data


def _array(tensor: Tensor, shape: list[int], data: Data) -> Array:
    try:
        if isinstance(data, Span):
            return elements.read(data, tensor.dtype, shape)
        if isinstance(data, Raw):
            return binary.read(data, tensor.dtype, shape)
        return elements.take(data, tensor.dtype, shape)
    except ElementsError as error:
        raise unfit(tensor, error) from error


def encode(
    model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
) -> bytes:
    """The response body. In JSON NaN and infinities become null, for which it has no word; as bytes they stay what they are.

    Raises RuntimeFailure for a text of JSON that is no UTF-8.
    """
    return _answer(model, version, request, signature, outputs)[0]


def _answer(
    model: str, version: str, request: InferRequest, signature: Signature, outputs: Mapping[str, Array]
) -> tuple[bytes, int | None]:
    """The response body, and how many bytes of it are JSON; None = all, and the client need not be told."""
    answer = usual.write(model, version, request, signature, outputs)
    if answer is not None:
        return answer, None
    by_name = {tensor.name: tensor for tensor in signature.outputs}
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    parts: list[Any] = [orjson.dumps(document)[:-1], b',"outputs":[']
    behind: list[Any] = []
    for name in request.outputs or by_name:
        array, dtype = outputs[name], by_name[name].dtype
        head = orjson.dumps({"name": name, "datatype": dtype, "shape": list(array.shape)})[:-1]
        if name in request.binary:
            content = binary.write(array, dtype)
            behind.append(content)
            parts += [head, b',"parameters":{"binary_data_size":%d}' % len(content), b"},"]
        else:
            parts += [head, b',"data":', *elements.write(array, dtype), b"},"]
    parts[-1] = b"}]}"
    if not behind:
        return b"".join(parts), None
    size = sum(map(len, parts))
    return b"".join((*parts, *behind)), size
