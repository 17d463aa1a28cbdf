"""Items from a .jsonl file: one object per line, one key per input, nested lists for the dimensions."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO, Any

import numpy as np

from fettle.errors import DataError
from fettle.optimizer.data.column import EXACT, Column
from fettle.optimizer.data.columns import Columns, ReadRequest, Room, listed
from fettle.preprocess.cast import texts_of
from fettle.runtimes.base import Array, numpy_dtype

FLOATING = frozenset({"FP16", "FP32", "FP64", "BF16"})
PARSED = 32  # Python's objects take up to so many times the bytes of the line that they were written in
DEEPEST = 32


def names(stream: IO[bytes], uri: str) -> set[str]:
    """Keys of the first line. Raises DataError."""
    return set(next((item for _, item in _objects(stream, uri, Room())), {}))


def read(stream: IO[bytes], wanted: ReadRequest) -> Columns:
    """The requested keys of the first `wanted.max_samples` lines. Raises DataError, which names the line."""
    keys: set[str] = set()
    columns: list[Column] = []
    for number, item in islice(_objects(stream, wanted.uri, wanted.room), wanted.max_samples):
        if not keys:
            keys = set(item)
            columns = [Column(name, wanted) for name in wanted.columns(keys)]
        where = f"{wanted.uri}: line {number}"
        if wanted.label_key in item and wanted.label_key not in keys:
            raise DataError(
                f"{where} has {wanted.label_key!r}, but the lines before it do not; label all items or none"
            )
        for column in columns:
            if column.name not in item:
                raise DataError(f"{where} has no {column.name!r}; every line must have the keys of the first line")
            place = f"{where}: {column.name}"
            array = _array(item[column.name], wanted.inputs.get(column.name), place)
            column.add(array[np.newaxis], place)
    if not keys:
        raise DataError(f"{wanted.uri} contains no items")
    return Columns({column.name: column.array() for column in columns}, wanted.unused(keys))


def _objects(stream: IO[bytes], uri: str, room: Room) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object); empty lines are skipped."""
    longest = room.size // PARSED
    number = 0
    while line := stream.readline(longest):
        number += 1
        where = f"{uri}: line {number}"
        if len(line) == longest and not line.endswith(b"\n"):
            raise DataError(
                f"{where} is longer than {longest} bytes, the limit for one item: use .npz or .parquet, "
                "or raise spec.jobs.resources.limits.memory"
            )
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        try:
            item = json.loads(line.decode(), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; lists in lists in lists
            raise DataError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(item, dict):
            raise DataError(f"{where} is a {type(item).__name__}; expected an object with a key per input")
        yield number, item


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = Counter(name for name, _ in pairs)
        raise ValueError(f"duplicate keys in an object: {listed(name for name, times in twice.items() if times > 1)}")
    return members


def _array(value: Any, dtype: str | None, where: str) -> Array:
    """One item's value. JSON may write 1.0 as 1, so an input of floats accepts both. Raises DataError."""
    shape, flat = _flat(value, where)
    kinds = set(map(type, flat))
    if not kinds:
        return np.empty(shape, numpy_dtype(dtype) if dtype is not None else np.float64)
    if kinds == {str}:
        return texts_of(flat).reshape(shape)
    if kinds == {bool}:
        return np.array(flat, bool).reshape(shape)
    if not kinds <= {int, float}:
        types = sorted("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise DataError(f"{where}: expected numbers, booleans, strings or lists of them, found {' and '.join(types)}")
    if dtype is None and len(kinds) > 1 and any(type(number) is int and abs(number) > EXACT for number in flat):
        raise DataError(
            f"{where}: integers above 2^53 are mixed with floats, which cannot represent them exactly: use one type"
        )
    return _numbers(flat, kinds == {int} and dtype not in FLOATING, where).reshape(shape)


def _flat(value: Any, where: str) -> tuple[list[int], list[Any]]:
    """The shape of nested lists, and their values in order."""
    shape: list[int] = []
    flat = [value]
    while any(type(one) is list for one in flat):
        lengths = {len(one) if type(one) is list else -1 for one in flat}
        if len(lengths) > 1:
            raise DataError(f"{where}: rows of different lengths cannot form a tensor")
        shape.append(lengths.pop())
        flat = list(chain.from_iterable(flat))
        if len(shape) > DEEPEST:
            raise DataError(f"{where}: lists are nested more than {DEEPEST} levels deep, which is not a tensor")
    return shape, flat


def _numbers(flat: list[Any], integers: bool, where: str) -> Array:
    """Whole numbers as 64-bit integers if `integers`, else floats."""
    for kind in (np.int64, np.uint64) if integers else (np.float64,):
        try:
            return np.array(flat, kind)
        except OverflowError:
            continue
    raise DataError(f"{where}: numbers of {max(len(str(one)) for one in flat)} digits fit no data type")
