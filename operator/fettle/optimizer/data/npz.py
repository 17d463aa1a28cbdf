"""Items from an .npz file, as `numpy.savez` writes it. It is read as a stream, so only the requested items are unpacked."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from fettle.errors import DataError
from fettle.optimizer.data.column import Column
from fettle.optimizer.data.columns import Columns, ReadRequest
from fettle.preprocess.reading import readable
from fettle.runtimes.base import Array

HEADER_MOST = 1 << 16  # bytes; a longer header could hold anything
BLOCK_BYTES = 8 << 20
KIND = ".npz file (numpy.savez)"


@dataclass(frozen=True)
class _Header:
    """The header of a .npy; `start` is the offset of its values."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def item_bytes(self) -> int:
        """Bytes of one item."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def names(stream: IO[bytes], uri: str) -> set[str]:
    """Names of the arrays. Raises DataError."""
    with _opened(stream, uri) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read(stream: IO[bytes], wanted: ReadRequest) -> Columns:
    """The requested arrays: the first `wanted.max_samples` items of each. Raises DataError."""
    with _opened(stream, wanted.uri) as archive, readable(wanted.uri, KIND):
        members = archive.infolist()
        array_names = [member.filename.removesuffix(".npy") for member in members]
        by_name = dict(zip(array_names, members, strict=True))
        arrays = {}
        for name in wanted.columns(array_names):
            member, where = by_name[name], f"{wanted.uri}: {name}"
            if member.flag_bits & 1:
                raise DataError(f"{where} is encrypted; save it without a password")
            arrays[name] = _array(archive, member, name, wanted)
    return Columns(arrays, wanted.unused(array_names))


def _opened(stream: IO[bytes], uri: str) -> zipfile.ZipFile:
    with readable(uri, KIND):
        try:
            return zipfile.ZipFile(stream)
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{uri} is not a readable {KIND}, and its name does not end in .parquet or .jsonl: {error}"
            ) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, wanted: ReadRequest) -> Array:
    """The first items of one .npy of the archive."""
    where = f"{wanted.uri}: {name}"
    with archive.open(member) as stream:
        header = _header(stream, where)
        if header.start + header.shape[0] * header.item_bytes > member.file_size:
            declared = f"{list(header.shape)} of {header.dtype}"
            raise DataError(f"{where} is truncated: expected {declared}, found {member.file_size} bytes")
        stream.seek(header.start)
        items = header.shape[0] if wanted.max_samples is None else min(header.shape[0], wanted.max_samples)
        column = Column(name, wanted, items)
        if header.fortran:
            column.add(_turned(stream, header, items, wanted, where))
            return column.array()
        # Texts of fixed width may be much shorter, but one is unpacked as a whole.
        wanted.room.require(header.item_bytes, where)
        at_once = max(1, BLOCK_BYTES // max(header.item_bytes, 1))
        for first in range(0, max(items, 1), at_once):  # a block of no items too: its data type must fit
            count = min(at_once, items - first)
            content = _exactly(stream, count * header.item_bytes, where)
            column.add(np.frombuffer(content, header.dtype).reshape((count, *header.shape[1:])))
    return column.array()


def _turned(stream: IO[bytes], header: _Header, items: int, wanted: ReadRequest, where: str) -> Array:
    """The first items of an array in Fortran order, where each item is spread over the whole array."""
    wanted.room.require(2 * items * header.item_bytes, where)
    rows, size = math.prod(header.shape[1:]), header.dtype.itemsize
    picked = np.empty((rows, items), header.dtype)
    for row in range(rows):
        picked[row] = np.frombuffer(_exactly(stream, items * size, where), header.dtype)
        stream.seek((header.shape[0] - items) * size, io.SEEK_CUR)
    return np.ascontiguousarray(picked.T.reshape((items, *header.shape[1:]), order="F"))


def _header(stream: IO[bytes], where: str) -> _Header:
    """The header of a .npy, checked before anything is allocated. Raises DataError."""
    head = io.BytesIO(stream.read(HEADER_MOST))
    try:
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"version {version} of the format")
        # Version 3 is 2 with names of fields in UTF-8, and arrays with fields are refused.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"{where} is not a numpy array: {error}") from error
    if dtype.hasobject:
        raise DataError(
            f"{where} is a pickled object array, which is not supported; save strings as Unicode arrays (astype('U'))"
        )
    if not shape:
        raise DataError(f"{where} is a single value; its first axis must be the items")
    if min(shape) < 0:
        raise DataError(f"{where} is not a numpy array: a shape of {list(shape)}")
    return _Header(shape, fortran, dtype, head.tell())


def _exactly(stream: IO[bytes], size: int, where: str) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise DataError(f"{where} is truncated")
    return content
