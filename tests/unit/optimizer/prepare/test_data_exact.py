"""Whatever a file holds comes back exactly, or is refused: byte order, widths, texts, damaged and hostile files."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from fettle.api.reasons import Reason
from fettle.api.signature import BY_V2
from fettle.errors import DataError
from fettle.optimizer.data.columns import Columns, ReadRequest, Room
from fettle.optimizer.data.files import read_columns
from fettle.preprocess.cast import cast
from fettle.runtimes.base import Array, numpy_dtype, v2_dtype

HUGE = 1 << 62


def wanted(dtype: str = "FP32", most: int | None = None, room: int = 1 << 30) -> ReadRequest:
    return ReadRequest("here", {"x": dtype}, "labels", most, Room(room))


def read(name: str, content: bytes, asked: ReadRequest) -> Columns:
    return read_columns(name, io.BytesIO(content), asked)


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy(array: Array, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def npy_of(shape: tuple[int, ...], descr: Any = "<f4", content: bytes = b"", fortran: bool = False) -> bytes:
    """A .npy that says what it likes of its values."""
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_2_0(stream, header)
    return stream.getvalue() + content


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def jsonl(*values: Any) -> bytes:
    return b"".join(json.dumps({"x": value}).encode() + b"\n" for value in values)


def parquet(column: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": column}), stream, **options)
    return stream.getvalue()


# --------------------------------------------------------------------------------------------------------------- data types

EXACT = [
    ("FP32", np.array([0.5, -2], ">f4"), [0.5, -2]),
    ("FP32", np.array([0.5, -2], ">f8"), [0.5, -2]),
    ("FP64", np.array([0.5, -2], np.float16), [0.5, -2]),
    ("FP64", np.array([0.5, -2], np.longdouble), [0.5, -2]),
    ("FP16", np.array([0.5, 65504], np.float64), [0.5, 65504]),
    ("BF16", np.array([0.5, 1e38], np.float64), [0.5, float(ml_dtypes.bfloat16(1e38))]),
    ("INT64", np.array([1, -2], ">i8"), [1, -2]),
    ("INT64", np.array([1, 2], ">u2"), [1, 2]),
    ("INT8", np.array([127, -128], ">i4"), [127, -128]),
    ("UINT8", np.array([255, 0], np.int64), [255, 0]),
    ("UINT64", np.array([2**64 - 1], np.uint64), [2**64 - 1]),
    ("BOOL", np.array([True, False]), [True, False]),
    ("BOOL", np.array([0, 1], ">i2"), [False, True]),
    ("BYTES", np.array(["naïve", "e\u0301", ""], ">U7"), ["naïve", "e\u0301", ""]),
    ("BYTES", np.array(["naïve".encode()]), ["naïve"]),
]


@pytest.mark.parametrize(("dtype", "array", "values"), EXACT)
def test_another_width_or_byte_order_of_the_same_kind_is_read_as_the_same_values(
    dtype: str, array: Array, values: list[Any]
) -> None:
    found = read("items.npz", npz(x=array), wanted(dtype)).arrays["x"]
    assert v2_dtype(found) == dtype and found.dtype.isnative
    assert found.tolist() == values


REFUSED = [
    ("FP32", np.array([1e300]), "1 values do not fit FP32, for example 1e+300"),
    ("FP16", np.array([1, 70000.0], np.float32), "1 values do not fit FP16, for example 70000"),
    ("BF16", np.array([1, 1e39]), "1 values do not fit BF16, for example 1e+39"),
    ("FP32", np.array([1, 2]), "expected FP32, found INT64; convert it"),
    ("FP32", np.array([True]), "expected FP32, found BOOL"),
    ("INT32", np.array([2**31]), "expected INT32, -2147483648 to 2147483647, found values from 2147483648"),
    ("INT8", np.array([128], np.uint8), "expected INT8, -128 to 127"),
    ("UINT8", np.array([-1], np.int8), "expected UINT8, 0 to 255, found values from -1"),
    ("INT64", np.array([2**63], np.uint64), "found values from 9223372036854775808"),
    ("INT64", np.array([1.5]), "expected INT64, found FP64"),
    ("INT64", np.array([1.0]), "expected INT64, found FP64"),
    ("INT64", np.array([True]), "expected INT64, found BOOL"),
    ("BOOL", np.array([0, 2]), "expected BOOL, or numbers 0 and 1, found 2"),
    ("BOOL", np.array([1.0]), "expected BOOL, found FP64"),
    ("BYTES", np.array([1]), "expected BYTES, found INT64"),
    ("INT64", np.array(["1"]), "expected INT64, found BYTES"),
    ("FP32", np.array([1j]), "complex numbers (complex128) cannot be read"),
    ("FP32", np.array(["2020-01-01"], "M8[D]"), "dates"),
    ("FP32", np.array([3], "m8[s]"), "durations"),
    ("FP32", np.zeros(2, [("a", "f4")]), "records"),
    ("BF16", np.zeros(2, ml_dtypes.bfloat16), "save numbers, booleans or strings (bfloat16 and float8 as float32"),
    ("BYTES", np.array([b"\xff"]), "bytes must be UTF-8"),
    ("BYTES", np.array(["\ud800"]), "half of a surrogate pair"),
    ("BYTES", np.frombuffer(b"\xff\xff\xff\x7f", "<U1"), "strings must be Unicode"),
    ("BOOL", np.frombuffer(b"\x02\x01", bool), "expected booleans as bytes 0 and 1"),
]


@pytest.mark.parametrize(("dtype", "array", "words"), REFUSED)
def test_what_an_input_cannot_take_exactly_is_refused(dtype: str, array: Array, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read("items.npz", npz(x=array), wanted(dtype))
    assert (caught.value.reason, words in caught.value.message) == (Reason.DATA_INVALID, True), caught.value.message


@pytest.mark.parametrize(
    "labels",
    [np.array([3, -1], ">i4"), np.array([0.5, 2], ">f8"), np.array(["a", "ü"], ">U2"), np.array([True, False])],
)
def test_labels_keep_their_values_in_any_byte_order(labels: Array) -> None:
    found = read("items.npz", npz(x=np.zeros(2, "f4"), labels=labels), wanted()).arrays["labels"]
    assert found.tolist() == labels.tolist() and found.dtype.isnative


# ---------------------------------------------------------------------------------------------------------------------- npz


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("most", [None, 3])
def test_every_version_and_order_of_npy_gives_the_same_items(
    version: tuple[int, int], fortran: bool, most: int | None
) -> None:
    array = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    content = npy(np.asfortranarray(array) if fortran else array, version)
    found = read("items.npz", zipped(x=content), wanted(most=most)).arrays["x"]
    assert found.flags.c_contiguous and (found == array[:most]).all()


def test_names_of_fields_outside_latin_are_refused_as_the_records_they_are() -> None:
    with pytest.raises(DataError, match="records"):
        read("items.npz", zipped(x=npy(np.zeros(2, [("名", "f4")]), (3, 0))), wanted())


def test_a_table_of_fewer_rows_than_its_file_says_is_damaged() -> None:
    """Parquet counts rows twice: for the whole file, and for each part of it."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": np.arange(10, dtype="f4")}), stream, store_schema=False)
    content = bytearray(stream.getvalue())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    count = content.index(b"\x16\x14", footer) + 1  # an i64, 10
    content[count] = 40
    assert pq.ParquetFile(io.BytesIO(bytes(content))).metadata.num_rows == 20
    with pytest.raises(DataError, match="expected 20 items, found 10; the file is damaged"):
        read("items.parquet", bytes(content), wanted())


