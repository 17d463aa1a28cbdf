"""An artifact: a model that was measured, and everything that says what it is. No time and no measurement stand in it,
so the same work writes the same digest anywhere.

An artifact is `artifacts/<sha256>/manifest.json`; sha256 is the digest of the canonical manifest (RFC 8785), which lists every
file with its digest. Measurements lie beside it, `artifacts/<sha256>/measurements/<key>.json`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from fettle.api.base import ApiModel
from fettle.api.data import PreprocessSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RecipeStep, RuntimeSettings
from fettle.api.report import CpuClass
from fettle.api.signature import Signature
from fettle.api.task import StoredFile, StoredModel, StoredTokenizer
from fettle.api.text import quoted
from fettle.api.uris import REGISTRY
from fettle.api.vocabulary import RuntimeName
from fettle.errors import StoreError
from fettle.store import profile as profiles
from fettle.store.arrays import Arrays, npz_bytes, read_npz
from fettle.store.comparison import Comparison
from fettle.store.files import holds, whole_file
from fettle.store.profile import Profile
from fettle.store.store import FILE_MODE, Store, explained
from fettle.store.uris import Location, Mounts, locate, relative_path

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL_FOLDER = "model"
REFERENCE = "reference.npz"
TOKENIZER = "tokenizer.json"
FIGURES = "measurements.json"  # beside a fetched artifact, for people: no digest says that they are its own
MOST_FIGURES = 16
PROFILE = "profile.json"  # likewise
REFERENCE_ITEMS = 8
_absent = functools.partial(StoreError, reason=Reason.ARTIFACT_NOT_FOUND)


class RecipeRecord(ApiModel):
    """What was done to the portable form, with every parameter, and the revision of each step's implementation."""

    name: str
    steps: tuple[RecipeStep, ...] = ()
    revisions: tuple[int, ...] = ()


class DataRecord(ApiModel):
    """Digests of the items that were used; `generated` when no data was given.

    `unsure`: how many evaluation items did not count in the agreement, because the original is unsure; absent where all count.
    """

    calibration: str | None = None
    training: str | None = None
    evaluation: str | None = None
    generated: bool = False
    unsure: int | None = None


class Tolerance(ApiModel):
    """How far an output may lie from the reference on the same CPU class: |a - b| <= atol + rtol * |b|."""

    rtol: float
    atol: float


class Manifest(ApiModel):
    """What an artifact is. `requires` are CPU features needed to load and to be right (avx2, avx512, vnni, bf16, amx).

    `items_per_run` is 1 where an answer depends on the other items of its run, as with dynamic quantization: it was certified one
    item at a time, and is served so; the server splits requests. Absent: any number, which `settings` may narrow; but see `alone`.
    `comparisons` says, for each output that counts, when another model's answer is the same; absent in artifacts that were
    written before answers were compared on live inputs. `preprocess` says how pictures became the evaluation items, where they did, and
    `tokenizer` how texts did: a server takes pictures, and texts, by it.
    """

    schema_version: int = SCHEMA_VERSION
    source_sha256: str
    recipe: RecipeRecord
    data: DataRecord
    libraries: dict[str, str]
    runtime: RuntimeName
    settings: RuntimeSettings
    signature: Signature
    tolerances: dict[str, Tolerance]
    items_per_run: Annotated[int | None, Field(ge=1, le=1)] = None
    comparisons: dict[str, Comparison] = {}
    preprocess: PreprocessSpec | None = None
    tokenizer: StoredTokenizer | None = None
    requires: tuple[str, ...] = ()
    model: StoredModel
    reference: StoredFile | None = None

    @property
    def alone(self) -> bool:
        """Whether every item runs by itself. Artifacts from before `items_per_run` do not say so: there the recipe tells, for dynamic
        ranges are taken over all items of a run."""
        dynamic = any(step.dynamic for step in self.recipe.steps)
        return self.signature.batchable and (self.items_per_run == 1 or dynamic)

    @property
    def beside(self) -> tuple[StoredFile, ...]:
        """The files beside those of the model."""
        tokenizer = self.tokenizer.file if self.tokenizer is not None else None
        return tuple(file for file in (self.reference, tokenizer) if file is not None)

    @property
    def bytes(self) -> int:
        """Bytes of the model's files."""
        return self.model.bytes


class MeasurementRecord(ApiModel):
    """A measurement beside an artifact: on what CPU class, with which versions of the runtimes, and its row as status shows it."""

    schema_version: int = SCHEMA_VERSION
    measured_on: CpuClass
    libraries: dict[str, str] = {}
    row: dict[str, Any]


_FIGURES = TypeAdapter(list[MeasurementRecord])


def artifact_uri(store_uri: str, sha256: str) -> str:
    """Where an artifact of that store lies."""
    return f"{store_uri.rstrip('/')}/artifacts/{sha256}"


