"""Which local folder stands for which claim or Secret, so that a cluster's YAML works here unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import unquote, urlsplit

from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.uris import Address, claim_of, is_remote
from fettle.errors import UsageError
from fettle.store.store import Store
from fettle.store.uris import Mounts, locate

SECRET = "secret/"  # in front of a Secret's name, as kubectl writes it
STORE_CLAIM = "fettle-store"
DEFAULT_STORE = f"pvc://{STORE_CLAIM}"
DEFAULT_FOLDER = Path("fettle-store")


@dataclass(frozen=True)
class Places:
    """A spec whose addresses can all be opened on this machine. `store` is the address of its store."""

    spec: OptimizedModelSpec
    mounts: Mounts
    store: str

    def local(self, uri: str) -> str:
        """The path of `uri` on this machine; `uri` itself if it is elsewhere."""
        return uri if is_remote(uri) else str(locate(uri, self.mounts).local)

    @property
    def logs(self) -> Path:
        """The folder of the tasks' logs: in the store, or in ./fettle-store if the store is elsewhere."""
        return (DEFAULT_FOLDER.resolve() if is_remote(self.store) else Path(self.local(self.store))) / "logs"

    def opened(self) -> Store:
        """The store. Raises StoreError."""
        return Store.open(self.store, self.mounts)


def parse_maps(maps: Iterable[str]) -> dict[str, Path]:
    """Parse `pvc://CLAIM=FOLDER` and `secret/NAME=FOLDER` to CLAIM or secret/NAME -> folder. Raises UsageError."""
    folders: dict[str, Path] = {}
    for text in maps:
        place, _, folder = text.partition("=")
        claim = claim_of(place)
        secret = place.removeprefix(SECRET) if place.startswith(SECRET) else ""
        if not folder or not (secret or (claim and place.rstrip("/") == f"pvc://{claim}")):
            raise UsageError(
                f"--map {text}: expected pvc://CLAIM=FOLDER, such as pvc://models=./models, or secret/NAME=FOLDER with a file for each key"
            )
        path = Path(folder).expanduser().resolve()
        if not path.is_dir():
            raise UsageError(f"--map {text}: folder {path} does not exist")
        folders[place if secret else claim or ""] = path
    return folders


def places(spec: OptimizedModelSpec, folders: dict[str, Path], store: Path | None) -> Places:
    """Find the store's folder (`--store`, else the spec's, else ./fettle-store) and check that every claim has one.

    `folders` come from `parse_maps`. A Secret without a folder is ignored, and the credentials of the environment are used.

    Raises UsageError that says which `--map` is missing, or why the store's folder cannot be used.
    """
    if store is not None:
        spec = spec.model_copy(update={"store": None})
    uri = spec.store.uri if spec.store is not None else DEFAULT_STORE
    claim = claim_of(uri)
    if is_remote(uri):
        pass  # nothing to make: its first task says whether it can be written
    elif claim is None:
        _store_folder(Path(unquote(urlsplit(uri).path)))
    elif claim not in folders or store is not None:
        folder = (store or DEFAULT_FOLDER).expanduser().resolve()
        _store_folder(folder)
        folders = {**folders, claim: folder}
    _check(spec, folders)
    claims = {name: path for name, path in folders.items() if not name.startswith(SECRET)}
    outputs = [part for part in (spec.store, spec.publish) if part is not None]
    named = [*spec.addresses().values(), *(Address(part.uri, part.secret_name) for part in outputs)]
    remote = [address for address in named if is_remote(address.uri)]
    secrets = {address.uri: folders.get(f"{SECRET}{address.secret_name}") for address in remote}
    return Places(spec, Mounts(claims, allow_files=True, secrets=secrets), uri)


def _store_folder(folder: Path) -> None:
    """Create the store's folder, so that a run does not work for hours before it finds that it cannot write. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write to the store {folder}: {error.strerror}; choose another folder with --store"
        ) from error


def _check(spec: OptimizedModelSpec, folders: dict[str, Path]) -> None:
    for path, address in spec.addresses().items():
        claim = claim_of(address.uri)
        if claim is not None and claim not in folders:
            raise UsageError(
                f"{path}: {address.uri} is in a claim; map the claim to a local folder: --map pvc://{claim}=FOLDER"
            )


def with_parallelism(spec: OptimizedModelSpec, parallelism: int | None) -> OptimizedModelSpec:
    """`spec` with another number of parallel builds."""
    if parallelism is None:
        return spec
    return spec.model_copy(update={"search": spec.search.model_copy(update={"parallelism": parallelism})})