def encrypted() -> bytes:
    """An archive whose member says that it is encrypted."""
    content = bytearray(zipped(x=npy(np.zeros(2, "f4"))))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def flipped() -> bytes:
    """An archive in which a value is not what it was."""
    content = bytearray(npy_in_store())
    content[len(content) // 2] ^= 1
    return bytes(content)


def npy_in_store() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.arange(4000, dtype="f4"))
    return stream.getvalue()


def twice() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("x.npy", npy(np.zeros(2, "f4")))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zipped(x=npy_of((HUGE,))), "is truncated: expected"),
        (zipped(x=npy_of((HUGE, HUGE))), "is truncated"),
        (zipped(x=npy_of((HUGE, 0))), "more than"),
        (zipped(x=npy_of((2, HUGE), fortran=True)), "is truncated"),
        (zipped(x=npy_of((-1, 4))), "a shape of"),
        (zipped(x=npy_of((2,), "<U500000000", b"a")), "is truncated"),
        (zipped(x=npy_of((), "<f4", b"abcd")), "a single value"),
        (zipped(x=npy_of((2,), "nonsense", b"")), "is not a numpy array"),
        (zipped(x=npy(np.zeros(2, "f4"))[:-1]), "is truncated"),
        (zipped(x=b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31)), "is not a numpy array"),
        (zipped(x=b"\x93NUMPY\x09\x00" + b" " * 100), "version (9, 0)"),
        (zipped(x=b""), "is not a numpy array"),
        (zipped(x=npy(np.array([{}], object))), "pickled object array"),
        (zipped(x=npy(np.zeros(2, "f4")))[:-30], "is not a readable .npz file"),
        (encrypted(), "is encrypted"),
        (flipped(), "is not a readable .npz file"),
    ],
)
def test_a_hostile_or_damaged_archive_is_refused_before_anything_is_allocated(content: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read("items.npz", content, wanted())
    assert words in caught.value.message


def test_an_array_that_is_there_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"duplicate array \['x'\]"):
        read("items.npz", twice(), wanted())


