"""Files of this machine: their digests, and files that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

CHUNK = 4 << 20
MOST_RATIO = 200  # what weights of one value may shrink to; a bomb shrinks a thousandfold
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no room, or none that is allowed
SMALL = 256 << 20  # whatever unpacks to less than this fits anywhere


def exhausted(error: BaseException) -> bool:
    """Whether this machine ran out of memory or of disk: the same may work on another one, or later."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in DISK_FULL)


def most_unpacked(size: int) -> int:
    """Bytes that an archive of `size` bytes may unpack to."""
    return max(SMALL, MOST_RATIO * size)


def file_digest(path: Path) -> tuple[str, int]:
    """sha256 (hexadecimal) and bytes of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size


def holds(place: Path, sha256: str | None, size: int | None = None) -> bool:
    """Whether `place` is a file with this content already, so that nothing need be copied to it."""
    if not place.is_file() or sha256 is None:
        return False
    digest, found = file_digest(place)
    return digest == sha256 and size in (None, found)


def stream_digest(stream: IO[bytes]) -> str:
    """sha256 (hexadecimal) of what is left of `stream`."""
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def copy_and_digest(source: IO[bytes], target: Path) -> tuple[str, int]:
    """Copy what is left of `source` to `target`; sha256 (hexadecimal) and bytes of what was copied."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as stream:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            stream.write(chunk)
    return digest.hexdigest(), size


@contextmanager
def whole_file(place: Path) -> Iterator[Path]:
    """A temporary name beside `place`, for a file that is renamed to `place` when the block ends, and gone where the block fails."""
    partial = place.with_name(f".{place.name[:40]}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield partial
        partial.replace(place)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
