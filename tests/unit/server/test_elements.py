"""The elements of a tensor, from JSON and back: what is taken, what is refused and why, and what it costs."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.server.memory import peak

from fettle.api.signature import DATA_TYPES, Signature, Tensor
from fettle.errors import RuntimeFailure
from fettle.server import elements
from fettle.server.elements import MOST_TEXT_BYTES, MOST_TEXTS, ElementsError, Span, read, take, write
from fettle.server.protocol import decode
from fettle.server.request import Code, RequestError

ONE = {"FP": "1", "BF": "1", "IN": "1", "UI": "1", "BO": "true", "BY": '"a"'}  # the shortest element of each kind
SMALL_PIECE = 64  # bytes: what is read in one piece and what in many must come out the same


def array_of(text: str | bytes, dtype: str, shape: list[int]) -> np.ndarray:
    """As a small body and as a large one, in pieces of what `elements.PIECE` says."""
    content = text if isinstance(text, bytes) else text.encode()
    if elements.PIECE < SMALL_PIECE:
        return read(Span(content, 0, len(content)), dtype, shape)
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ElementsError(f"data is not a list of {dtype}: {error}") from error
    return take(values, dtype, shape)


def signature(dtype: str, *shape: int) -> Signature:
    return Signature(inputs=(Tensor(name="x", dtype=dtype, shape=shape, batch_axis=0),), outputs=())


def body(dtype: str, shape: Any, data: str | bytes, more: str = "") -> bytes:
    data = data if isinstance(data, bytes) else data.encode()
    head = f'{{"inputs": [{{"name": "x", "datatype": "{dtype}", "shape": {json.dumps(shape)}, {more} "data": '
    return head.encode() + data + b"}]}"


@pytest.fixture(params=["whole", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of reading: of little text, and of much."""
    if request.param == "in pieces":
        monkeypatch.setattr(elements, "PIECE", 4)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    ("dtype", "text", "expected"),
    [
        ("FP32", "[1, 2.5, -3e2]", np.array([1, 2.5, -300], np.float32)),
        ("FP32", "[3.4028235e38, 1e-50, 16777217]", np.array([3.4028235e38, 0, 16777216], np.float32)),
        ("FP64", "[1.7976931348623157e308]", np.array([1.7976931348623157e308])),
        ("FP16", "[65504, 65519]", np.array([65504, 65504], np.float16)),
        ("INT64", "[-9223372036854775808, 9223372036854775807, -0]", np.array([-(2**63), 2**63 - 1, 0])),
        ("UINT64", "[18446744073709551615, 0]", np.array([2**64 - 1, 0], np.uint64)),
        ("INT8", "[-128, 127]", np.array([-128, 127], np.int8)),
        ("BOOL", "[true, false]", np.array([True, False])),
        ("BYTES", r'["a\u0000", "\"[,]\"", "\\", "", "ü😀"]', np.array(["a\0", '"[,]"', "\\", "", "ü😀"], object)),
    ],
)
def test_elements_come_out_as_they_were_written(dtype: str, text: str, expected: np.ndarray) -> None:
    found = array_of(text, dtype, [len(expected)])
    assert found.dtype == expected.dtype
    assert found.tolist() == expected.tolist()


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("FP32", "[1e39]"), ("FP32", "[-1e39, 1]"), ("FP32", "[1, 1e39]"), ("FP64", "[1e400]"), ("FP16", "[70000]"),
        ("FP16", "[1e6]"), ("BF16", "[1, -3.4e39]"), ("INT8", "[128]"), ("UINT8", "[256, 1]"), ("UINT8", "[-1]"),
        ("INT32", "[2147483648]"), ("INT64", "[9223372036854775808]"), ("INT64", "[-9223372036854775809]"),
        ("INT64", "[1180591620717411303424]"), ("UINT64", "[18446744073709551616]"), ("INT64", "[-1, 9223372036854775808]"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_its_type_is_refused_not_bent(dtype: str, text: str) -> None:
    with pytest.raises(ElementsError, match=rf"data (contains values that do not fit|is not a list of) {dtype}"):
        array_of(text, dtype, [text.count(",") + 1])


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("FP32", "[true]"), ("FP32", "[null]"), ("FP32", '["1"]'), ("FP32", "[1.5, true]"), ("FP32", "[{}]"), ("FP32", "[1, {}]"),
        ("INT64", "[1.0]"), ("INT64", "[1e3]"), ("INT64", "[true]"), ("INT64", '[1, "2"]'), ("INT64", "[null]"), ("BOOL", "[1]"),
        ("BOOL", "[null]"), ("BOOL", '["true"]'), ("BYTES", "[1]"), ("BYTES", '["a", 1]'), ("BYTES", "[null]"), ("BYTES", '["a", {}]'),
    ],
)  # fmt: skip
def test_an_element_of_another_type_is_refused(dtype: str, text: str) -> None:
    with pytest.raises(ElementsError, match=f"the elements of data do not fit {dtype}: expected "):
        array_of(text, dtype, [text.count(",") + 1])


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("[[1, 2], [3]]", [1, 3]), ("[[1, 2, 3], [4, 5, 6]]", [3, 2]), ("[1, [2], 3]", [3]), ("[[1, 2], 3]", [3]), ("[[[1]]]", [1]),
        ("[1[], 2]", [2]), ("[[1], 2[]]", [2, 1]), ("[[1]2, [3]]", [3]), ("[1, 2,]", [2]), ("[1, 2,]", [3]), ("[, 1]", [2]), ("[1 2]", [2]),
        ("[1, 2]]", [2]), ("[[1, 2]", [1, 2]), ("[]", [1]), ("[1]", [0]), ("[[]]", [0]), ("[[], []]", [1, 0]), ("[1, 2, 3]", [2]),
        ("[1, 2]", [3]), ("[1.]", [1]), ("[01]", [1]), ("[+1]", [1]), ("[NaN]", [1]), ("[Infinity]", [1]), ("[-]", [1]), ("[1], [2]", [2]),
        ("[" * 900 + "1" + "]" * 900, [1]), ("[" * 40 + "1" + "]" * 40, [1]), ("[1, 2, 3, 4, 5, 6, 7, 8, 9]", [2]),
    ],
)  # fmt: skip
def test_other_numbers_of_elements_other_nesting_and_what_is_no_json_are_refused(text: str, shape: list[int]) -> None:
    with pytest.raises(ElementsError):
        array_of(text, "FP32", shape)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    ("text", "shape"), [("[]", [0]), ("[]", [2, 0]), ("[[], []]", [2, 0]), ("[[]]", [1, 0]), ("[]", [0, 2])]
)
def test_an_empty_array_has_no_elements(text: str, shape: list[int]) -> None:
    for dtype in ("FP32", "INT64", "BYTES", "BOOL"):
        assert array_of(text, dtype, shape).shape == tuple(shape)