def test_only_what_is_asked_for_of_a_huge_archive_is_unpacked() -> None:
    content = npz(x=np.zeros((4000, 10_000), np.float32))
    assert len(content) < 1 << 20
    assert read("items.npz", content, wanted(most=3, room=1 << 20)).arrays["x"].shape == (3, 10_000)
    with pytest.raises(DataError, match=r"more than 1 MiB in memory.*maxSamples.*limits\.memory"):
        read("items.npz", content, wanted(room=1 << 20))


# -------------------------------------------------------------------------------------------------------------------- jsonl


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("FP32", [1, 2.5], [1.0, 2.5]),
        ("INT64", [2**53 + 1, -(2**63)], [2**53 + 1, -(2**63)]),
        ("UINT64", [1, 2**64 - 1], [1, 2**64 - 1]),
        ("BOOL", [True, 0], [True, False]),
        ("BYTES", ["a\0", "\u00e9", "e\u0301"], ["a\0", "\u00e9", "e\u0301"]),
        ("BYTES", [["x" * 1000, "a"], ["b", "c"]], [["x" * 1000, "a"], ["b", "c"]]),
        ("INT64", [[], []], [[], []]),
    ],
)
def test_values_of_a_line_are_read_exactly(dtype: str, values: list[Any], expected: list[Any]) -> None:
    found = read("items.jsonl", jsonl(*values), wanted(dtype)).arrays["x"]
    assert found.tolist() == expected and v2_dtype(found) == dtype


@pytest.mark.parametrize(
    ("dtype", "content", "words"),
    [
        ("BYTES", jsonl(["a", 1]), "found int and str"),
        ("INT64", jsonl([1, True]), "found bool and int"),
        ("INT64", jsonl([1, None]), "found int and null"),
        ("INT64", jsonl(2**64), "fit no data type"),
        ("INT64", jsonl([2**63, -1]), "fit no data type"),
        ("INT64", jsonl(2**63), "INT64"),
        ("INT64", jsonl(1.0), "expected INT64, found FP64"),
        ("FP32", jsonl(10**400), "digits fit no data type"),
        ("BYTES", b'{"x": "\\ud800"}\n', "line 1: x: a string contains half of a surrogate pair"),
        ("BYTES", b'{"x": "\xff"}\n', "line 1 is not valid JSON"),
        ("INT64", b'{"x": 1, "x": 2}\n', "duplicate keys in an object: ['x']"),
        ("INT64", b'{"x": 1}\n{"x": 2, "labels": 3}\n', "line 2 has 'labels', but the lines before it do not"),
        ("INT64", b"[" * 100_000 + b"\n", "line 1 is not valid JSON"),
        ("INT64", b'{"x": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}\n", "nested more than 32 levels deep"),
        ("INT64", b'{"x": ' + b"1" * 5000 + b"}\n", "line 1 is not valid JSON"),
        ("INT64", '{"x": 1}\n'.encode("utf-16"), "line 1 is not valid JSON"),
        ("INT64", b'{"x": 1}\n{"x": [1]}\n', "line 2: x: items have different shapes, [] and [1]"),
    ],
)
def test_lines_that_do_not_say_what_the_input_takes_are_refused(dtype: str, content: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read("items.jsonl", content, wanted(dtype))
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([1, 2.5], [1.0, 2.5]),
        ([1, 2**64 - 1], [1, 2**64 - 1]),
        ([2**53 + 1, 0.5], "integers above 2^53 are mixed with floats"),
        ([[2**53 + 1, 0.5]], "integers above 2^53 are mixed with floats"),
        ([-1, 2**64 - 1], "negative numbers are mixed with numbers above"),
        ([True, 1], "numbers, booleans and strings are mixed"),
    ],
)
def test_labels_of_several_kinds_are_joined_exactly_or_refused(labels: list[Any], found: Any) -> None:
    content = b"".join(json.dumps({"x": 0.5, "labels": label}).encode() + b"\n" for label in labels)
    if isinstance(found, list):
        assert read("items.jsonl", content, wanted()).arrays["labels"].tolist() == found
        return
    with pytest.raises(DataError) as caught:
        read("items.jsonl", content, wanted())
    assert found in caught.value.message


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    found = read("items.jsonl", b"\xef\xbb\xbf" + jsonl(1, 2), wanted("INT64"))
    assert found.arrays["x"].tolist() == [1, 2]


