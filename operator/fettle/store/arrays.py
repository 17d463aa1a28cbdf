"""Arrays as the store keeps them: an .npz whose bytes depend on nothing but the arrays. Texts take the room that they need.

A member `<name>.npy` holds an array in little-endian order. One of texts is two members: `<name>.utf8`, all texts one after the other,
and in `<name>.npy` where each begins and how many bytes it has. bfloat16 is its bits in a record of that name.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
SPAN = np.dtype([("start", "<u8"), ("bytes", "<u8")])
_BFLOAT16 = np.dtype([("bfloat16", "<u2")])
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Texts:
    """Stored texts: where each lies in `content`. Nothing is decoded before it is asked for."""

    spans: Array
    content: Array

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, key: Any) -> Texts:
        return Texts(self.spans[key], self.content)

    @property
    def nbytes(self) -> int:
        """Bytes of the texts themselves."""
        return int(np.sum(self.spans["bytes"]))

    def decoded(self) -> Array:
        """The texts, as an object array of str."""
        texts = np.empty(self.spans.size, object)
        texts[:] = [
            self.content[start : start + size].tobytes().decode() for start, size in self.spans.reshape(-1).tolist()
        ]
        return texts.reshape(self.spans.shape)


def write_npz(stream: IO[bytes], arrays: Arrays) -> int:
    """Write an .npz of `arrays`: names sorted, no time, not compressed; bytes of all values. Texts are str, or bytes in UTF-8."""
    size = 0
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            array = arrays[name]
            if array.dtype.kind not in "OU":
                size += array.nbytes
                _write_array(archive, name, _portable(array))
                continue
            texts = array.reshape(-1).tolist()
            lengths = [len(_encoded(text)) for text in texts]
            spans = np.empty(len(texts), SPAN)
            spans["bytes"] = lengths
            size += sum(lengths)
            spans["start"] = [0, *accumulate(lengths[:-1])] if lengths else []
            _write_array(archive, name, spans.reshape(array.shape))
            with archive.open(_member(f"{name}.utf8"), "w", force_zip64=True) as target:
                for text in texts:
                    target.write(_encoded(text))
    return size


def item_digest(arrays: Arrays) -> str:
    """sha256 (hexadecimal) of an item's content: of names, types, shapes and values. Texts are str."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.dtype == object:
            for text in map(str.encode, array.reshape(-1).tolist()):
                digest.update(b"%d\0%b" % (len(text), text))
        else:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def npz_bytes(arrays: Arrays) -> bytes:
    """What `write_npz` writes."""
    buffer = io.BytesIO()
    write_npz(buffer, arrays)
    return buffer.getvalue()


def unpack_npz(archive: zipfile.ZipFile, folder: Path) -> dict[str, Path]:
    """Lay every array out as a file of its own, to be opened with `mapped`; by name."""
    files: dict[str, Path] = {}
    for member in archive.infolist():
        name, _, end = member.filename.rpartition(".")
        if end == "npy":
            files[name] = folder / f"{len(files)}.npy"  # an input's name may hold anything, a slash too
        path = files[name].with_suffix(f".{end}")
        with archive.open(member) as source, path.open("wb") as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
    return files


def mapped(path: Path) -> Array | Texts:
    """An array that `unpack_npz` laid out, mapped, not read."""
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != SPAN:
        return array
    content = path.with_suffix(".utf8")
    empty = not content.stat().st_size  # no empty file can be mapped
    return Texts(array, np.empty(0, np.uint8) if empty else np.memmap(content, np.uint8, "r"))


def read_npz(stream: IO[bytes]) -> dict[str, Array]:
    """Arrays as `write_npz` wrote them; texts come back as object arrays of str."""
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(stream) as archive:
        members = set(archive.namelist())
        for name in (member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")):
            with archive.open(f"{name}.npy") as source:
                array = np.lib.format.read_array(source, allow_pickle=False)
            if f"{name}.utf8" in members:
                arrays[name] = restored(Texts(array, np.frombuffer(archive.read(f"{name}.utf8"), np.uint8)))
            else:
                arrays[name] = restored(array)
    return arrays


def restored(stored: Array | Texts) -> Array:
    """Stored values as they were: texts as an object array of str, bfloat16 as such."""
    if isinstance(stored, Texts):
        return stored.decoded()
    if stored.dtype.kind == "U":  # texts in artifacts that were published when these had one width
        return stored.astype(object)
    if stored.dtype == _BFLOAT16:
        import ml_dtypes

        return stored.view("<u2").view(ml_dtypes.bfloat16)
    return stored


def _portable(array: Array) -> Array:
    """`array` in a form that .npy holds without pickle, the same bytes on every machine."""
    if array.dtype.name == "bfloat16":
        return np.ascontiguousarray(array).view(_BFLOAT16)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(array.shape)


def _write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    with archive.open(_member(f"{name}.npy"), "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def _encoded(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()