TEXTS = st.text(st.sampled_from('ab"\\[],:{} ü\n\0😀'), max_size=12)


@given(
    st.lists(st.lists(TEXTS, min_size=2, max_size=2), min_size=1, max_size=30),
    st.integers(4, SMALL_PIECE),
    st.booleans(),
)
def test_texts_are_the_same_in_whatever_pieces_they_are_read(
    rows: list[list[str]], piece: int, ascii_only: bool
) -> None:
    data = json.dumps(rows, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "PIECE", piece)
        patch.setattr("fettle.server.envelope.PIECE", piece)
        request = decode(body("BYTES", [len(rows), 2], data), signature("BYTES", -1, 2), 100)
    assert request.inputs["x"].tolist() == rows


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1, max_size=30),
       st.integers(4, SMALL_PIECE))  # fmt: skip
def test_numbers_are_the_same_in_whatever_pieces_they_are_read(rows: list[list[float]], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "PIECE", piece)
        patch.setattr("tests.unit.server.test_elements.SMALL_PIECE", SMALL_PIECE + 1)
        for data in (rows, [number for row in rows for number in row]):
            text = json.dumps(data)
            assert array_of(text, "FP32", [len(rows), 3]).tolist() == rows


@given(st.binary(max_size=60), st.sampled_from([row.v2 for row in DATA_TYPES]))
def test_nothing_but_a_400_comes_of_garbage(garbage: bytes, dtype: str) -> None:
    for data in (garbage, b"[" + garbage + b"]"):
        for piece in (4, 1 << 18):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(elements, "PIECE", piece)
                patch.setattr("fettle.server.envelope.PIECE", piece)
                try:
                    decode(body(dtype, [1], data), signature(dtype, -1), 10)
                except RequestError as error:
                    assert error.code is Code.INVALID


