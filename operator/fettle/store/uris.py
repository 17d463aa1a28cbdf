"""Where a URI lies: `pvc://CLAIM/PATH` in a mounted claim, `file://PATH` on one machine (CLI only), or outside (`remote.py`).

fsspec is the way to every byte, so that another scheme is a row in `locate`, not another road through the code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fettle.api.reasons import Reason
from fettle.api.uris import HUB, MODELS, MOUNTS_VARIABLE, REGISTRY, REMOTE_SCHEMES, SECRETS_VARIABLE, encode_mounts
from fettle.errors import StoreError, UsageError
from fettle.store import hub, mlflow, oci
from fettle.store.credentials import Credentials, decode_secrets
from fettle.store.listed import ListedFiles
from fettle.store.places import Missing, connect
from fettle.store.remote import RemoteFiles

SCHEMES = ("pvc", "file", *REMOTE_SCHEMES)
# Addresses whose files a server lists: each has a module of its own.
_FINDERS: Mapping[str, Callable[..., tuple[ListedFiles, str]]] = {
    HUB: hub.find,
    REGISTRY: oci.find,
    MODELS: mlflow.find,
}
store_missing: Missing = partial(StoreError, reason=Reason.STORE_NOT_FOUND)


@dataclass(frozen=True)
class Mounts:
    """Folder of each claim on this machine, whether plain `file://` paths may be opened, and the folder of the Secret for each address
    outside; None where it has none."""

    folders: Mapping[str, Path] = field(default_factory=dict)
    allow_files: bool = False
    secrets: Mapping[str, Path | None] = field(default_factory=dict)
    # What a name that may move (a branch, a tag, an alias) meant when it was first asked for: it means the same to the end.
    pinned: MutableMapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Mounts:
        """Read `FETTLE_MOUNTS` (JSON `{claim: folder}`), `FETTLE_SECRETS` (JSON `{address: folder}`) and `FETTLE_ALLOW_FILES` (1 or 0).

        Raises UsageError.
        """
        values = os.environ if environment is None else environment
        text = values.get(MOUNTS_VARIABLE, "") or "{}"
        try:
            folders = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"FETTLE_MOUNTS must be JSON {{claim: folder}}: {error}") from error
        if not isinstance(folders, dict) or not all(isinstance(value, str) for value in folders.values()):
            raise UsageError(f"FETTLE_MOUNTS must be JSON {{claim: folder}}, found {text[:200]}")
        return cls(
            {claim: Path(folder) for claim, folder in folders.items()},
            values.get("FETTLE_ALLOW_FILES") == "1",
            decode_secrets(values.get(SECRETS_VARIABLE, "")),
        )

    def to_environment(self) -> dict[str, str]:
        """What a process needs in its environment to see the same mounts."""
        folders = {claim: str(folder) for claim, folder in self.folders.items()}
        return {
            MOUNTS_VARIABLE: encode_mounts(folders),
            SECRETS_VARIABLE: json.dumps({uri: folder and str(folder) for uri, folder in self.secrets.items()}),
            "FETTLE_ALLOW_FILES": "1" if self.allow_files else "0",
        }

    def credentials(self, uri: str) -> Credentials | None:
        """The Secret of the longest address that `uri` is, or lies under; None where it has none. Raises UsageError."""
        known = [address for address in self.secrets if f"{uri.rstrip('/')}/".startswith(f"{address.rstrip('/')}/")]
        folder = self.secrets[max(known, key=len)] if known else None
        return Credentials.read(folder) if folder is not None else None


@dataclass(frozen=True)
class Location:
    """A URI, found: its filesystem and the path in it."""

    uri: str
    filesystem: AbstractFileSystem
    path: str

    def child(self, relative: str) -> Location:
        """The location of `relative` (POSIX, inside this one)."""
        inner = relative_path(relative)
        return Location(f"{self.uri.rstrip('/')}/{inner}", self.filesystem, f"{self.path.rstrip('/')}/{inner}")

    @property
    def parent(self) -> Location:
        """The folder that this lies in."""
        return Location(self.uri.rstrip("/").rpartition("/")[0], self.filesystem, self.path.rpartition("/")[0])

    @property
    def local(self) -> Path | None:
        """The path on this machine, or None where the filesystem is a remote one."""
        return Path(self.path) if isinstance(self.filesystem, LocalFileSystem) else None


def relative_path(path: str) -> str:
    """`path` as a clean relative POSIX path. Raises StoreError for an absolute one and for `..`."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or not pure.parts:
        raise StoreError(f"the path {path!r} must be relative and stay inside its folder (no '/' in front, no '..')")
    return str(pure)


def locate(uri: str, mounts: Mounts, *, missing: Missing = store_missing) -> Location:
    """Find `uri`. `missing` makes the error for a claim that is not mounted, an unknown scheme or a path that leaves its claim, and for what
    goes wrong with an address outside.

    Nothing is opened but the claim's folder: whether the path exists is the caller's question.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise missing(f"{uri}: unknown scheme {parts.scheme or '(none)'!r}, expected {known}")
    if parts.scheme in _FINDERS:
        path_of(uri, missing)
        return Location(uri, *_FINDERS[parts.scheme](uri, mounts.credentials(uri), mounts.pinned, missing))
    if parts.scheme in REMOTE_SCHEMES:
        place = connect(uri, mounts.credentials(uri), missing)
        return Location(uri, RemoteFiles(place, missing), path_of(uri, missing).strip("/"))
    path = path_of(uri, missing)
    local = _file(uri, parts.netloc, path, mounts, missing) if parts.scheme == "file" else None
    if local is None:
        local = _claim(uri, parts.netloc, path, mounts, missing)
    return Location(uri, LocalFileSystem(auto_mkdir=False), str(local))


def path_of(uri: str, missing: Missing) -> str:
    """The decoded path of `uri`. `missing` makes the error for one that leaves its claim, or that `?` and `#` cut off."""
    parts = urlsplit(uri)
    if parts.query or parts.fragment:
        raise missing(f"{uri}: '?' and '#' must be written %3F and %23 in a path")
    path = unquote(parts.path)
    if ".." in PurePosixPath(path).parts or "\0" in path:
        raise missing(f"{uri}: '..' is not allowed in a path")
    return path


def _file(uri: str, host: str, path: str, mounts: Mounts, missing: Missing) -> Path:
    if not mounts.allow_files:
        raise missing(
            f"{uri}: file:// works only in `fettle optimize` on one machine; in a cluster use pvc://CLAIM/PATH"
        )
    if host not in ("", "localhost"):
        raise missing(
            f"{uri}: a file:// address must have three slashes and an absolute path (file:///models/model.onnx)"
        )
    return Path(path)


def _claim(uri: str, claim: str, path: str, mounts: Mounts, missing: Missing) -> Path:
    if not claim:
        raise missing(f"{uri}: the name of the claim is missing (pvc://CLAIM/PATH)")
    folder = mounts.folders.get(claim)
    if folder is None:
        known = ", ".join(sorted(mounts.folders)) or "none"
        raise missing(f"{uri}: the claim {claim!r} is not mounted here (mounted: {known})")
    if not folder.is_dir():
        raise missing(f"{uri}: the claim {claim!r} should be in {folder}, but there is no such folder")
    target = folder / path.lstrip("/")
    # A symbolic link may point about inside its claim, never out of it.
    if not target.resolve().is_relative_to(folder.resolve()):
        raise missing(f"{uri}: the path leaves the claim through a symbolic link")
    return target
