"""The artifact that `fettle serve` is asked for, and its folder for the server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from fettle.cli.access.pull_files import artifact_of
from fettle.cli.local.results import published
from fettle.errors import UsageError
from fettle.store.files import file_digest
from fettle.store.manifest import MANIFEST, MODEL_FOLDER, copy_artifact
from fettle.store.uris import Location

DEFAULT_NAME = "model"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ServedFolder:
    """An artifact's `folder`, the digest of its manifest, and the name under which the model is served."""

    folder: Path
    sha256: str
    name: str


def served_folder(source: str, store: Path, target: str | None, temporary: Path) -> ServedFolder:
    """The artifact at the path `source`, or that the model of that name published to `store`.

    In a store its files are blobs, so it is assembled in `temporary`, with every digest checked. Raises UsageError, StoreError.
    """
    path = Path(source).expanduser()
    if not path.exists() and "/" not in source:
        artifact = published(store, source, target)
        return _copied(store / "artifacts" / artifact.sha256, source, temporary)
    if target is not None:
        raise UsageError("--target chooses among the artifacts of a model that is given by its name, not by a folder")
    if not (path / MANIFEST).is_file():
        raise UsageError(_no_artifact(path, source))
    name = path.resolve().name
    name = name if _NAME.fullmatch(name) and not _DIGEST.fullmatch(name) else DEFAULT_NAME
    if (path / MODEL_FOLDER).is_dir():
        return ServedFolder(path, file_digest(path / MANIFEST)[0], name)
    return _copied(path.resolve(), name, temporary)


def _copied(path: Path, name: str, temporary: Path) -> ServedFolder:
    artifact = artifact_of(Location(path.absolute().as_uri(), LocalFileSystem(), path.absolute().as_posix()))
    if artifact is None:
        lost = f"{path} has no folder {MODEL_FOLDER} beside its {MANIFEST}, and does not lie in a store"
        raise UsageError(f"{lost}: `fettle pull` writes an artifact that can be copied")
    copy_artifact(*artifact, temporary)
    return ServedFolder(temporary, artifact[1], name)


def _no_artifact(path: Path, source: str) -> str:
    if path.is_file():
        return f"{source} is a file, not an artifact: run `fettle optimize {source}` first"
    if (path / "artifacts").is_dir():
        return f"{source} is a store of several artifacts: serve one by the model's name, `fettle serve NAME --store {source}`"
    expected = "expected the folder of an artifact, as `fettle pull` writes it"
    if path.is_dir():
        return f"{source} has no {MANIFEST}: {expected}"
    return f"{source} does not exist: {expected}, or the name of a model that was optimized here"