def test_a_line_that_would_not_fit_into_memory_is_not_read() -> None:
    content = b'{"x": "' + b"a" * 100_000 + b'"}\n'
    assert read("items.jsonl", content, wanted("BYTES")).arrays["x"].tolist() == ["a" * 100_000]
    with pytest.raises(DataError, match=r"line 1 is longer than 31250 bytes.*\.npz or \.parquet"):
        read("items.jsonl", content, wanted("BYTES", room=1_000_000))


# ------------------------------------------------------------------------------------------------------------------ parquet


@pytest.mark.parametrize(
    ("dtype", "column", "expected"),
    [
        ("BYTES", pa.array(["a\0", "ü"], pa.large_string()), ["a\0", "ü"]),
        ("BYTES", pa.array(["a", "ü", "a"]).dictionary_encode(), ["a", "ü", "a"]),
        ("BYTES", pa.array(["ü".encode(), b""]), ["ü", ""]),
        ("BYTES", pa.array([["a", "b"], ["b", "c"]]), [["a", "b"], ["b", "c"]]),
        ("INT8", pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)), [[1, 2], [3, 4]]),
        ("UINT64", pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
        ("FP32", pa.array([0.5, 2], pa.float16()), [0.5, 2]),
        ("BOOL", pa.array([True, False]), [True, False]),
    ],
)
def test_columns_of_any_encoding_are_read_exactly(dtype: str, column: Any, expected: list[Any]) -> None:
    found = read("items.parquet", parquet(column), wanted(dtype)).arrays["x"]
    assert found.tolist() == expected and v2_dtype(found) == dtype


