"""Fetch the source: find it, copy it, recognize its format, take its digest. Everything after that works on the copy, which nobody changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fettle.api import formats
from fettle.api.base import canonical_digest
from fettle.api.reasons import Reason
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer.prepare.code import fetch_code
from fettle.optimizer.prepare.files import below, copy
from fettle.optimizer.sources import huggingface, mlflow
from fettle.optimizer.sources.base import CODE, SourceFormat
from fettle.optimizer.sources.recognition import CORE_ML, core_ml, recognize
from fettle.store.beside import not_there
from fettle.store.files import file_digest
from fettle.store.store import explained
from fettle.store.uris import Location, Mounts, locate

ENTRY = "model.onnx"
SUFFIXES = tuple(suffix for entry in formats.FORMATS for suffix in entry.suffixes)
COMMON = tuple(suffix for entry in formats.FORMATS for suffix in entry.common)


@dataclass(frozen=True)
class Source:
    """The source's files, in a separate folder."""

    folder: Path
    entry: str
    files: tuple[str, ...]
    sha256: str
    bytes: int
    format: SourceFormat

    @property
    def path(self) -> Path:
        """The file that is opened."""
        return self.folder / self.entry


def fetch(spec: SourceSpec, mounts: Mounts, folder: Path) -> Source:
    """Copy the source to `folder` and take its digest.

    Raises SourceError: SourceNotFound, UnsupportedFormat, UnsafePickle, UnsafeCode, SourceCorrupted, UnsupportedModel (external data
    outside the model's folder), DigestMismatch; InvalidSpec for the code of a factory, or outputs of what is no graph.
    """
    given = locate(spec.uri, mounts, missing=SourceError)
    if not given.filesystem.exists(given.path):
        raise SourceError(not_there(given, mounts))
    if given.filesystem.isdir(given.path):
        home, entry = given, _entry_of(given)
    else:
        home, entry = given.parent, given.path.rsplit("/", 1)[-1]
    wanted = spec.known_format
    beside = home.child(huggingface.ENTRY)
    if entry.endswith(".safetensors") and spec.factory is None and home.filesystem.isfile(beside.path):
        entry = huggingface.ENTRY
    if entry == mlflow.ENTRY:
        home, entry = _named_in(home, entry)
        wanted = FormatName.AUTO if wanted == FormatName.MLFLOW else wanted
    copy(home, entry, folder)
    format = recognize(folder / entry, wanted, spec.trusted)
    if spec.outputs is not None and format.name != FormatName.FROZEN_GRAPH:
        message = f"source.outputs is for frozen graphs of TensorFlow, and {entry} is {format.name}: remove it"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    others = format.companions(folder / entry, lambda: below(home))
    for name in others:
        copy(home, name, folder)
    code = fetch_code(spec.factory, mounts, folder / CODE) if spec.factory is not None else ()
    files = tuple(sorted({entry, *others, *(f"{CODE}/{name}" for name in code)}))
    sha256 = digest(folder, files)
    if spec.sha256 is not None and spec.sha256 != sha256:
        message = f"{spec.uri}: expected source.sha256 {spec.sha256}, found {sha256}; this is not the intended file"
        raise SourceError(message, reason=Reason.DIGEST_MISMATCH)
    size = sum((folder / name).stat().st_size for name in files)
    return Source(folder, entry, files, sha256, size, format)


def digest(folder: Path, files: tuple[str, ...]) -> str:
    """sha256 of a single file, or of the canonical JSON list of (path, sha256), sorted by path, of several."""
    digests = [(name, file_digest(folder / name)[0]) for name in sorted(files)]
    if len(digests) == 1:
        return digests[0][1]
    return canonical_digest(list(map(list, digests)))


def _named_in(home: Location, entry: str) -> tuple[Location, str]:
    """The folder and the file of the model that an MLflow directory names. Raises SourceError."""
    described = home.child(entry)
    with explained(f"reading {described.uri}", reading=True), home.filesystem.open(described.path, "rb") as stream:
        named = home.child(mlflow.inner(stream.read(mlflow.MOST_BYTES), described.uri))
    if home.filesystem.isdir(named.path):
        return named, _entry_of(named)
    inside = named.path.removeprefix(home.path.rstrip("/") + "/")
    folder, _, name = inside.rpartition("/")
    return (home.child(folder) if folder else home), name


def _entry_of(folder: Location) -> str:
    """The model file of a folder: model.onnx, or the only file with the extension of a model format."""
    names: list[str] = sorted(path.rsplit("/", 1)[-1] for path in folder.filesystem.ls(folder.path, detail=False))
    own = [name for name in names if f"/{name}".lower().endswith(SUFFIXES)]
    for known in (mlflow.ENTRY, ENTRY):
        if known in names:
            return known
    if huggingface.ENTRY in names and set(names) & set(huggingface.WEIGHTS):
        return huggingface.ENTRY
    package = folder.path.rstrip("/").rpartition("/")[2]  # of Core ML: a folder
    apples = [name for name in (package, *names) if name.lower().endswith(CORE_ML)]
    if apples and not own:
        raise core_ml(apples[0])
    models = own or [name for name in names if name.lower().endswith(COMMON) and name != huggingface.ENTRY]
    if len(models) == 1:
        return models[0]
    if huggingface.ENTRY in names and not models:
        return huggingface.ENTRY
    if models:
        raise SourceError(
            f"{folder.uri} contains several models ({', '.join(models)}): select one of them with source.uri"
        )
    suffixes = ", ".join(suffix.lstrip("/") for suffix in SUFFIXES)
    raise SourceError(f"{folder.uri} contains no model ({suffixes}); found {names[:10] or 'nothing'}")