def put_reference(store: Store, inputs: Arrays, outputs: Arrays) -> StoredFile:
    """Store the reference: up to 8 items and their outputs, as arrays `input.<name>` and `output.<name>`. Raises StoreError."""
    arrays = {f"input.{name}": array for name, array in inputs.items()}
    arrays |= {f"output.{name}": array for name, array in outputs.items()}
    content = npz_bytes(arrays)
    return StoredFile(path=REFERENCE, sha256=store.put_bytes(content), bytes=len(content))


def put_tokenizer(store: Store, content: bytes, *, lower: bool) -> StoredTokenizer:
    """Store what makes inputs of texts. Raises StoreError."""
    file = StoredFile(path=TOKENIZER, sha256=store.put_bytes(content), bytes=len(content))
    return StoredTokenizer(file=file, lower=lower)


def read_reference(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Inputs and outputs of a reference file on this machine."""
    with path.open("rb") as stream:
        arrays = read_npz(stream)
    inputs = {name.removeprefix("input."): array for name, array in arrays.items() if name.startswith("input.")}
    outputs = {name.removeprefix("output."): array for name, array in arrays.items() if name.startswith("output.")}
    return inputs, outputs


def write_artifact(store: Store, manifest: Manifest) -> str:
    """Write the manifest of an artifact whose blobs are in the store already; its digest. Raises StoreError.

    Manifest last: an artifact that can be read is whole.
    """
    files = (*manifest.model.files, *manifest.beside)
    absent = [file.path for file in files if not store.exists(f"blobs/{file.sha256}")]
    if absent:
        raise StoreError(f"an artifact's files must be in the store first; missing: {', '.join(absent)}")
    content = manifest.canonical()
    sha256 = hashlib.sha256(content).hexdigest()
    path = f"artifacts/{sha256}/{MANIFEST}"
    if not store.exists(path) or store.read_bytes(path) != content:
        store.write_bytes(path, content)
    return sha256


def fetch_artifact(uri: str, sha256: str, folder: Path, mounts: Mounts) -> Manifest:
    """The artifact at `uri`, copied to `folder`: `<store>/artifacts/<sha256>`, or an address in a registry.

    Raises StoreError: ArtifactNotFound, ArtifactTampered, StoreUnreachable.
    """
    if uri.startswith(f"{REGISTRY}://"):
        return copy_pack(locate(uri, mounts, missing=_absent), sha256, folder)
    return copy_artifact(_store_of(uri, sha256, mounts), sha256, folder)


def copy_pack(home: Location, sha256: str, folder: Path) -> Manifest:
    """As `copy_artifact`, of an artifact in a registry: its files lie there as they do in `folder`. Raises StoreError."""
    files, where = home.filesystem, f"{home.uri}/{MANIFEST}"
    if not files.isfile(MANIFEST):
        message = f"{where} does not exist: expected an artifact that `fettle push` uploaded there"
        raise StoreError(message, reason=Reason.ARTIFACT_NOT_FOUND)
    content = files.cat_file(MANIFEST)
    manifest = _parse(content, sha256, where)
    folder.mkdir(parents=True, exist_ok=True)
    for file in manifest.model.files:
        _copy_packed(files, file.model_copy(update={"path": f"{MODEL_FOLDER}/{file.path}"}), folder)
    for file in manifest.beside:
        _copy_packed(files, file, folder)
    for name in (FIGURES, PROFILE):
        if files.isfile(name):
            files.get_file(name, str(folder / name))
    with whole_file(folder / MANIFEST) as partial:
        partial.write_bytes(content)
    return manifest


def _copy_packed(files: Any, file: StoredFile, folder: Path) -> None:
    target = folder / relative_path(file.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if holds(target, file.sha256, file.bytes):
        return
    with whole_file(target) as partial, explained(f"reading {file.path}", reading=True):
        files.get_file(file.path, str(partial))
        if not holds(partial, file.sha256, file.bytes):
            raise StoreError(f"{file.path} does not match the manifest", reason=Reason.ARTIFACT_TAMPERED)
        partial.chmod(FILE_MODE)


def copy_artifact(store: Store, sha256: str, folder: Path) -> Manifest:
    """Copy an artifact to `folder`, every digest checked: `manifest.json`, `reference.npz`, `tokenizer.json`, `model/…`; and what was measured of it.

    Idempotent. The manifest is written last, so a folder that has one is whole. Raises StoreError.
    """
    manifest = read_stored(store, sha256)
    folder.mkdir(parents=True, exist_ok=True)
    store.fetch_model(manifest.model, folder / MODEL_FOLDER)
    for file in manifest.beside:
        store.fetch_file(file, folder)
    _copy_beside(store, sha256, folder)
    content = store.read_bytes(f"artifacts/{sha256}/{MANIFEST}")
    with whole_file(folder / MANIFEST) as partial:
        partial.write_bytes(content)
    return manifest


def read_fetched(folder: Path, sha256: str) -> Manifest:
    """The manifest of an artifact that `fetch_artifact` put into `folder`, its own digest checked. Raises StoreError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise StoreError(f"there is no artifact in {folder}: fetch it first", reason=Reason.ARTIFACT_NOT_FOUND)
    return _parse(path.read_bytes(), sha256, str(path))


def check_fetched(folder: Path, sha256: str) -> Manifest:
    """As `read_fetched`, and every file's digest checked again. Raises StoreError (ArtifactTampered)."""
    manifest = read_fetched(folder, sha256)
    files = {folder / MODEL_FOLDER / each.path: each for each in manifest.model.files}
    for path, file in (files | {folder / each.path: each for each in manifest.beside}).items():
        if not holds(path, file.sha256, file.bytes):
            raise StoreError(f"{path} does not match the manifest", reason=Reason.ARTIFACT_TAMPERED)
    return manifest


def model_entry(folder: Path, manifest: Manifest) -> Path:
    """The file that the runtime opens, of an artifact in `folder`."""
    return folder / MODEL_FOLDER / manifest.model.entry


def write_measurement(store: Store, sha256: str, key: str, record: MeasurementRecord) -> None:
    """Keep a measurement beside its artifact. Raises StoreError."""
    store.remember(f"artifacts/{sha256}/measurements/{key}.json", record)


def _copy_beside(store: Store, sha256: str, folder: Path) -> None:
    beside = f"artifacts/{sha256}/measurements"
    names = [name for name in store.names(beside) if name.endswith(".json")][:MOST_FIGURES]
    if store.exists(f"artifacts/{sha256}/{PROFILE}"):
        (folder / PROFILE).write_bytes(store.read_bytes(f"artifacts/{sha256}/{PROFILE}"))
    if names:
        (folder / FIGURES).write_bytes(b"[%b]" % b",".join(store.read_bytes(f"{beside}/{name}") for name in names))


def read_figures(folder: Path) -> tuple[MeasurementRecord, ...]:
    """What was measured of the artifact in `folder`; none where nothing is known, or nothing that this version understands."""
    path = folder / FIGURES
    try:
        return tuple(_FIGURES.validate_json(path.read_bytes()))
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        log.info("%s is not read: %s", path, error)
        return ()


def write_profile(store: Store, sha256: str, profile: Profile) -> None:
    """Keep how the evaluation data is distributed beside an artifact. Raises StoreError."""
    store.remember(f"artifacts/{sha256}/{PROFILE}", profile)


def read_profile(folder: Path) -> Profile | None:
    """How the evaluation data of the artifact in `folder` is distributed, where that is known."""
    path = folder / PROFILE
    return profiles.read(path.read_bytes()) if path.is_file() else None


def _store_of(uri: str, sha256: str, mounts: Mounts) -> Store:
    """The store that holds the artifact at `uri`."""
    suffix = f"/artifacts/{sha256}"
    if not uri.rstrip("/").endswith(suffix):
        message = f"{uri}: the address of an artifact must end with {suffix}"
        raise StoreError(message, reason=Reason.ARTIFACT_NOT_FOUND)
    return Store.open(uri.rstrip("/").removesuffix(suffix), mounts)


def read_stored(store: Store, sha256: str) -> Manifest:
    """The manifest of an artifact of an open store, its digest checked. Raises StoreError: ArtifactNotFound, ArtifactTampered."""
    path = f"artifacts/{sha256}/{MANIFEST}"
    if not store.exists(path):
        raise StoreError(f"{store.uri}/{path} does not exist", reason=Reason.ARTIFACT_NOT_FOUND)
    return _parse(store.read_bytes(path), sha256, f"{store.uri}/{path}")


def missing_file(store: Store, manifest: Manifest) -> StoredFile | None:
    """A file of the artifact that the store does not have with the digest it lists; None where the artifact is whole. Raises StoreError."""
    files = (*manifest.model.files, *manifest.beside)
    return next((file for file in files if not store.has_blob(file.sha256, file.bytes)), None)


def is_whole(store: Store, sha256: str) -> bool:
    """Whether the store has an artifact with every file. Raises StoreError where the store cannot be read."""
    try:
        return missing_file(store, read_stored(store, sha256)) is None
    except StoreError as error:
        if error.reason in (Reason.ARTIFACT_NOT_FOUND, Reason.ARTIFACT_TAMPERED):
            return False
        raise


def _parse(content: bytes, sha256: str, where: str) -> Manifest:
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        message = f"{where}: expected sha256 {sha256}, found {actual}; the manifest was changed after it was published"
        raise StoreError(message, reason=Reason.ARTIFACT_TAMPERED)
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise StoreError(f"{where} was written by another version of Fettle: {quoted(error)}") from error
