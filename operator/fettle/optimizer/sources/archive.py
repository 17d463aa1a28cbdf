"""Zip archives that somebody hands in: looked into before any library unpacks them."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath

from fettle.api.reasons import Reason
from fettle.errors import SourceError
from fettle.store.files import most_unpacked

ZIP = b"PK\x03\x04"


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip archive does."""
    with path.open("rb") as stream:
        return stream.read(len(ZIP)) == ZIP


def names(path: Path) -> list[str]:
    """Names of the files in the archive. Raises SourceError (SourceCorrupted)."""
    return [entry.filename for entry in _entries(path)]


def check(path: Path) -> None:
    """Raises SourceError (SourceCorrupted) for an archive that is damaged, leaves its folder, holds links, or unpacks to far more than it is."""
    entries = _entries(path)
    for entry in entries:
        pure = PurePosixPath(entry.filename.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or stat.S_ISLNK(entry.external_attr >> 16):
            raise _corrupted(path, f"it holds {entry.filename!r}, which is a link or lies outside of it")
    whole = sum(entry.file_size for entry in entries)
    if whole > most_unpacked(path.stat().st_size):
        raise _corrupted(path, f"its {path.stat().st_size} bytes would unpack to {whole}")
    try:
        with zipfile.ZipFile(path) as opened:
            bad = opened.testzip()
    except Exception as error:  # zlib.error, BadZipFile, NotImplementedError: each for another damage
        raise _corrupted(path, str(error)) from error
    if bad is not None:
        raise _corrupted(path, f"{bad!r} does not match its checksum")


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as opened:
            return opened.infolist()
    except Exception as error:  # BadZipFile, but also what a lying directory leads to
        raise _corrupted(path, str(error)) from error


def _corrupted(path: Path, why: str) -> SourceError:
    return SourceError(f"{path.name} is a damaged zip archive: {why}", reason=Reason.SOURCE_CORRUPTED)
