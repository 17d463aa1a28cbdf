"""Which folder of this machine stands for which claim, so that the YAML of a cluster works here as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import unquote, urlsplit

from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.uris import claim_of
from fettle.errors import UsageError
from fettle.store.uris import Mounts, locate

STORE_CLAIM = "fettle-store"
DEFAULT_STORE = f"pvc://{STORE_CLAIM}"
DEFAULT_FOLDER = Path("fettle-store")


@dataclass(frozen=True)
class Places:
    """A spec whose every address can be opened here. `store` is the address of its store."""

    spec: OptimizedModelSpec
    mounts: Mounts
    store: str

    def local(self, uri: str) -> str:
        """The path of `uri` on this machine."""
        return str(locate(uri, self.mounts).local)


def parse_maps(maps: Iterable[str]) -> dict[str, Path]:
    """`pvc://CLAIM=FOLDER`, each, as claim -> folder. Raises UsageError."""
    folders: dict[str, Path] = {}
    for text in maps:
        uri, _, folder = text.partition("=")
        claim = claim_of(uri)
        if not claim or uri.rstrip("/") != f"pvc://{claim}" or not folder:
            raise UsageError(f"--map {text}: expected pvc://CLAIM=FOLDER, such as pvc://models=./models")
        path = Path(folder).expanduser().resolve()
        if not path.is_dir():
            raise UsageError(f"--map {text}: folder {path} does not exist")
        folders[claim] = path
    return folders


def places(spec: OptimizedModelSpec, folders: dict[str, Path], store: Path | None) -> Places:
    """Find the store's folder (`--store`, else the spec's, else ./fettle-store) and check that every claim has one.

    Raises UsageError that says which `--map` is missing, or why the store's folder cannot be used.
    """
    if store is not None:
        spec = spec.model_copy(update={"store": None})
    uri = spec.store.uri if spec.store is not None else DEFAULT_STORE
    claim = claim_of(uri)
    if claim is None:
        _store_folder(Path(unquote(urlsplit(uri).path)))
    elif claim not in folders or store is not None:
        folder = (store or DEFAULT_FOLDER).expanduser().resolve()
        _store_folder(folder)
        folders = {**folders, claim: folder}
    _check(spec, folders)
    return Places(spec, Mounts(folders, allow_files=True), uri)


def _store_folder(folder: Path) -> None:
    """Make the store's folder, before hours of work find out that nothing can be kept. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write to the store {folder}: {error.strerror}; choose another folder with --store"
        ) from error


def _check(spec: OptimizedModelSpec, folders: dict[str, Path]) -> None:
    addresses = {"spec.source.uri": spec.source.uri}
    data = spec.data
    for name, given in (
        ("calibration", data.calibration),
        ("evaluation", data.evaluation),
        ("training", data.training),
    ):
        if given is not None:
            addresses[f"spec.data.{name}.uri"] = given.uri
    for path, uri in addresses.items():
        claim = claim_of(uri)
        if claim is not None and claim not in folders:
            raise UsageError(
                f"{path}: {uri} is in a claim; map the claim to a local folder: --map pvc://{claim}=FOLDER"
            )


def with_parallelism(spec: OptimizedModelSpec, parallelism: int | None) -> OptimizedModelSpec:
    """`spec` with another number of builds at once."""
    if parallelism is None:
        return spec
    return spec.model_copy(update={"search": spec.search.model_copy(update={"parallelism": parallelism})})
