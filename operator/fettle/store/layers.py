"""Layers of an artifact that are tar archives: looked into before anything is taken out of them, and then read where they lie."""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from fettle.api.text import installing
from fettle.store.files import CHUNK, DISK_FULL, most_unpacked
from fettle.store.places import stays_inside

MOST_FILES = 100_000
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class DamagedLayer(Exception):
    """What is wrong with a layer: 'it …'."""


@dataclass(frozen=True)
class Member:
    """A file in an archive without compression."""

    archive: IO[bytes]
    start: int
    size: int

    def copy(self, target: IO[bytes]) -> None:
        """Write its content to `target`."""
        for at in range(self.start, self.start + self.size, CHUNK):
            target.write(os.pread(self.archive.fileno(), min(CHUNK, self.start + self.size - at), at))
        target.flush()


def unpacked(blob: IO[bytes]) -> IO[bytes]:
    """`blob` without its compression, if it has one, told from its first bytes. Raises DamagedLayer."""
    size = blob.seek(0, os.SEEK_END)
    blob.seek(0)
    magic = blob.read(4)
    blob.seek(0)
    if not magic.startswith(_GZIP) and magic != _ZSTD:
        return blob
    most, plain = most_unpacked(size), tempfile.TemporaryFile(prefix="fettle-")  # noqa: SIM115 - the caller's to close
    with _readable():
        stream = gzip.GzipFile(fileobj=blob) if magic.startswith(_GZIP) else _zstd(blob)
        while chunk := stream.read(CHUNK):
            plain.write(chunk)
            if plain.tell() > most:
                raise DamagedLayer(f"it unpacks from {size} to more than {most} bytes")
    plain.flush()
    blob.close()
    return plain


def members(archive: IO[bytes]) -> Mapping[str, Member]:
    """The files in an archive without compression. Raises DamagedLayer: for links and devices, and for what lies outside of it."""
    found: dict[str, Member] = {}
    end = archive.seek(0, os.SEEK_END)
    archive.seek(0)
    with _readable(), tarfile.open(fileobj=archive, mode="r:") as opened:
        for number, entry in enumerate(opened):
            opened.members = []  # type: ignore[attr-defined]  # the library keeps every entry
            if number >= MOST_FILES:
                raise DamagedLayer(f"it holds more than {MOST_FILES} entries")
            if entry.size < 0:  # which would lead back to where it was read from
                raise DamagedLayer(f"it is damaged: {entry.name!r} has a negative size")
            if entry.isdir():
                continue
            name = PurePosixPath(entry.name).as_posix()
            if not entry.isreg() or entry.issparse():
                raise DamagedLayer(f"it holds {entry.name!r}, which is a link or no ordinary file")
            if not stays_inside(name):
                raise DamagedLayer(f"it holds {entry.name!r}, which lies outside of it")
            if entry.offset_data + entry.size > end:
                raise DamagedLayer(f"it ends in the middle of {entry.name!r}")
            found[name] = Member(archive, entry.offset_data, entry.size)
    return found


def _zstd(blob: IO[bytes]) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DamagedLayer(
            f"it is compressed with zstd, which needs the package pyarrow: {installing('optimizer')}"
        ) from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(blob, mode="r"), "zstd")


@contextmanager
def _readable() -> Iterator[None]:
    """Whatever a damaged archive leads to, in words of ours."""
    try:
        yield
    except (
        tarfile.TarError,
        zlib.error,
        EOFError,
        OverflowError,
        ValueError,
        RecursionError,
        MemoryError,
        OSError,
    ) as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        raise DamagedLayer(f"it is damaged, or no tar archive: {error}") from None
