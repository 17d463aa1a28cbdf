"""A user's access to a store in a bucket, with the credentials of the environment or of a folder that stands for a Secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fettle.api.reasons import Reason
from fettle.cli.access.push_files import Entry
from fettle.errors import StoreError, UsageError
from fettle.store.credentials import Credentials
from fettle.store.remote import RemoteFiles
from fettle.store.uris import Location, Mounts, locate

SECRET_HELP = (
    "For s3://, gs:// and az://: folder with the credentials, a file for each key such as AWS_ACCESS_KEY_ID "
    "[default: those of the environment]."
)
REGISTRY_SECRET_HELP = "For oci://: folder with the files username and password, or .dockerconfigjson [default: the login of docker or oras]."


def missing(message: str, *, reason: Reason | None = Reason.STORE_NOT_FOUND, retryable: bool = False) -> StoreError:
    """As `uris.store_missing`, with the option that stands for the field which a message names."""
    told = f"{message}; on the command line, secretName is --secret" if "secretName" in message else message
    return StoreError(told, reason=reason, retryable=retryable)


def credentials_of(secret: Path | None) -> Credentials | None:
    """What `--secret` names. Raises UsageError for a folder that is not there."""
    if secret is None:
        return None
    if not secret.is_dir():
        raise UsageError(f"--secret {secret}: expected a folder with a file for each key, such as AWS_ACCESS_KEY_ID")
    return Credentials.read(secret)


def location_of(uri: str, secret: Path | None) -> Location:
    """The location of `uri`. Raises UsageError if the folder `secret` does not exist, and StoreError."""
    credentials_of(secret)
    return locate(uri, Mounts(secrets={uri: secret}), missing=missing)


def write_files(files: tuple[Entry, ...], bucket: Location, sent: Callable[[int], None]) -> None:
    """Write files into a bucket, each as a whole. `sent` is called with the bytes of each. Raises UsageError, StoreError."""
    remote = bucket.filesystem
    assert isinstance(remote, RemoteFiles)
    for entry in files:
        try:
            stream = entry.source.open("rb")
        except OSError as error:
            raise UsageError(f"cannot read {entry.source}: {error.strerror or error}") from error
        with stream:
            remote.write(entry.path, stream)
        sent(entry.bytes)


class BucketFiles:
    """The files of a store in a bucket, in the form that `pods/prune.py` needs."""

    def __init__(self, store: Location) -> None:
        """Raises StoreError if `store` is not a store."""
        assert isinstance(store.filesystem, RemoteFiles)
        self._files, self._root = store.filesystem, f"{store.path}/".lstrip("/")
        self._used = {name.rsplit("/", 1)[-1]: entry["mtime"] for name, entry in self._below("used").items()}
        if not self._below("blobs"):
            raise StoreError(f"no store at {store.uri}: a store has a folder 'blobs'", reason=Reason.STORE_NOT_FOUND)

    def _below(self, folder: str) -> dict[str, dict[str, float]]:
        listed = self._files.find(f"{self._root}{folder}", detail=True)
        return {name.removeprefix(self._root): entry for name, entry in listed.items()}

    def sizes(self, folder: str) -> dict[str, tuple[int, float]]:
        """Path -> (size, time of last use). A blob was last used when it or its mark was written."""
        return {
            name: (int(entry["size"]), max(entry["mtime"], self._used.get(name.rsplit("/", 1)[-1], 0)))
            for name, entry in self._below(folder).items()
        }

    def text(self, path: str) -> str:
        """The content of a document; empty if there is none."""
        try:
            with self._files.open(f"{self._root}{path}", "rb") as stream:
                return str(stream.read().decode("utf-8", "replace"))
        except FileNotFoundError:
            return ""

    def remove(self, path: str) -> None:
        """Remove a file, and the mark of a blob."""
        self._files.rm_file(f"{self._root}{path}")
        name = path.removeprefix("blobs/")
        if name in self._used:
            self._files.rm_file(f"{self._root}used/{name}")