HOSTILE = {
    "another type": b"[],",
    "objects": b"{},",
    "numbers": b"1,",
    "large numbers": b"257,",
    "floats": b"0.5,",
    "texts": b'"ab",',
    "empty texts": b'"",',
    "flags": b"true,",
    "escapes": b'"\\"",',
    "rows": b"[1],",
    "brackets": b"[",
}
ONE_OF_EACH_WAY = ("FP32", "FP16", "BF16", "UINT8", "INT64", "BOOL", "BYTES")  # in which elements are read
SIZE = 100_000
# A peak of at most this many times the body's bytes; of short texts each is an object of 50 bytes.
FACTOR, FACTOR_OF_TEXTS = 8, 16
FACTOR_OF_A_PIECE = 20  # which orjson reads at once, with room for twelve times its bytes; at most MOST_TEXT_BYTES
CONSTANT = 1_000_000  # what a piece of 8 KiB takes


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a body of many pieces need not be large."""
    monkeypatch.setattr(elements, "PIECE", 1 << 13)
    monkeypatch.setattr("fettle.server.envelope.PIECE", 1 << 13)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [row.v2 for row in DATA_TYPES])
def test_a_request_takes_memory_in_proportion_to_its_bytes_whatever_is_in_it(dtype: str) -> None:
    """Each kind of content for a tensor of this type, its shape saying as many elements as there are, or one."""
    own = ONE[dtype[:2]].encode() + b","
    for unit in (own, *(HOSTILE.values() if dtype in ONE_OF_EACH_WAY else ())):
        count = SIZE // len(unit)
        data = b"[" + (unit * count).rstrip(b",") + b"]"
        factor = FACTOR_OF_TEXTS if dtype == "BYTES" else FACTOR
        for shape in ([count], [1]):
            content = body(dtype, shape, data)
            assert peak(decode, content, signature(dtype, -1), 1 << 40) <= factor * len(content) + CONSTANT, (
                unit,
                shape,
            )


@pytest.mark.usefixtures("small_pieces")
def test_one_long_text_among_short_ones_costs_no_more_than_itself() -> None:
    content = body("BYTES", [1000], json.dumps(["x" * 200_000] + ["y"] * 999))
    assert peak(decode, content, signature("BYTES", -1), 1 << 40) <= FACTOR_OF_A_PIECE * len(content) + CONSTANT
    content = body("FP32", [1, 4], json.dumps(["a" * 200_000] + ["b"] * 50_000))
    assert peak(decode, content, signature("FP32", -1, 4), 1 << 40) <= FACTOR * len(content) + CONSTANT


@pytest.mark.parametrize("place", ['"parameters": {"a": [%s]},', '"data2": [%s],'])
def test_what_stands_beside_the_data_is_bounded_too(place: str) -> None:
    content = body("FP32", [1], "[1]", more=place % ("[]," * 1_000_000 + "1"))
    assert peak(decode, content, signature("FP32", -1), 1 << 40) <= FACTOR * len(content) + CONSTANT
    with pytest.raises(RequestError, match="without the inputs' data is larger than"):
        decode(content, signature("FP32", -1), 10)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**32, 2**32], "is too large"),
        ([2**62, 4], "is too large"),
        ([2**63, 1], "is too large"),
        ([2**62, 0], "is too large"),
        ([2**70, 0], '"shape" must be a list of non-negative integers'),
        ([1, 2**30], "needs 1073741824 elements, found 0"),
        ([-1, 2], '"shape" must be a list of non-negative integers'),
        ([True, 2], '"shape" must be a list of non-negative integers'),
        ([1.0, 2], '"shape" must be a list of non-negative integers'),
        ([[1], 2], '"shape" must be a list of non-negative integers'),
        ([1] * 1000, r"expected shape \[-1, -1\] \(-1 = any size\), found"),
        ([0, 2], "expected 1 to 10 items"),
    ],
)
def test_a_shape_that_is_none_is_a_400(shape: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        decode(body("FP32", shape, "[]"), signature("FP32", -1, -1), 10)
    assert caught.value.code is Code.INVALID
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("count", "data", "message"),
    [
        (MOST_TEXTS + 1, '["a"' + ',"a"' * MOST_TEXTS + "]", f"at most {MOST_TEXTS} strings"),
        (5, json.dumps(["a" * (MOST_TEXT_BYTES - 9)] * 5), "bytes of strings"),
        (1, '["' + "a" * (MOST_TEXT_BYTES + 9) + '","a"]', "takes more than"),
    ],
)
def test_texts_are_bounded_in_number_and_length(count: int, data: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode(body("BYTES", [count], data), signature("BYTES", -1), 1 << 40)


def test_data_is_found_wherever_a_key_of_that_name_may_stand() -> None:
    wanted = signature("FP32", -1)
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    for entry in (tensor, dict(reversed(tensor.items())), {"parameters": {"data": [3], 'a"data': [4]}, **tensor}):
        document = {"id": r'\"data":[1]', "parameters": {"data": [[5, "]"]]}, "inputs": [entry]}
        for text in (json.dumps(document), json.dumps(document, indent=3)):
            request = decode(text.encode(), wanted, 10)
            assert (request.inputs["x"].tolist(), request.id) == ([1, 2], document["id"])


@pytest.mark.parametrize("data", ["7", '"[1]"', "{}", "null", '{"data": [1]}'])
def test_data_that_is_no_list_is_a_400(data: str) -> None:
    with pytest.raises(RequestError, match='"data" must be a list'):
        decode(body("FP32", [1], data), signature("FP32", -1), 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "each output can be requested only once"),
        ({"outputs": [{"name": "z" * 10_000}]}, "unknown outputs"),
        ({"id": 7}, '"id" must be a string'),
        ({"inputs": []}, "expected the inputs"),
        ({"inputs": [{"name": "x"}] * 5}, "expected the inputs"),
        ({"inputs": [{"name": "x" * 10_000}]}, "expected the inputs"),
        ({"inputs": [{"name": ["x"]}]}, "each input needs a string"),
    ],
)
def test_a_request_that_asks_for_what_is_not_there_is_a_short_400(change: dict[str, Any], message: str) -> None:
    wanted = signature("FP32", -1).model_copy(update={"outputs": (Tensor(name="y", dtype="FP32", shape=(-1,)),)})
    document = orjson.loads(body("FP32", [1], "[1]")) | change
    with pytest.raises(RequestError, match=message) as caught:
        decode(orjson.dumps(document), wanted, 10)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content", [b'{"inputs": "\xff"}', b'{"inputs": [], "id": "\\ud800"}', b"", b"\x00", b'{"inputs": [{"data": [1']
)
def test_what_is_no_json_is_a_400(content: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode(content, signature("FP32", -1), 10)
    assert caught.value.code is Code.INVALID


@pytest.mark.parametrize("dtype", [row.v2 for row in DATA_TYPES])
def test_an_answer_reads_as_it_was_written_in_whatever_pieces(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "NUMBERS_AT_ONCE", 3)
    monkeypatch.setattr(elements, "TEXTS_AT_ONCE", 3)
    rng = random.Random(5)
    values = [f"t{number}" if dtype == "BYTES" else rng.random() < 0.5 for number in range(8)]
    array = np.array(values, elements.numpy_dtype(dtype)).reshape(2, 4)
    text = b"".join(write(array, dtype))
    assert array_of(text, dtype, [2, 4]).tolist() == array.tolist()
    assert b"".join(write(array[:0], dtype)) == b"[]"


@pytest.mark.parametrize("value", [b"\xff", "\ud800"])
def test_a_text_of_an_answer_that_is_no_utf8_is_the_models_failure(value: object) -> None:
    with pytest.raises(RuntimeFailure, match="is not valid UTF-8"):
        write(np.array([value], object), "BYTES")
