"""The V1 protocol: what comes as rows or columns without types and shapes, and how it is answered."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.test_binary import signature

from fettle.api.signature import DATA_TYPES, Signature, Tensor
from fettle.server import elements
from fettle.server.predict import Predict
from fettle.server.request import Code, InferRequest, RequestError

X = signature(("x", "FP32", (-1, 2)))
TWO = signature(("x", "FP32", (-1, 2)), ("t", "BYTES", (-1,)))
FLAT, TEXT, SCALAR = signature(("x", "INT64", (-1,))), signature(("t", "BYTES", (-1,))), signature(("s", "FP64", ()))
SECOND = Signature(  # items along the second axis
    inputs=(Tensor(name="x", dtype="FP32", shape=(2, -1), batch_axis=1),),
    outputs=(Tensor(name="x", dtype="FP32", shape=(2, -1), batch_axis=1),),
)


def asked(document: Any, wanted: Signature) -> tuple[Predict, InferRequest]:
    codec = Predict()
    return codec, codec.decode(document if isinstance(document, bytes) else orjson.dumps(document), wanted, 1 << 20)


@pytest.mark.parametrize(
    ("wanted", "document", "inputs", "answer"),
    [
        (X, {"instances": [[1, 2], [3, 4]]}, {"x": [[1, 2], [3, 4]]}, {"predictions": [[1, 2], [3, 4]]}),
        (X, {"instances": [{"x": [1, 2]}]}, {"x": [[1, 2]]}, {"predictions": [[1, 2]]}),
        (X, {"inputs": [[1, 2]]}, {"x": [[1, 2]]}, {"outputs": [[1, 2]]}),
        (X, {"inputs": {"x": [[1, 2]]}}, {"x": [[1, 2]]}, {"outputs": [[1, 2]]}),
        (FLAT, {"instances": [1, 2, 3]}, {"x": [1, 2, 3]}, {"predictions": [1, 2, 3]}),
        (SCALAR, {"inputs": 2.5}, {"s": 2.5}, {"outputs": 2.5}),
        (SECOND, {"instances": [[1, 2], [3, 4], [5, 6]]}, {"x": [[1, 3, 5], [2, 4, 6]]}, {"predictions": [[1, 2], [3, 4], [5, 6]]}),
        (SECOND, {"inputs": [[1, 3, 5], [2, 4, 6]]}, {"x": [[1, 3, 5], [2, 4, 6]]}, {"outputs": [[1, 3, 5], [2, 4, 6]]}),
        (TEXT, {"instances": ["a", {"b64": base64.b64encode("ü".encode()).decode()}]}, {"t": ["a", "ü"]}, {"predictions": ["a", "ü"]}),
        (
            TWO,
            {"signature_name": "serving_default", "instances": [{"x": [1, 2], "t": "a"}, {"t": "b", "x": [3, 4]}]},
            {"x": [[1, 2], [3, 4]], "t": ["a", "b"]},
            {"predictions": [{"x": [1, 2], "t": "a"}, {"x": [3, 4], "t": "b"}]},
        ),
        (TWO, {"inputs": {"x": [[1, 2]], "t": ["a"]}}, {"x": [[1, 2]], "t": ["a"]}, {"outputs": {"x": [[1, 2]], "t": ["a"]}}),
    ],
)  # fmt: skip
def test_rows_are_answered_by_rows_and_columns_by_columns(
    wanted: Signature, document: dict[str, Any], inputs: dict[str, Any], answer: dict[str, Any]
) -> None:
    codec, request = asked(document, wanted)
    assert {name: array.tolist() for name, array in request.inputs.items()} == inputs
    assert orjson.loads(codec.encode("m", "1", request, wanted, request.inputs)) == answer


@pytest.mark.parametrize(
    ("wanted", "document", "says"),
    [
        (X, [], 'an object with either "instances" or "inputs"'),
        (X, {}, 'an object with either "instances" or "inputs"'),
        (X, {"instances": [[1, 2]], "inputs": [[1, 2]]}, 'an object with either "instances" or "inputs"'),
        (X, {"instances": []}, "a list of at least one item"),
        (X, {"instances": 3}, "a list of at least one item"),
        (X, {"instances": [[1, 2], [3]]}, "input x: the nesting of data does not match"),
        (X, {"instances": [[1, 2, 3]]}, r"input x: expected shape \[-1, 2\] \(-1 = any size\), found \[1, 3\]"),
        (X, {"instances": [1, 2]}, "input x: expected lists nested 2 deep, found 1"),
        (X, {"instances": [[[1, 2]]]}, "input x: expected lists nested 2 deep, found more"),
        (X, {"instances": [["a", "b"]]}, "the elements of data do not fit FP32"),
        (X, {"instances": [[1e39, 0]]}, "do not fit FP32"),
        (X, {"instances": [{"z": [1, 2]}]}, r"expected the inputs \['x'\], found \['z'\]"),
        (X, {"instances": [{"x": [1, 2]}, [1, 2], {}]}, r"expected the inputs \['x'\], found \[\]"),
        (TWO, {"instances": [[1, 2]]}, r"an object with the inputs \['x', 't'\]"),
        (TWO, {"inputs": {"x": [[1, 2]], "t": ["a", "b"]}}, "different numbers of items"),
        (SCALAR, {"instances": [1]}, '"instances" is not supported: send "inputs"'),
        (TEXT, {"instances": [{"b64": "?"}]}, 'input t: "b64" must be UTF-8 text in base64'),
        (TEXT, {"instances": [{"b64": "/w=="}]}, 'input t: "b64" must be UTF-8 text in base64'),
        (TEXT, {"instances": [{"b64": 3}]}, 'input t: "b64" must be UTF-8 text in base64'),
        (TEXT, {"instances": [{"b64": "", "x": 1}]}, r"expected the inputs \['t'\]"),
        (TEXT, b'{"instances": ' + b"[" * 900 + b"]" * 900 + b"}", "input t: expected lists nested 1 deep, found more"),
        (X, b'{"instances": ' + b"[" * 100_000, "not valid JSON"),
        (X, b"\xff", "not valid JSON"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_a_400_that_says_what_was_expected(wanted: Signature, document: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        asked(document, wanted)
    assert caught.value.code is Code.INVALID


@pytest.mark.parametrize("form", ["instances", "inputs"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (2, 0)])
def test_large_requests_of_one_known_shape_are_read_in_pieces(
    monkeypatch: pytest.MonkeyPatch, form: str, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(5).standard_normal((7, *shape)).astype(np.float32)
    wanted = signature(("x", "FP32", (-1, *shape)))
    document = orjson.dumps({form: array.tolist()})
    small = asked(document, wanted)[1].inputs["x"]
    for module in ("elements", "envelope", "predict"):
        monkeypatch.setattr(f"fettle.server.{module}.PIECE", 16)
    assert np.array_equal(asked(document, wanted)[1].inputs["x"], small)
    assert np.array_equal(small, array)
    for broken in (document.replace(b"],[", b",", 1), document.replace(b",", b"", 1), document[:-9]):
        if broken != document:
            with pytest.raises(RequestError) as caught:
                asked(broken, wanted)
            assert caught.value.code is Code.INVALID
    for other in (TEXT, TWO, SECOND, signature(("x", "FP32", (-1, -1)))):
        with pytest.raises(RequestError, match="is not supported by the V1 protocol for this model"):
            asked(orjson.dumps({form: [{"x": [1.5] * 9, "t": "a" * 20}]}), other)


@pytest.mark.parametrize("dtype", [row.v2 for row in DATA_TYPES])
@pytest.mark.parametrize("shape", [(), (3,), (5, 2), (0, 2), (2, 0), (3, 2, 2), (2, 1, 3, 2)])
def test_answers_are_nested_as_their_shape_says_in_whatever_pieces(
    dtype: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(int(np.prod(shape))).reshape(shape)
    array = values.astype(elements.numpy_type(dtype)) if dtype != "BYTES" else values.astype(str).astype(object)
    for at_once in (1 << 16, 4, 1):
        monkeypatch.setattr(elements, "NUMBERS_AT_ONCE", at_once)
        monkeypatch.setattr(elements, "TEXTS_AT_ONCE", at_once)
        assert orjson.loads(b"".join(elements.write_nested(array, dtype))) == array.tolist()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "t", "b64"]), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["instances", "inputs", "other"]), JSON, st.sampled_from([X, TWO, FLAT, TEXT, SCALAR, SECOND]))
def test_nothing_but_a_400_comes_of_garbage(key: str, values: Any, wanted: Signature) -> None:
    try:
        _, request = asked({key: values}, wanted)
    except RequestError as error:
        assert error.code is Code.INVALID
        return
    for tensor in wanted.inputs:
        assert request.inputs[tensor.name].ndim == len(tensor.shape)
