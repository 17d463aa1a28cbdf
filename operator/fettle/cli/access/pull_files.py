"""What `fettle pull` copies: single files, or an artifact from its store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fettle.api.reasons import Reason
from fettle.cli.access.claim_files import ClaimFiles
from fettle.errors import AbsentError, StoreError, UsageError
from fettle.store.files import copy_and_digest, holds, whole_file
from fettle.store.manifest import (
    FIGURES,
    MANIFEST,
    MODEL_FOLDER,
    PROFILE,
    REFERENCE,
    TOKENIZER,
    Manifest,
    copy_artifact,
    read_stored,
)
from fettle.store.places import stays_inside
from fettle.store.store import Store, explained
from fettle.store.uris import Location

ARTIFACT = re.compile(r"(?P<store>.*?)/?artifacts/(?P<sha256>[0-9a-f]{64})/?")
Total = Callable[[int], None]  # told once of the bytes that will arrive


def artifact_of(location: Location) -> tuple[Store, str] | None:
    """The store and the digest, if `location` is an artifact."""
    match = ARTIFACT.fullmatch(location.path)
    if match is None:
        return None
    uri = location.uri.rstrip("/").removesuffix(f"/artifacts/{match['sha256']}")
    return Store(Location(uri, location.filesystem, match["store"])), match["sha256"]


def pull_artifact(store: Store, sha256: str, folder: Path, total: Total) -> Manifest:
    """Copy an artifact to `folder` and check every digest; files that are already there are not fetched again. Raises StoreError, UsageError."""
    require_room(folder, sha256)
    manifest = read_stored(store, sha256)
    total(manifest.bytes + sum(file.bytes for file in manifest.beside))
    return copy_artifact(store, sha256, folder)


def require_room(folder: Path, sha256: str) -> None:
    """Raises UsageError if the folder holds another artifact or other files, which would be mixed with this artifact."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, but an artifact is a folder: choose another path")
    here = folder / MANIFEST
    other = here.is_file() and not holds(here, sha256)
    own = {MANIFEST, MODEL_FOLDER, REFERENCE, TOKENIZER, FIGURES, PROFILE}
    foreign = {path.name for path in folder.iterdir()} - own
    if other or foreign:
        raise UsageError(
            f"{folder} contains {'another artifact' if other else min(foreign)}: choose an empty or a new folder"
        )


def pull_files(files: ClaimFiles, path: str, to: Path, total: Total) -> tuple[int, int, int]:
    """Copy a file or a whole folder to `to`. Returns the number of files, how many of them were copied, and the bytes of all.

    A file is copied into `to` if that is a folder. Each file is checked against the digest that the pod computed, and renamed when it is
    complete. Raises StoreError, ClusterError, UsageError.
    """
    with explained(path or "the claim", reading=True):
        itself = files.info(path)
        single = itself["type"] == "file"
        entries = {path: itself} if single else files.find(path, detail=True)
    sizes = {name: entry["size"] for name, entry in entries.items()}
    if not sizes:
        raise UsageError(f"the folder {path or '/'} contains no files")
    places = {name: _place(name, path, to, single) for name in sizes}
    missing = {name: digest for name, place in places.items() if (digest := _missing(files, name, place))}
    total(sum(sizes[name] for name in missing))
    for name, digest in missing.items():
        _copy(files, name, places[name], digest)
    return len(places), len(missing), sum(sizes.values())


def _place(name: str, path: str, to: Path, single: bool) -> Path:
    if not single:
        return to / PurePosixPath(name).relative_to(path)
    return to / PurePosixPath(name).name if to.is_dir() else to


def _missing(files: ClaimFiles, name: str, place: Path) -> str | None:
    """The digest of a file that is not at `place` yet; None if it is."""
    if place.is_dir():
        raise UsageError(f"{place} is a folder, but a file must be written there")
    digest = files.checksum(name)
    return None if holds(place, digest) else digest


def _copy(files: ClaimFiles, name: str, place: Path, digest: str) -> None:
    with written(place) as partial, files.open(name) as source:
        if copy_and_digest(source, partial)[0] != digest:
            message = f"{name} was damaged in transit, or changed in the meantime: pull again"
            raise StoreError(message, reason=Reason.DIGEST_MISMATCH)


def pull_remote(location: Location, to: Path) -> tuple[int, int]:
    """Copy a file or a folder outside the cluster to `to`, into it if it is a folder. Returns the number of files, and their bytes.

    Each file is renamed when it is complete. Raises StoreError, UsageError.
    """
    files, path = location.filesystem, location.path
    with explained(location.uri, reading=True):
        single = bool(path) and files.isfile(path)
        names = [path] if single else files.find(path)
    if not names:
        raise AbsentError(f"{location.uri}: not found")
    places = {name: _place(name, path, to, single) for name in names}
    for name, place in places.items():
        if not single and not stays_inside(place.relative_to(to).as_posix()):
            raise UsageError(f"{location.uri}: the name {name!r} leaves the folder: pull its files one by one")
        with written(place) as partial:
            partial.touch()  # so that what keeps us from writing is not told of the store
            with explained(location.uri, reading=True):
                files.get_file(name, str(partial))
    return len(places), sum(place.stat().st_size for place in places.values())


@contextmanager
def written(place: Path) -> Iterator[Path]:
    """A temporary name for the file at `place`, whose folder is made; see `whole_file`. Raises UsageError where it cannot be written."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as partial:
            yield partial
    except OSError as error:
        raise UsageError(f"cannot write {place}: {error.strerror or error}") from error
