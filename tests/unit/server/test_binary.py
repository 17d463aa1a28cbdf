"""Tensors as bytes behind the JSON of a request and of its answer: HTTP's binary extension."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.memory import peak

from fettle.api.signature import DATA_TYPES, Signature, Tensor
from fettle.runtimes.base import numpy_dtype
from fettle.server.elements import MOST_BYTES_OF_TEXTS, MOST_TEXTS
from fettle.server.protocol import HttpExchange
from fettle.server.request import Code, InferRequest, RequestError

NUMBERS = [row.v2 for row in DATA_TYPES if row.v2 != "BYTES"]
WORDS = ["", "a", "naïve\0", "日本"]


def text_bytes(*texts: str | bytes) -> bytes:
    encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def values(dtype: str, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    if dtype == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.integers(0, 100, shape).astype(numpy_dtype(dtype))


def signature(*tensors: tuple[str, str, tuple[int, ...]]) -> Signature:
    """Inputs x, y, … by name, type and shape, items along the first axis; outputs of the same form."""
    sides = tuple(
        Tensor(name=name, dtype=dtype, shape=shape, batch_axis=0 if shape and shape[0] == -1 else None)
        for name, dtype, shape in tensors
    )
    return Signature(inputs=sides, outputs=sides)


def entry(name: str, dtype: str, shape: list[int], size: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": dtype, "shape": shape, "parameters": {"binary_data_size": size}, **more}


def body(document: dict[str, Any], *behind: bytes) -> tuple[bytes, int]:
    head = orjson.dumps(document)
    return b"".join((head, *behind)), len(head)


def decoded(content: tuple[bytes, int], wanted: Signature, max_rows: int = 100) -> InferRequest:
    return HttpExchange(content[1]).decode(content[0], wanted, max_rows)


def answered(request: InferRequest, wanted: Signature, outputs: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The JSON of an answer, and the bytes behind it."""
    exchange = HttpExchange()
    answer = exchange.encode("m", "1", request, wanted, outputs)
    size = len(answer) if exchange.json_size is None else exchange.json_size
    return orjson.loads(answer[:size]), answer[size:]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (1, 0)])
def test_numbers_come_and_go_as_the_bytes_that_they_are(dtype: str, shape: tuple[int, ...]) -> None:
    array = values(dtype, *shape)
    wanted = signature(("x", dtype, (-1, shape[1])))
    document = {"inputs": [entry("x", dtype, list(shape), array.nbytes)], "parameters": {"binary_data_output": True}}
    for pad in range(8):  # the bytes begin at any address
        request = decoded(body({"id": "i" * pad, **document}, array.tobytes()), wanted)
        assert request.inputs["x"].dtype == array.dtype
        assert request.inputs["x"].tolist() == array.tolist()
        assert request.inputs["x"].flags.aligned
    head, behind = answered(request, wanted, {"x": array})
    assert behind == array.tobytes()
    parameters = {"binary_data_size": array.nbytes}
    assert head["outputs"] == [{"name": "x", "datatype": dtype, "shape": list(shape), "parameters": parameters}]


def test_a_tensor_shares_the_bytes_of_its_request() -> None:
    array = values("UINT8", 4, 100)
    content, size = body({"inputs": [entry("x", "UINT8", [4, 100], 400)]}, array.tobytes())
    received = bytearray(content)
    request = HttpExchange(size).decode(received, signature(("x", "UINT8", (-1, 100))), 10)
    received[size] ^= 255
    assert request.inputs["x"][0, 0] == array[0, 0] ^ 255


def test_texts_stand_behind_their_lengths() -> None:
    wanted, content = signature(("x", "BYTES", (-1, 2))), text_bytes(*WORDS)
    document = {"inputs": [entry("x", "BYTES", [2, 2], len(content))]}
    request = decoded(body(document, content), wanted)
    assert request.inputs["x"].tolist() == [WORDS[:2], WORDS[2:]]
    request = InferRequest({}, 2, None, None, frozenset({"x"}))
    for texts in (WORDS, [word.encode() for word in WORDS], [b"\xff\xfe", *WORDS[1:]]):  # in an answer any bytes may be
        array = np.array(texts, object).reshape(2, 2)
        assert answered(request, wanted, {"x": array})[1] == text_bytes(*texts)


