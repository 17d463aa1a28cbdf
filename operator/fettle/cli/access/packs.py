"""Artifacts in an OCI registry, as the command line brings them there and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from fsspec.implementations.local import LocalFileSystem

from fettle.api.reasons import Reason
from fettle.cli.access.bucket import credentials_of, missing
from fettle.cli.access.pull_files import artifact_of, require_room, written
from fettle.errors import StoreError, UsageError
from fettle.store.files import file_digest, holds
from fettle.store.manifest import MANIFEST, Manifest, check_fetched, copy_artifact, copy_pack
from fettle.store.modelpack import ARTIFACT, Pack, Sent, files_in, push
from fettle.store.oci import ArtifactFiles
from fettle.store.registry import registry_at
from fettle.store.uris import Location


@contextmanager
def files_at(source: Path) -> Iterator[Path]:
    """The folder or file to push: `source`, or the files of the artifact that it is in a store. Raises UsageError, StoreError."""
    path = source.absolute()
    artifact = artifact_of(Location(path.as_uri(), LocalFileSystem(), path.as_posix()))
    if artifact is None:
        yield source
        return
    with TemporaryDirectory(prefix="fettle-") as folder:
        copy_artifact(*artifact, Path(folder))
        yield Path(folder)


def pack_of(source: Path) -> Pack:
    """What there is to push: a file, or all files of a folder. An artifact of Fettle's is whole, and told as one. Raises UsageError, StoreError."""
    if source.is_file():
        return Pack({source.name: source})
    if not source.is_dir():
        raise UsageError(f"{source}: no such file or folder")
    files = files_in(source)
    if not files:
        raise UsageError(f"the folder {source} contains no files")
    return Pack(files, _artifact_in(source))


def push_pack(pack: Pack, uri: str, secret: Path | None, sent: Sent) -> str:
    """The address of the artifact in the registry, by its digest. Raises UsageError, StoreError."""
    registry, path = registry_at(uri, credentials_of(secret), missing)
    if path:
        raise UsageError(f"{uri}: expected oci://REGISTRY/REPOSITORY:TAG, without a path")
    return push(pack, registry, sent, missing)


def pull_pack(location: Location, to: Path | None) -> tuple[Path, tuple[str, Manifest] | None]:
    """Where the files of an artifact in a registry are now; digest and manifest if it is one of Fettle's. Raises UsageError, StoreError."""
    files = location.filesystem
    assert isinstance(files, ArtifactFiles)
    folder = to or Path(files.repository.rpartition("/")[2])
    artifact = (files.manifest.annotations or {}).get(ARTIFACT)
    if artifact is not None and not location.path:
        require_room(folder, artifact)
        return folder, (artifact, copy_pack(location, artifact, folder))
    single = files.isfile(location.path)
    names = [location.path] if single else files.find(location.path)
    if not names:
        raise UsageError(f"{location.uri} does not exist")
    above = location.path.rpartition("/")[0] if single else location.path
    for name in names:
        _fetch(files, name, folder / PurePosixPath(name).relative_to(above))
    return folder, None


def _fetch(files: ArtifactFiles, name: str, place: Path) -> None:
    if not holds(place, files.digest(name)):
        with written(place) as partial:
            files.get_file(name, str(partial))


def _artifact_in(folder: Path) -> tuple[str, Manifest] | None:
    """Raises StoreError (ArtifactTampered) where its files are not those of its manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    sha256 = file_digest(path)[0]
    try:
        return sha256, check_fetched(folder, sha256)
    except StoreError as error:
        if error.reason == Reason.ARTIFACT_TAMPERED:
            raise
        return None  # another tool's manifest