@pytest.mark.parametrize(
    ("dtype", "column", "words"),
    [
        ("BYTES", pa.array(["a", None]), "1 values are null"),
        ("BYTES", pa.array(["a", None]).dictionary_encode(), "1 values are null"),
        ("INT64", pa.array([[1], [None]]), "1 values are null"),
        ("INT64", pa.array([None, None]), "null"),
        ("INT64", pa.array([[1], [1, 2]]), "different shapes"),
        ("BYTES", pa.array([b"\xff"]), "bytes must be UTF-8"),
        ("FP32", pa.array([1], pa.decimal128(10, 2)), "a column of decimal128(10, 2)"),
        ("INT64", pa.array([1], pa.timestamp("ms")), "a column of timestamp"),
        ("INT64", pa.array([{"a": 1}]), "a column of struct"),
        ("INT64", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "a column of map"),
        ("INT64", pa.array([0.5]), "expected INT64, found FP64"),
    ],
)
def test_columns_that_hold_something_else_are_refused(dtype: str, column: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read("items.parquet", parquet(column), wanted(dtype))
    assert words in caught.value.message


def test_a_parquet_file_that_repeats_itself_is_refused_before_it_is_unpacked() -> None:
    numbers = parquet(pa.array([[0.5] * 100_000] * 400, pa.list_(pa.float32())))
    assert len(numbers) < 1 << 20
    asked = wanted(room=4 << 20)
    with pytest.raises(DataError, match="more than 4 MiB"):
        read("items.parquet", numbers, asked)
    assert read("items.parquet", numbers, wanted(most=2, room=4 << 20)).arrays["x"].shape == (2, 100_000)


def test_a_long_text_that_many_rows_share_is_one_text() -> None:
    content = parquet(pa.array(["x" * 60_000] * 2000))
    found = read("items.parquet", content, wanted("BYTES", room=8 << 20)).arrays["x"]
    assert len(found) == 2000 and set(found.tolist()) == {"x" * 60_000}


# ------------------------------------------------------------------------------------------------------------------ any array

KINDS = st.one_of(
    stn.boolean_dtypes(),
    stn.integer_dtypes(endianness="?"),
    stn.unsigned_integer_dtypes(endianness="?"),
    stn.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    stn.complex_number_dtypes(),
    stn.datetime64_dtypes(),
    stn.unicode_string_dtypes(endianness="?", min_len=1, max_len=4),
    stn.byte_string_dtypes(min_len=1, max_len=4),
)
ARRAYS = KINDS.flatmap(
    lambda dtype: stn.arrays(dtype, stn.array_shapes(min_dims=1, max_dims=3, max_side=4), elements=None)
)


def legal(dtype: str, array: Array) -> list[Any] | None:
    """What an input of that data type takes of `array`, by Python's own numbers and texts; None where it takes nothing of it."""
    wanted_kind, kind = numpy_dtype(dtype).kind, array.dtype.kind
    flat = array.reshape(-1).tolist()
    if dtype == "BYTES":
        try:
            texts = [value.decode() if isinstance(value, bytes) else value for value in flat]
            [text.encode() for text in texts]
        except (UnicodeError, AttributeError):
            return None
        return texts if kind in "US" else None
    if wanted_kind in "iu" and kind in "iu":
        limits = np.iinfo(numpy_dtype(dtype))
        return flat if all(limits.min <= value <= limits.max for value in flat) else None
    if dtype == "BOOL":
        return [bool(value) for value in flat] if kind in "biu" and all(value in (0, 1) for value in flat) else None
    if wanted_kind == "f" and kind == "f":
        with np.errstate(all="ignore"):
            rounded = np.array(flat, np.float64).astype(numpy_dtype(dtype))
        return None if (np.isinf(rounded) & np.isfinite(np.array(flat, np.float64))).any() else rounded.tolist()
    return None


@settings(max_examples=150, deadline=None)
@given(
    array=ARRAYS, dtype=st.sampled_from(sorted(BY_V2)).filter(lambda one: one != "BF16"), order=st.sampled_from("CF")
)
def test_any_array_comes_back_exactly_or_is_refused(array: Array, dtype: str, order: Any) -> None:
    strided = np.asarray(array, order=order)[::-1][::-1]
    expected = legal(dtype, strided)
    try:
        found = read("items.npz", npz(x=strided), wanted(dtype)).arrays["x"]
    except DataError as error:
        assert expected is None, error.message
        return
    assert expected is not None
    assert found.shape == array.shape and v2_dtype(found) == dtype
    np.testing.assert_array_equal(found.reshape(-1), np.array(expected, found.dtype))


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.text(max_size=3), st.none()), min_size=1
    ),
    dtype=st.sampled_from(["INT64", "UINT64", "INT8", "FP32", "FP64", "BOOL", "BYTES"]),
)
def test_any_line_of_json_comes_back_exactly_or_is_refused(values: list[Any], dtype: str) -> None:
    try:
        found = read("items.jsonl", jsonl(*values), wanted(dtype)).arrays["x"]
    except DataError:
        return
    back = found.tolist()
    if dtype in ("FP32", "FP64"):
        np.testing.assert_array_equal(found, np.array([float(value) for value in values], found.dtype))
    else:
        assert back == values
    assert not (dtype != "BOOL" and any(isinstance(value, bool) for value in values))


STORED = st.one_of(
    stn.boolean_dtypes(),
    stn.integer_dtypes(endianness="="),
    stn.unsigned_integer_dtypes(endianness="="),
    stn.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    stn.unicode_string_dtypes(endianness="=", min_len=1, max_len=4),
).flatmap(
    lambda dtype: stn.arrays(dtype, stn.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=readable_of(dtype))
)
LISTS = [pa.list_, pa.large_list, pa.list_view, "fixed"]
LETTERS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]


