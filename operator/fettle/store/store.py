"""The artifact store: blobs by digest, small JSON documents by name. Every write is whole or not there: on a volume a temporary name and a
rename in the same folder, in a bucket one request, or the last request of several.

Layout: `blobs/<sha256>` · `artifacts/<sha256>/manifest.json` · `builds/<cache key>.json` · `trained/<cache key>.json` ·
`checkpoints/<cache key>/…` · `gpu/<key>` · `results/<task hash>.json` · `reports/…`; in a bucket also `used/<sha256>`, an empty file whose
time says when a blob was last asked for.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from pydantic import TypeAdapter, ValidationError

from fettle.api.base import ApiModel
from fettle.api.reasons import Reason
from fettle.api.report import REPORT, BuildReport, MeasureReport, PrepareReport, PublishReport
from fettle.api.task import SCHEMA_VERSION, StoredData, StoredFile, StoredModel
from fettle.api.text import quoted
from fettle.api.vocabulary import ModelFormat
from fettle.errors import AbsentError, StoreError
from fettle.store.arrays import Arrays, write_npz
from fettle.store.files import CHUNK, DISK_FULL, copy_and_digest, file_digest, holds, whole_file
from fettle.store.remote import RemoteFiles
from fettle.store.uris import Location, Mounts, locate, relative_path

AnyReport = PrepareReport | BuildReport | MeasureReport | PublishReport
Document = TypeVar("Document")
FRESH_SECONDS = 3600.0  # so young a blob need not be marked as used: `fettle prune` counts in hours
log = logging.getLogger(__name__)
# Pods that serve run as another user than the Jobs that wrote: files are readable, folders group-writable (fsGroup).
FILE_MODE = 0o644
FOLDER_MODE = 0o775


@contextmanager
def explained(what: str, *, reading: bool = False) -> Iterator[None]:
    """Turn an OSError of the store's filesystem into a StoreError that says what to do.

    With `reading` a full disk is not the store's: it is raised as it is.
    """
    try:
        yield
    except OSError as error:
        code = error.errno
        if code in DISK_FULL:
            if reading:
                raise
            message = f"{what}: the store is full; free space with `fettle prune`, or enlarge its claim"
            raise StoreError(message, reason=Reason.STORE_FULL, retryable=True) from error
        if code == errno.EROFS:
            raise StoreError(f"{what}: the store is mounted read-only; mount its claim read-write for Jobs") from error
        if code in (errno.EACCES, errno.EPERM):
            who = f"user {os.getuid()}, groups {sorted(os.getgroups())}"
            message = f"{what}: permission denied for {who}; the volume must be writable by the pod's fsGroup"
            raise StoreError(message) from error
        if code in (errno.ENOENT, errno.ENOTDIR):
            raise AbsentError(f"{what}: not found ({error.filename})") from error
        raise StoreError(f"{what}: {error}", retryable=True) from error


class Store:
    """A store that is open: `root` lies on any fsspec filesystem. Safe for several processes at once (content-addressed, written whole)."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self.uri = root.uri.rstrip("/")
        self._fs = root.filesystem
        self._bucket = root.filesystem if isinstance(root.filesystem, RemoteFiles) else None

    @classmethod
    def open(cls, uri: str, mounts: Mounts) -> Store:
        """Open the store at `uri`. Raises StoreError: StoreNotFound for a claim that is not mounted; nothing is written yet."""
        return cls(locate(uri, mounts))

    # ------------------------------------------------------------------------------------------------------------- files

    def exists(self, path: str) -> bool:
        """Whether `path` is there. Raises StoreError where that cannot be seen: a volume that does not answer has lost nothing."""
        with explained(f"reading {self.uri}/{path}"):
            return self._is_there(self.root.child(path).path)

    def _is_there(self, path: str) -> bool:
        """As the filesystem's own `exists`, which takes every error for absence. Raises OSError."""
        try:
            self._fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def open_file(self, path: str) -> IO[bytes]:
        """Open `path` for reading. Raises StoreError (StoreNotFound) if it is not there."""
        with explained(f"reading {self.uri}/{path}"):
            stream: IO[bytes] = self._fs.open(self.root.child(path).path, "rb")
            return stream

    def read_bytes(self, path: str) -> bytes:
        """The whole content of `path`. Raises StoreError."""
        with self.open_file(path) as stream, explained(f"reading {self.uri}/{path}"):
            return stream.read()

    def names(self, folder: str) -> list[str]:
        """Names of what lies in `folder`; none where there is no such folder. Raises StoreError."""
        with explained(f"reading {self.uri}/{folder}"):
            try:
                return sorted(
                    path.rsplit("/", 1)[-1] for path in self._fs.ls(self.root.child(folder).path, detail=False)
                )
            except FileNotFoundError:
                return []

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write `content` under a temporary name beside `path`, on the disk itself, then rename. Raises StoreError."""
        self._write(path, io.BytesIO(content))

    def remove(self, path: str) -> None:
        """Remove the file at `path`, if it is there. Raises StoreError."""
        with explained(f"removing {self.uri}/{path}"), suppress(FileNotFoundError):
            self._fs.rm_file(self.root.child(path).path)

    def remember(self, path: str, document: ApiModel) -> None:
        """Keep `document` for `recall`. Raises StoreError."""
        self._write(path, io.BytesIO(document.canonical()), durable=False)

    def recall(self, path: str, kind: TypeAdapter[Document]) -> Document | None:
        """The document that was kept at `path`; None where there is none, or none that this version understands.

        Whatever is recalled can be made again: a document that was cut off when a node lost its power, or that another version
        wrote, must cost the time to do so and not the run. Raises StoreError where the store cannot be read.
        """
        try:
            return kind.validate_json(self.read_bytes(path))
        except AbsentError:
            return None
        except ValidationError as error:
            log.info(
                "%s/%s is damaged or from another version, and is written again: %s", self.uri, path, quoted(error)
            )
            return None

    def _write(self, path: str, source: IO[bytes], *, durable: bool = True) -> None:
        target = self.root.child(path)
        if self._bucket is not None:
            self._bucket.write(target.path, source)
            return
        place = Path(target.path)
        with explained(f"writing {target.uri}"):
            _make_folder(place.parent)
            with whole_file(place) as partial:
                with partial.open("wb") as stream:
                    shutil.copyfileobj(source, stream, CHUNK)
                    if durable:
                        stream.flush()
                        os.fsync(stream.fileno())
                partial.chmod(FILE_MODE)
            if durable:
                _sync_folder(place.parent)

    # ------------------------------------------------------------------------------------------------------------- blobs

    def has_blob(self, sha256: str, size: int | None = None) -> bool:
        """Whether the blob is there, whole: on a volume its digest is computed, for a node may have lost power while it was written.

        A bucket has a file whole or not at all, and its digest is checked when it is fetched. Who asks is about to use it: it counts as
        used now, so that `fettle prune` leaves it alone.
        """
        path = self.root.child(f"blobs/{sha256}").path
        if self._bucket is not None:
            return self._is_in_bucket(self._bucket, sha256, size)
        with explained(f"reading {self.uri}/blobs/{sha256}"):
            if not self._is_there(path) or (size is not None and self._fs.size(path) != size):
                return False
            if self.root.local is not None:
                with suppress(OSError):  # another user's file, or mounted read-only: reading is all that was asked
                    os.utime(path)
            with self._fs.open(path, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == sha256

    def _is_in_bucket(self, bucket: RemoteFiles, sha256: str, size: int | None) -> bool:
        try:
            found = bucket.info(self.root.child(f"blobs/{sha256}").path)
        except FileNotFoundError:
            return False
        if found["type"] != "file" or (size is not None and found["size"] != size):
            return False
        if time.time() - found["mtime"] > FRESH_SECONDS:
            self._write(f"used/{sha256}", io.BytesIO(b""))
        return True

    def put_bytes(self, content: bytes) -> str:
        """Store `content` as a blob; its sha256. Raises StoreError."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.has_blob(sha256, len(content)):
            self.write_bytes(f"blobs/{sha256}", content)
        return sha256

    def put_file(self, path: Path, name: str | None = None) -> StoredFile:
        """Store a local file as a blob, under `name` (relative POSIX; default: the file's own). Raises StoreError."""
        sha256, size = file_digest(path)
        if not self.has_blob(sha256, size):
            with path.open("rb") as stream:
                self._write(f"blobs/{sha256}", stream)
        return StoredFile(path=relative_path(name or path.name), sha256=sha256, bytes=size)

    def fetch_file(self, file: StoredFile, folder: Path) -> Path:
        """Copy a stored file to `folder`/its path, checking its digest on the way. Raises StoreError (ArtifactTampered).

        A copy, not a link: a link would let a reader of the store's inode change what others serve. It is written under a
        temporary name, so that what lies there is always whole.
        """
        target = folder / relative_path(file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not holds(target, file.sha256, file.bytes):
            self.fetch_blob(file.sha256, target, file.path, file.bytes)
        return target

    def fetch_blob(self, sha256: str, target: Path, name: str, size: int | None = None) -> None:
        """Copy a blob to `target`, checking its digest on the way; `name` is what a person knows it as. Raises StoreError (ArtifactTampered)."""
        with whole_file(target) as partial:
            found, count = self._copy(f"blobs/{sha256}", partial)
            if found != sha256 or size not in (None, count):
                expected = f"{size} bytes with this digest" if size is not None else "content with this digest"
                message = (
                    f"{self.uri}/blobs/{sha256} ({name}): expected {expected}, found {count} bytes with sha256 {found}; "
                    "the store was changed by something other than Fettle"
                )
                raise StoreError(message, reason=Reason.ARTIFACT_TAMPERED)
            partial.chmod(FILE_MODE)

    def _copy(self, path: str, target: Path) -> tuple[str, int]:
        """Copy a file of the store to this machine; sha256 and bytes of what was copied."""
        if self._bucket is None:
            with self.open_file(path) as stream:
                return copy_and_digest(stream, target)
        with explained(f"reading {self.uri}/{path}", reading=True):
            self._bucket.get_file(self.root.child(path).path, str(target))
            return file_digest(target)

    # ------------------------------------------------------------------------------------------------------------ models

    def put_model(self, folder: Path, entry: str, format: ModelFormat = "ONNX") -> StoredModel:
        """Store every file under `folder` as one model; `entry` is the file a runtime opens (relative). Raises StoreError."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = tuple(self.put_file(path, path.relative_to(folder).as_posix()) for path in paths)
        if entry not in {file.path for file in files}:
            raise StoreError(f"{entry} is not among the files of the model: {[file.path for file in files]}")
        return StoredModel(format=format, entry=entry, files=files)

    def fetch_model(self, model: StoredModel, folder: Path) -> Path:
        """Copy a model's files to `folder`, digests checked; the path of its entry. Raises StoreError."""
        for file in model.files:
            self.fetch_file(file, folder)
        return folder / relative_path(model.entry)

    # -------------------------------------------------------------------------------------------------------------- data

    def put_data(self, arrays: Arrays) -> StoredData:
        """Store items: one array per input (first axis = items), and `labels` if there are any. Raises StoreError."""
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"every array must have the same number of items, found {lengths}")
        with tempfile.TemporaryDirectory(prefix="fettle-items-") as folder:
            packed = Path(folder) / "items.npz"
            with packed.open("wb") as stream:
                size = write_npz(stream, arrays)
            sha256 = self.put_file(packed).sha256
        return StoredData(sha256=sha256, items=next(iter(lengths.values())), labelled="labels" in arrays, bytes=size)

    # ----------------------------------------------------------------------------------------------------------- results

    def result(self, task_hash: str) -> AnyReport | None:
        """What a Job answered to that task, or None. Raises StoreError."""
        report = self.recall(f"results/{task_hash}.json", REPORT)
        return report if report is not None and report.schema_version == SCHEMA_VERSION else None

    def put_result(self, task_hash: str, report: AnyReport) -> None:
        """Keep the answer to a task. Raises StoreError."""
        self.remember(f"results/{task_hash}.json", report)


def _make_folder(path: Path) -> None:
    for level in (*reversed(path.parents), path):
        if not level.exists():
            with suppress(FileExistsError):  # another process was faster
                level.mkdir()
                level.chmod(FOLDER_MODE)  # whatever the umask: only a folder that we made
                _sync_folder(level.parent)


def _sync_folder(folder: Path) -> None:
    """Have the disk know the names in `folder`. A filesystem that cannot do that for folders keeps them by itself."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