def test_each_tensor_has_a_form_of_its_own() -> None:
    wanted = signature(("x", "INT64", (-1,)), ("y", "FP32", (-1, 2)), ("z", "BYTES", (-1,)), ("s", "FP64", ()))
    x, y, s = values("INT64", 1), values("FP32", 1, 2), np.array(2.5)
    document = {  # not in the signature's order
        "inputs": [
            entry("y", "FP32", [1, 2], 8),
            {"name": "z", "datatype": "BYTES", "shape": [1], "data": ["text"]},
            entry("s", "FP64", [], 8),
            entry("x", "INT64", [1], 8),
        ],
        "outputs": [{"name": "z"}, {"name": "y", "parameters": {"binary_data": True}}, {"name": "s"}],
    }
    request = decoded(body(document, y.tobytes(), s.tobytes(), x.tobytes()), wanted)
    found = [request.inputs[name].tolist() for name in "xyzs"]
    assert found == [x.tolist(), y.tolist(), ["text"], 2.5]
    head, behind = answered(request, wanted, request.inputs)
    assert [output["name"] for output in head["outputs"]] == ["z", "y", "s"]
    assert (head["outputs"][0]["data"], head["outputs"][2]["data"]) == (["text"], [2.5])
    assert "data" not in head["outputs"][1]
    assert behind == y.tobytes()


@pytest.mark.parametrize(
    ("every", "own", "binary"),
    [(None, None, False), (True, None, True), (True, False, False), (False, True, True), (None, True, True)],
)
def test_an_output_is_bytes_where_it_or_else_the_request_says_so(
    every: bool | None, own: bool | None, binary: bool
) -> None:
    wanted, array = signature(("x", "FP32", (-1,))), np.array([np.nan], np.float32)
    output = {"name": "x", "parameters": {} if own is None else {"binary_data": own}}
    document = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],
        "outputs": [output],
        "parameters": {} if every is None else {"binary_data_output": every},
    }
    request = HttpExchange().decode(orjson.dumps(document), wanted, 10)  # which may itself be JSON throughout
    head, behind = answered(request, wanted, {"x": array})
    assert behind == (array.tobytes() if binary else b"")
    assert head["outputs"][0].get("data") == (None if binary else [None])  # of what is no number JSON says null


X, TEXT = signature(("x", "FP32", (-1, 2))), signature(("x", "BYTES", (-1, 1)))
FLAG = signature(("x", "BOOL", (-1, 1)))
REFUSED: dict[str, tuple[Signature, dict[str, Any], bytes, str]] = {
    "too few bytes for the shape": (
        X,
        entry("x", "FP32", [2, 2], 12),
        bytes(12),
        r"input x: shape \[2, 2\] of FP32 needs 16 bytes, found 12",
    ),
    "no multiple of an element": (X, entry("x", "FP32", [1, 2], 7), bytes(7), "needs 8 bytes, found 7"),
    "fewer bytes than said": (X, entry("x", "FP32", [1, 2], 8), bytes(7), "input x: expected 8 bytes .* found 7"),
    "more bytes than said": (X, entry("x", "FP32", [1, 2], 8), bytes(9), "expected 8 bytes after the JSON, found 9"),
    "a size that is no number": (X, entry("x", "FP32", [1, 2], "8"), bytes(8), "binary_data_size must be a number"),
    "a negative size": (X, entry("x", "FP32", [1, 2], -8), bytes(8), "binary_data_size must be a number"),
    "a flag for a size": (X, entry("x", "FP32", [1, 2], True), bytes(1), "binary_data_size must be a number"),
    "a huge size": (X, entry("x", "FP32", [1, 2], 2**62), bytes(8), "input x: expected 4611686018427387904 bytes"),
    "data as well": (X, entry("x", "FP32", [1, 2], 8, data=[1, 2]), bytes(8), 'either "data" or'),
    "no data at all": (X, {**entry("x", "FP32", [1, 2], 8), "parameters": {}}, b"", 'input x: expected "data", or'),
    "parameters that are none": (X, entry("x", "FP32", [1, 2], 8) | {"parameters": [8]}, b"", "must be an object"),
    "another type": (X, entry("x", "FP64", [1, 2], 16), bytes(16), "expected datatype FP32, found FP64"),
    "another shape": (X, entry("x", "FP32", [1, 3], 12), bytes(12), r"expected shape \[-1, 2\]"),
    "a place in shared memory": (
        X,
        {**entry("x", "FP32", [1, 2], 0), "parameters": {"shared_memory_region": "r"}},
        b"",
        "the parameter shared_memory_region is not supported",
    ),
    "a flag of two": (FLAG, entry("x", "BOOL", [1, 1], 1), b"\x02", "BOOL must be bytes of 0 or 1"),
    "no length": (TEXT, entry("x", "BYTES", [1, 1], 3), bytes(3), "needs 1 strings, found 0"),
    "a text beyond the end": (TEXT, entry("x", "BYTES", [1, 1], 4), struct.pack("<I", 1), "needs 1 strings, found 0"),
    "a text of 4 GB": (TEXT, entry("x", "BYTES", [1, 1], 4), b"\xff" * 4, "needs 1 strings, found 0"),
    "a text too few": (TEXT, entry("x", "BYTES", [2, 1], 5), text_bytes("a"), "needs 2 strings, found 1"),
    "a text too many": (TEXT, entry("x", "BYTES", [1, 1], 10), text_bytes("a", "b"), "of 5 bytes in all, found 10"),
    "a text that is none": (TEXT, entry("x", "BYTES", [1, 1], 5), text_bytes(b"\xff"), "string 0 is not valid UTF-8"),
    "too many texts": (TEXT, entry("x", "BYTES", [MOST_TEXTS + 1, 1], 4), bytes(4), f"at most {MOST_TEXTS} strings"),
    "too much text": (
        TEXT,
        entry("x", "BYTES", [1, 1], MOST_BYTES_OF_TEXTS + 1),
        bytes(MOST_BYTES_OF_TEXTS + 1),
        f"at most {MOST_BYTES_OF_TEXTS} bytes of strings",
    ),
}