def readable_of(dtype: np.dtype[Any]) -> st.SearchStrategy[Any] | None:
    """Texts that a file can hold at all; any numbers."""
    letters = st.characters(codec="utf-8", exclude_characters="\0")  # numpy itself drops those at the end
    return st.text(letters, max_size=dtype.itemsize // 4) if dtype.kind == "U" else None


def column_of(array: Array, listed: list[Any], letters: Any, missing: int | None, coded: bool) -> Any:
    """`array` as a column: lists of these kinds for its dimensions, texts of the type `letters`, the value at `missing` null."""
    flat = array.reshape(-1).tolist()
    kind = letters if array.dtype.kind == "U" else pa.from_numpy_dtype(array.dtype)
    if kind in LETTERS[3:]:
        flat = [text.encode() for text in flat]
    if missing is not None:
        flat[missing % len(flat)] = None
    nested, sizes = flat, array.shape[1:]
    for size, way in zip(reversed(sizes), listed, strict=False):
        nested = [nested[place : place + size] for place in range(0, len(nested), size)]
        kind = pa.list_(kind, size) if way == "fixed" else way(kind)
    column = pa.array(nested, kind)
    return (
        column.dictionary_encode()
        if coded and array.ndim == 1 and kind not in (*LETTERS[2:3], *LETTERS[5:])
        else column
    )


@settings(max_examples=300, deadline=None)
@given(
    array=STORED,
    dtype=st.sampled_from(sorted(BY_V2)).filter(lambda one: one != "BF16"),
    listed=st.lists(st.sampled_from(LISTS), min_size=2, max_size=2),
    letters=st.sampled_from(LETTERS),
    missing=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 99)),
    coded=st.booleans(),
    group=st.integers(1, 6),
    most=st.sampled_from([None, 1, 3]),
)
def test_any_column_of_parquet_comes_back_exactly_or_is_refused(
    array: Array,
    dtype: str,
    listed: list[Any],
    letters: Any,
    missing: int | None,
    coded: bool,
    group: int,
    most: int | None,
) -> None:
    content = parquet(column_of(array, listed, letters, missing, coded), row_group_size=group)
    asked = array[:most]
    expected = None if missing is not None and missing % array.size < asked.size else legal(dtype, asked)
    try:
        found = read("items.parquet", content, wanted(dtype, most)).arrays["x"]
    except DataError as error:
        assert expected is None, error.message
        return
    assert expected is not None
    assert found.shape == asked.shape and v2_dtype(found) == dtype
    np.testing.assert_array_equal(found.reshape(-1), np.array(expected, found.dtype))


def test_a_column_of_tensors_is_read_as_such() -> None:
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    assert read("items.parquet", parquet(column), wanted()).arrays["x"].tolist() == values.tolist()
    turned = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0]), column.storage
    )
    with pytest.raises(DataError, match="fixed_shape_tensor"):
        read("items.parquet", parquet(turned), wanted())


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=400), name=st.sampled_from(["a.npz", "a.parquet", "a.jsonl"]), inside=st.booleans())
def test_any_bytes_are_refused_as_data(content: bytes, name: str, inside: bool) -> None:
    wrapped = (
        zipped(x=npy(np.zeros(2, "f4"))[: len(content) % 140] + content) if inside and name == "a.npz" else content
    )
    try:
        read(name, wrapped, wanted())
    except DataError as error:
        assert error.reason == Reason.DATA_INVALID


def test_a_cast_never_keeps_a_byte_order_of_another_machine() -> None:
    for dtype in ("FP32", "INT64", "BOOL"):
        values = np.ones(3, numpy_dtype(dtype).newbyteorder(">"))
        assert cast(dtype, values, "here").dtype.isnative


def test_the_folder_is_not_needed_to_name_the_columns(tmp_path: Path) -> None:
    from fettle.optimizer.data.files import column_names

    for name, content in (("a.npz", npz(x=np.zeros(1), y=np.zeros(1))), ("a.jsonl", b'{"x": 1, "y": 2}\n')):
        assert column_names(name, io.BytesIO(content), "here") == {"x", "y"}
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": [1], "y": [2]}), stream)
    assert column_names("a.parquet", stream, "here") == {"x", "y"}
