"""Items from a .jsonl file: an object a line, one key per input, nested lists for its dimensions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import numpy as np

from fettle.errors import DataError
from fettle.optimizer.data_files import Array, Columns, Wanted

FLOATING = frozenset({"FP16", "FP32", "FP64", "BF16"})


def read_jsonl(stream: IO[bytes], wanted: Wanted) -> Columns:
    """The wanted keys of the first `wanted.most` lines. Raises DataError naming the line."""
    names: list[str] = []
    found: set[str] = set()
    values: dict[str, list[Array]] = {}
    for number, item in islice(_objects(stream, wanted.uri), wanted.most):
        if not found:
            found = set(item)
            names = wanted.columns(found)
            values = {name: [] for name in names}
        for name in names:
            values[name].append(_value(item, name, wanted, number))
    if not found:
        raise DataError(f"{wanted.uri} holds no item")
    return Columns({name: _stacked(values[name], f"{wanted.uri}: {name}") for name in names}, wanted.unused(found))


def _objects(stream: IO[bytes], uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line, its object); empty lines are passed over."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
            raise DataError(f"{uri}: line {number} is not JSON: {error}") from error
        if not isinstance(item, dict):
            raise DataError(f"{uri}: line {number} is a {type(item).__name__}; expected an object with a key per input")
        yield number, item


def _value(item: dict[str, Any], name: str, wanted: Wanted, number: int) -> Array:
    """One item's value as an array. JSON writes 1.0 as 1: an input of floats takes both."""
    where = f"{wanted.uri}: line {number}"
    if name not in item:
        raise DataError(f"{where} has no {name!r}; every line needs the keys of the first one")
    try:
        array = np.asarray(item[name])
    except ValueError as error:
        raise DataError(f"{where}: {name}: rows of different lengths are no tensor") from error
    if array.dtype.kind not in "biufU":
        raise DataError(
            f"{where}: {name}: expected numbers, booleans, texts or lists of them, found {str(item[name])[:60]}"
        )
    return array.astype(np.float64) if wanted.inputs.get(name) in FLOATING and array.dtype.kind in "iu" else array


def _stacked(values: list[Array], where: str) -> Array:
    shapes = sorted({array.shape for array in values})
    if len(shapes) > 1:
        raise DataError(f"{where}: items have different shapes, {list(shapes[0])} and {list(shapes[-1])}")
    kinds = {"f" if array.dtype.kind in "iuf" else array.dtype.kind for array in values}
    if len(kinds) > 1:
        raise DataError(f"{where}: numbers, booleans and texts are mixed in one key")
    return np.stack(values)