@pytest.mark.parametrize(("wanted", "tensor", "behind", "message"), REFUSED.values(), ids=REFUSED)
def test_bytes_that_are_not_what_was_said_are_a_400_that_names_the_input(
    wanted: Signature, tensor: dict[str, Any], behind: bytes, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        decoded(body({"inputs": [tensor]}, behind), wanted, 1 << 40)
    assert caught.value.code is Code.INVALID
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
        ({"parameters": 3}, 'the request: "parameters" must be an object'),
        ({"outputs": [{"name": "x", "parameters": {"binary_data": "yes"}}]}, "output x: .* must be true or false"),
        ({"outputs": [{"name": "x", "parameters": {"classification": 3}}]}, "classification is not supported"),
    ],
)
def test_a_parameter_that_cannot_be_honoured_is_a_400(document: dict[str, Any], message: str) -> None:
    content = body({"inputs": [entry("x", "FP32", [1, 2], 8)], **document}, bytes(8))
    with pytest.raises(RequestError, match=message):
        decoded(content, X)


def test_json_longer_than_the_body_is_a_400() -> None:
    content, size = body({"inputs": [entry("x", "FP32", [1, 2], 8)]}, bytes(8))
    with pytest.raises(RequestError, match=f"Content-Length is {size + 9}, but the body has {size + 8} bytes"):
        decoded((content, size + 9), X)


@pytest.mark.parametrize("dtype", [row.v2 for row in DATA_TYPES])
def test_a_request_takes_memory_in_proportion_to_its_bytes(dtype: str) -> None:
    wanted, size = signature(("x", dtype, (-1,))), 160_000
    for unit in (b"\0", b"\1\0\0\0", b"\xff", text_bytes("ab")):
        behind = unit * (size // len(unit))
        for count in (1, size, size // (numpy_dtype(dtype).itemsize if dtype != "BYTES" else len(unit)), 1 << 30):
            content = body({"inputs": [entry("x", dtype, [count], len(behind))]}, behind)
            assert (
                peak(decoded, content, wanted, 1 << 40) <= (16 if dtype == "BYTES" else 2) * len(content[0]) + 100_000
            )


@given(
    st.binary(max_size=60),
    st.sampled_from([row.v2 for row in DATA_TYPES]),
    st.lists(st.integers(0, 4), max_size=2),
    st.one_of(st.none(), st.integers(-2, 70), st.booleans(), st.text(max_size=3)),
    st.integers(0, 200),
)
def test_nothing_but_a_400_comes_of_garbage(
    garbage: bytes, dtype: str, shape: list[int], size: Any, json_size: int
) -> None:
    wanted = signature(("x", dtype, (-1, 2)))
    content, right = body({"inputs": [entry("x", dtype, shape, size)]}, garbage)
    for length in (right, json_size):
        try:
            request = decoded((content, length), wanted)
            assert request.inputs["x"].shape == tuple(shape)
        except RequestError as error:
            assert error.code is Code.INVALID
