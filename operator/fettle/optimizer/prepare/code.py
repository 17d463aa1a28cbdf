"""Code of a user's own. That of a factory is brought in beside the weights, so that the digest of both stands for the model."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path, PurePosixPath

from fettle.api import formats
from fettle.api.reasons import Reason
from fettle.api.source import FactorySpec
from fettle.errors import DataError, SourceError
from fettle.optimizer.prepare.files import below, copy
from fettle.optimizer.sources import archive
from fettle.store.uris import Location, Mounts, locate

FIELD = "source.factory.uri"
MOST_BYTES = 64 << 20
MOST_FUNCTION = 64 << 10  # bytes of a file that defines a function
# No code, although they may lie beside it.
MODELS = tuple(suffix for entry in formats.FORMATS for suffix in entry.suffixes)
MADE = (".pyc", ".pyo")  # from code


def fetch_code(spec: FactorySpec, mounts: Mounts, folder: Path) -> tuple[str, ...]:
    """Copy the code to `folder`, which is new; its files, relative to `folder`.

    Raises SourceError: SourceNotFound; SourceCorrupted for a damaged wheel; UnsupportedFormat for what is no code; InvalidSpec for too much.
    """
    given = locate(spec.uri, mounts, missing=SourceError)
    if not given.filesystem.exists(given.path):
        raise SourceError(f"{spec.uri} ({FIELD}) does not exist")
    if given.filesystem.isdir(given.path):
        return _folder(given, folder)
    name = given.path.rsplit("/", 1)[-1]
    if not name.endswith((".py", ".whl")):
        message = f"{spec.uri} ({FIELD}): expected a wheel (.whl), a folder or a Python file (.py)"
        raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
    if _too_large(given.parent, [name]):
        message = (
            f"{spec.uri} ({FIELD}) is larger than {MOST_BYTES >> 20} MiB: expected only code, without weights and data"
        )
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    if name.endswith(".py"):
        copy(given.parent, name, folder, FIELD)
        return (name,)
    wheels = folder.with_name(f"{folder.name}.wheel")
    copy(given.parent, name, wheels, FIELD)
    return _unpacked(wheels / name, folder)


def _folder(home: Location, folder: Path) -> tuple[str, ...]:
    names = tuple(filter(_is_code, below(home)))
    if not names:
        raise SourceError(f"{home.uri} ({FIELD}) contains no code")
    if _too_large(home, names):
        message = (
            f"{home.uri} ({FIELD}) contains more than {MOST_BYTES >> 20} MiB: put the code into a folder of its own"
        )
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    for name in names:
        copy(home, name, folder, FIELD)
    return names


def _too_large(home: Location, names: Iterable[str]) -> bool:
    """Whether these files of `home` are more than code takes. Their sizes are asked for before anything is copied."""
    return any(total > MOST_BYTES for total in accumulate(_size(home, name) for name in names))


def _size(home: Location, name: str) -> int:
    try:
        return int(home.filesystem.size(home.child(name).path))
    except FileNotFoundError:  # a link that leads nowhere, which `copy` refuses
        return 0


def _is_code(name: str) -> bool:
    """Whether a file of a folder may belong to the code: neither hidden, nor made by Python, nor a model."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts)
    return not hidden and not name.lower().endswith((*MADE, *MODELS))


def _unpacked(wheel: Path, folder: Path) -> tuple[str, ...]:
    archive.check(wheel)
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder)
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def read_function(uri: str, field: str, mounts: Mounts) -> str:
    """The code of a function of a user's own: the Python file at `uri`, which `field` names. Raises DataError."""
    location = locate(uri, mounts, missing=DataError)
    try:
        with location.filesystem.open(location.path, "rb") as file:
            code = file.read(MOST_FUNCTION + 1)
    except OSError as error:
        raise DataError(f"{uri} ({field}): {error.strerror or error}") from error
    if len(code) > MOST_FUNCTION:
        raise DataError(f"{uri} ({field}): larger than {MOST_FUNCTION >> 10} KiB, the limit for the code of a function")
    try:
        return str(code.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{uri} ({field}) is not a Python file in UTF-8: {error}") from error
