"""Columns of a file of items: one array per input, first axis = items. Which reader takes a file follows from the end of its name."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from fettle.errors import DataError

Array = np.ndarray[Any, Any]
LABELS = "labels"


@dataclass(frozen=True)
class Wanted:
    """What is read of a file: the columns of the inputs (name -> V2 data type), that of the labels if it is there, so many items."""

    uri: str
    inputs: Mapping[str, str]
    label_key: str | None
    most: int | None

    def columns(self, found: set[str]) -> list[str]:
        """Names to read of those that a file has. Raises DataError for inputs without one."""
        absent = sorted(self.inputs.keys() - found)
        if absent:
            raise DataError(
                f"{self.uri}: no array for the inputs {absent}; it has {sorted(found)}; name each array as the model's input"
            )
        return [
            *sorted(self.inputs),
            *([self.label_key] if self.label_key is not None and self.label_key in found else []),
        ]

    def unused(self, found: set[str]) -> list[str]:
        """Names that a file has and nobody asked for."""
        return sorted(found - self.inputs.keys() - {self.label_key, LABELS})


@dataclass(frozen=True)
class Columns:
    """The arrays that were wanted, and the names of what else the file has."""

    arrays: Mapping[str, Array]
    unused: list[str]


def read_columns(name: str, stream: IO[bytes], wanted: Wanted) -> Columns:
    """The wanted columns of the file called `name`. Raises DataError."""
    end = name.rsplit(".", 1)[-1].lower()
    if end == "parquet":
        from fettle.optimizer.data_parquet import read_parquet

        return read_parquet(stream, wanted)
    if end in ("jsonl", "ndjson"):
        from fettle.optimizer.data_jsonl import read_jsonl

        return read_jsonl(stream, wanted)
    return read_npz(stream, wanted)


def read_npz(stream: IO[bytes], wanted: Wanted) -> Columns:
    """Arrays of an .npz, cut to `wanted.most` items while they are read. Raises DataError."""
    try:
        with zipfile.ZipFile(stream) as archive:
            found = {name.removesuffix(".npy"): name for name in archive.namelist()}
            arrays = {}
            for name in wanted.columns(set(found)):
                with archive.open(found[name]) as member:
                    arrays[name] = _member(member, wanted.most, f"{wanted.uri}: {name}")
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{wanted.uri} is no .npz file (numpy.savez), and no .parquet or .jsonl by name: {error}"
        ) from error
    return Columns(arrays, wanted.unused(set(found)))


def _member(stream: IO[bytes], most: int | None, where: str) -> Array:
    """One .npy of the archive, only the first `most` items of it."""
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except ValueError as error:
        raise DataError(f"{where} is no numpy array: {error}") from error
    if dtype.hasobject:
        raise DataError(
            f"{where} is a pickled object array, which is not read; texts go as unicode arrays (astype('U'))"
        )
    if not shape:
        raise DataError(f"{where} is a single value; its first axis must count the items")
    items = shape[0] if most is None or fortran else min(shape[0], most)
    count = items * int(np.prod(shape[1:], dtype=np.int64))
    content = stream.read(count * dtype.itemsize)
    if len(content) != count * dtype.itemsize:
        raise DataError(f"{where} is cut off")
    array = np.frombuffer(content, dtype=dtype).reshape((items, *shape[1:]), order="F" if fortran else "C")
    return np.ascontiguousarray(array[:most])
