"""Requests and answers of the protocol over gRPC, byte by byte: raw and typed contents, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.memory import peak
from tests.unit.server.test_binary import REFUSED, WORDS, signature, text_bytes, values

from fettle.api.signature import DATA_TYPES, Signature
from fettle.runtimes.base import numpy_dtype
from fettle.server import contents, inference_pb2
from fettle.server.contents import write
from fettle.server.elements import MOST_BYTES_OF_TEXTS, MOST_TEXTS
from fettle.server.messages import Messages
from fettle.server.request import Code, InferRequest, RequestError
from fettle.server.wire import MOST_BESIDE, MOST_FIELDS, field_head

Request = inference_pb2.ModelInferRequest
Tensor = Request.InferInputTensor
Contents = inference_pb2.InferTensorContents
CODEC = Messages("m", "1")
TYPED = [row.v2 for row in DATA_TYPES if contents.has_field(row.v2)]
FIELDS = {"BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents", "BYTES": "bytes_contents"}
FIELDS |= {"FP32": "fp32_contents", "FP64": "fp64_contents"}
FIELDS |= {f"INT{bits}": "int_contents" for bits in (8, 16, 32)}
FIELDS |= {f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)}
X = signature(("x", "FP32", (-1, 2)))


def message(*inputs: Message, raw: Sequence[bytes] = (), **more: Any) -> bytes:
    content: bytes = Request(model_name="m", inputs=inputs, raw_input_contents=raw, **more).SerializeToString()
    return content


def tensor(dtype: str, shape: Sequence[int], elements: Sequence[Any] | None = None, name: str = "x") -> Message:
    made = Tensor(name=name, datatype=dtype, shape=shape)
    if elements is not None:
        getattr(made.contents, FIELDS[dtype]).extend(elements)
    return made


def decoded(content: bytes, wanted: Signature = X, max_rows: int = 100) -> InferRequest:
    return CODEC.decode(content, wanted, max_rows)


def answered(request: InferRequest, wanted: Signature, outputs: dict[str, np.ndarray]) -> Any:
    return inference_pb2.ModelInferResponse.FromString(CODEC.encode("m", "1", request, wanted, outputs))


def elements_of(dtype: str, array: np.ndarray) -> list[Any]:
    flat = array.reshape(-1).tolist()
    return [text.encode() for text in flat] if dtype == "BYTES" else flat


def extremes(dtype: str) -> np.ndarray:
    if dtype == "BYTES":
        return np.array(WORDS, object)
    if dtype == "BOOL":
        return np.array([True, False, True, True])
    target = numpy_dtype(dtype)
    if target.kind in "iu":
        limits = np.iinfo(target)
        return np.array([limits.min, limits.max, 1, 127], target)
    return np.array([np.inf, np.nan, -0.0, 1.5], target)


@pytest.mark.parametrize("dtype", [row.v2 for row in DATA_TYPES])
def test_raw_contents_come_and_go_as_the_bytes_that_they_are(dtype: str) -> None:
    array = extremes(dtype).reshape(2, 2)
    wanted = signature(("x", dtype, (-1, 2)))
    content = text_bytes(*WORDS) if dtype == "BYTES" else array.tobytes()
    for pad in range(8):  # the bytes begin at any address
        request = decoded(message(tensor(dtype, [2, 2]), raw=[content], id="i" * pad), wanted)
        found = request.inputs["x"]
        assert (found.dtype, found.shape, found.flags.aligned) == (array.dtype, (2, 2), True)
        assert str(found.tolist()) == str(array.tolist())
    answer = answered(request, wanted, {"x": array})
    assert list(answer.raw_output_contents) == [content]
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("x", dtype, [2, 2])
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "i" * 7)


@pytest.mark.parametrize("dtype", TYPED)
def test_typed_contents_come_and_go_as_such(dtype: str) -> None:
    array = extremes(dtype).reshape(2, 2)
    wanted = signature(("x", dtype, (-1, 2)))
    request = decoded(message(tensor(dtype, [2, 2], elements_of(dtype, array))), wanted)
    assert (request.inputs["x"].dtype, request.inputs["x"].shape) == (array.dtype, (2, 2))
    assert str(request.inputs["x"].tolist()) == str(array.tolist())
    answer = answered(request, wanted, {"x": array})
    assert not answer.raw_output_contents
    found = list(getattr(answer.outputs[0].contents, FIELDS[dtype]))
    assert str(found) == str(elements_of(dtype, array))


@pytest.mark.parametrize("dtype", TYPED)
@pytest.mark.parametrize("shape", [[1, 0], [1, 3]])
def test_empty_tensors_need_no_contents_and_full_ones_do(dtype: str, shape: list[int]) -> None:
    wanted = signature(("x", dtype, (-1, -1)))
    for sent in ([], None):
        content = message(tensor(dtype, shape, sent))
        if shape[1]:
            with pytest.raises(RequestError, match=r"input x: shape \[1, 3\] needs 3 elements, found 0"):
                decoded(content, wanted)
        else:
            assert decoded(content, wanted).inputs["x"].shape == (1, 0)


def test_sixteen_bit_floats_among_the_outputs_make_an_answer_raw() -> None:
    wanted = signature(("x", "FP32", (-1,)), ("h", "FP16", (-1,)))
    outputs = {"x": values("FP32", 2), "h": values("FP16", 2)}
    request = InferRequest({}, 2, None, None)
    assert list(answered(request, wanted, outputs).raw_output_contents) == [each.tobytes() for each in outputs.values()]
    request = InferRequest({}, 2, ("x",), None)
    assert list(answered(request, wanted, outputs).outputs[0].contents.fp32_contents) == outputs["x"].tolist()


def test_inputs_in_any_order_a_scalar_and_chosen_outputs() -> None:
    wanted = signature(("x", "INT64", (-1,)), ("y", "FP32", (-1, 2)), ("s", "FP64", ()))
    y, s, x = values("FP32", 1, 2), np.array(2.5), values("INT64", 1)
    inputs = [tensor("FP32", [1, 2], name="y"), tensor("FP64", [], name="s"), tensor("INT64", [1], name="x")]
    outputs = [Request.InferRequestedOutputTensor(name="s"), Request.InferRequestedOutputTensor(name="x")]
    request = decoded(message(*inputs, raw=[each.tobytes() for each in (y, s, x)], outputs=outputs), wanted)
    assert [request.inputs[name].tolist() for name in "xys"] == [x.tolist(), y.tolist(), 2.5]
    answer = answered(request, wanted, request.inputs)
    assert [output.name for output in answer.outputs] == ["s", "x"]
    assert list(answer.raw_output_contents) == [s.tobytes(), x.tobytes()]


@pytest.mark.parametrize("dtype", TYPED)
def test_elements_may_come_in_several_fields_packed_or_not(dtype: str) -> None:
    """As the encoding allows, and as encoders of older versions write them."""
    array = extremes(dtype)
    wanted = signature(("x", dtype, (-1,)))
    halves = [Contents(**{FIELDS[dtype]: elements_of(dtype, part)}) for part in (array[:3], array[3:])]
    parts = [half.SerializeToString() for half in halves]
    head = Tensor(name="x", datatype=dtype, shape=[4]).SerializeToString()
    sent = head + b"".join(field_head(5, len(part)) + part for part in parts)
    content = message() + field_head(5, len(sent)) + sent
    assert str(decoded(content, wanted).inputs["x"].tolist()) == str(array.tolist())


def test_numbers_that_are_not_packed_are_read_and_bounded() -> None:
    wanted = signature(("x", "INT64", (-1,)))

    def sent(count: int) -> bytes:
        elements = b"\x18\x05" * count  # int64_contents: 5
        head = Tensor(name="x", datatype="INT64", shape=[count]).SerializeToString()
        body = head + field_head(5, len(elements)) + elements
        return message() + field_head(5, len(body)) + body

    assert decoded(sent(3), wanted).inputs["x"].tolist() == [5, 5, 5]
    with pytest.raises(RequestError, match="pack their elements"):
        decoded(sent(MOST_FIELDS + 1), wanted, 1 << 40)


def test_whole_numbers_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "PIECE", 16)
    rng = np.random.default_rng(5)
    array = rng.integers(-(2**63), 2**63 - 1, 1000, np.int64) >> rng.integers(0, 64, 1000)
    monkeypatch.setattr(contents, "NUMBERS_AT_ONCE", 7)
    for dtype in ("INT64", "UINT64"):
        own = array.view(numpy_dtype(dtype))
        request = decoded(message(tensor(dtype, [1000], own.tolist())), signature(("x", dtype, (-1,))), 1000)
        assert np.array_equal(request.inputs["x"], own)
        assert Contents.FromString(b"".join(write(own, dtype))) == Contents(**{FIELDS[dtype]: own.tolist()})


def bare(content: bytes, dtype: str = "INT64", shape: Sequence[int] = (1,)) -> bytes:
    """A request with these bytes for the contents of x."""
    sent = Tensor(name="x", datatype=dtype, shape=shape).SerializeToString() + field_head(5, len(content)) + content
    return message() + field_head(5, len(sent)) + sent


I64, I8, U8 = (signature(("x", dtype, (-1,))) for dtype in ("INT64", "INT8", "UINT8"))
TEXT = signature(("x", "BYTES", (-1,)))
ODD: dict[str, tuple[Signature, bytes, str]] = {
    "another field": (
        I64,
        message(Tensor(name="x", datatype="INT64", shape=[1], contents=Contents(fp32_contents=[1]))),
        "input x: the contents of INT64 go into int64_contents, found fp32_contents",
    ),
    "too large for the type": (I8, message(tensor("INT8", [1], [128])), "values that do not fit INT8: 128"),
    "too small for the type": (I8, message(tensor("INT8", [1], [-129])), "values that do not fit INT8: -129"),
    "too large for an unsigned type": (U8, message(tensor("UINT8", [1], [256])), "do not fit UINT8: 256"),
    "too few elements": (X, message(tensor("FP32", [1, 2], [1])), r"shape \[1, 2\] needs 2 elements, found 1"),
    "too many elements": (I64, message(tensor("INT64", [1], [1, 2])), r"shape \[1\] needs 1 elements, found 2"),
    "half a float": (X, bare(b"\x32\x07" + bytes(7), "FP32", [1, 2]), "7 bytes are not a multiple of the size of FP32"),
    "half a number": (I64, bare(b"\x1a\x01\x80"), "the last number of contents does not end"),
    "a number of eleven bytes": (I64, bare(b"\x1a\x0b" + b"\x80" * 10 + b"\x01"), "more than 10 bytes"),
    "a number of many bytes": (I64, bare(b"\x1a\x64" + b"\x80" * 99 + b"\x01"), "more than 10 bytes"),
    "contents beyond their end": (I64, bare(b"\x1a\x05\x01"), "goes beyond the end"),
    "an unknown kind of field": (I64, bare(b"\x1b\x01"), "a field of the unknown type 3"),
    "a text that is none": (TEXT, message(tensor("BYTES", [2], [b"a", b"\xff"])), "string 1 is not valid UTF-8"),
    "too many texts": (TEXT, message(tensor("BYTES", [1], [b""] * (MOST_TEXTS + 1))), f"at most {MOST_TEXTS} strings"),
    "too much text": (TEXT, message(tensor("BYTES", [1], [b"a" * MOST_BYTES_OF_TEXTS])), "bytes of strings"),
    "no field for the type": (
        signature(("x", "FP16", (-1,))),
        message(Tensor(name="x", datatype="FP16", shape=[1])),
        "FP16 has no field in contents: send raw_input_contents",
    ),
    "both forms": (X, message(tensor("FP32", [1, 2], [1, 2]), raw=[bytes(8)]), "either raw_input_contents or"),
    "raw contents of too many": (X, message(tensor("FP32", [1, 2]), raw=[bytes(8)] * 2), "each of 1 inputs, found 2"),
    "a negative size": (X, message(tensor("FP32", [-1, 2]), raw=[b""]), "expected a shape of non-negative integers"),
    "a huge shape": (X, message(tensor("FP32", [2**62, 2]), raw=[b""]), "is too large"),
    "another input": (X, message(tensor("FP32", [1, 2], [1, 2], name="z")), r"the inputs \['x'\], found \['z'\]"),
    "an input twice": (X, message(*[tensor("FP32", [1, 2], [1, 2])] * 2), r"the inputs \['x'\], found 2 inputs"),
    "no input": (X, message(), r"expected the inputs \['x'\], found \[\]"),
    "an unknown output": (
        X,
        message(tensor("FP32", [1, 2], [1, 2]), outputs=[Request.InferRequestedOutputTensor(name="z")]),
        r"unknown outputs \['z'\]",
    ),
    "shared memory": (
        X,
        message(Tensor(name="x", parameters={"shared_memory_region": inference_pb2.InferParameter(string_param="r")})),
        "input x: the parameter shared_memory_region is not supported",
    ),
    "no message": (X, b"\xff" * 20, "the message is not valid: a number at byte 0 does not end"),
    "half a message": (X, message(tensor("FP32", [1, 2], [1, 2]))[:-3], "goes beyond the end"),
    "a name that is no text": (X, message() + b"\x1a\x01\xff", "the message is not a valid ModelInferRequest"),
    "inputs without end": (X, b"\x2a\x00" * (MOST_FIELDS + 1), f"more than {MOST_FIELDS} fields"),
    "raw contents without end": (X, b"\x3a\x00" * (MOST_FIELDS + 1), f"more than {MOST_FIELDS} fields"),
    "contents without end": (X, b"\x2a" + b"\x82\x80\x01" + b"\x2a\x00" * (1 << 13) + b"\x0a\x00", "fields"),
    "outputs without end": (X, b"\x32\x00" * (MOST_BESIDE // 2 + 1), "larger than|more than"),
    "a long name": (X, message(tensor("FP32", [1, 2], name="x" * MOST_BESIDE)), f"larger than {MOST_BESIDE} bytes"),
    "a long unknown field": (X, message() + field_head(99, MOST_BESIDE) + bytes(MOST_BESIDE), "larger than"),
}


@pytest.mark.parametrize(("wanted", "content", "says"), ODD.values(), ids=ODD)
def test_a_message_that_is_not_what_was_expected_is_refused_with_a_sentence(
    wanted: Signature, content: bytes, says: str
) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        decoded(content, wanted, 1 << 62)
    assert caught.value.code is Code.INVALID
    assert len(str(caught.value)) < 1000


RAW = ("too few bytes for the shape", "no multiple of an element", "another type", "another shape", "a flag of two")
RAW += tuple(name for name in REFUSED if "text" in name or "length" in name)


@pytest.mark.parametrize("name", RAW)
def test_raw_contents_are_checked_as_bytes_over_http_are(name: str) -> None:
    wanted, entry, behind, says = REFUSED[name]
    content = message(tensor(entry["datatype"], entry["shape"]), raw=[behind])
    with pytest.raises(RequestError, match=says) as caught:
        decoded(content, wanted, 1 << 40)
    assert caught.value.code is Code.INVALID


@pytest.mark.parametrize(
    ("name", "version", "code"), [("o", "", 404), ("m", "2", 404), ("m", "1", 200), ("m", "", 200)]
)
def test_another_model_or_version_is_not_found(name: str, version: str, code: int) -> None:
    content = Request(model_name=name, model_version=version, inputs=[tensor("FP32", [1, 2], [1, 2])])
    try:
        decoded(content.SerializeToString())
        found = 200
    except RequestError as error:
        found = int(error.code.value)
        assert "this server serves the model 'm', version '1'" in error.message
    assert found == code


# ------------------------------------------------------------------------------------------------------- bounds, and garbage


UNITS = (
    b"\0",
    b"\x01",
    b"\x7f",
    b"\xff\x01",
    b"\x80" * 9 + b"\x01",
    b"\x2a\0",
    b"\x0a\0",
    b"\x32\0",
    b"\x3a\0",
    b"\x18\x05",
)
SIZE = 60_000
FACTOR, FACTOR_OF_TEXTS, CONSTANT = 10, 50, 1_500_000  # an element of a byte becomes one of eight


@pytest.mark.parametrize("dtype", ["FP32", "INT64", "BOOL", "BYTES"])  # one of each way to read
def test_a_message_takes_memory_in_proportion_to_its_bytes(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "PIECE", 1 << 12)
    number = next(n for n, field in Contents.DESCRIPTOR.fields_by_number.items() if field.name == FIELDS[dtype])
    wanted = signature(("x", dtype, (-1,)))
    for unit in UNITS:
        many = unit * (SIZE // len(unit))
        packed = field_head(number, len(many)) + many
        for count in (SIZE // len(unit), 1 << 30):
            for content in (bare(packed, dtype, [count]), bare(many, dtype, [count]), message() + many):
                factor = FACTOR_OF_TEXTS if dtype == "BYTES" else FACTOR
                assert peak(decoded, content, wanted, 1 << 40) <= factor * len(content) + CONSTANT, (
                    unit,
                    count,
                )


@settings(max_examples=300)
@given(st.binary(max_size=80), st.sampled_from(TYPED), st.integers(0, 9))
def test_nothing_but_a_refusal_comes_of_garbage(garbage: bytes, dtype: str, count: int) -> None:
    wanted = signature(("x", dtype, (-1,)))
    number = next(n for n, field in Contents.DESCRIPTOR.fields_by_number.items() if field.name == FIELDS[dtype])
    packed = field_head(number, len(garbage)) + garbage
    whole = message(tensor(dtype, [count]), raw=[garbage])
    for content in (garbage, message() + garbage, bare(garbage, dtype, [count]), bare(packed, dtype, [count]), whole):
        try:
            assert decoded(content, wanted).inputs["x"].shape == (count,)
        except RequestError as error:
            assert error.code is Code.INVALID or error.code is Code.NOT_FOUND


@settings(max_examples=200)
@given(st.data(), st.sampled_from(TYPED))
def test_what_protobuf_reads_is_what_is_read(data: st.DataObject, dtype: str) -> None:
    """A whole message with some bytes changed: where both take it, both take it for the same."""
    sent = bytearray(message(tensor(dtype, [4], elements_of(dtype, extremes(dtype)))))
    for _ in range(data.draw(st.integers(1, 3))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = decoded(bytes(sent), signature(("x", dtype, (-1,))))
    except RequestError:
        return
    theirs = Request.FromString(bytes(sent))
    found = elements_of(dtype, request.inputs["x"])
    assert str(found) == str(list(getattr(theirs.inputs[0].contents, FIELDS[dtype])))
    assert request.id == theirs.id
