"""Artifacts in an OCI registry: `oci://REGISTRY/REPOSITORY:TAG` or `oci://REGISTRY/REPOSITORY@sha256:DIGEST`, and `/PATH` of a file in it.

An artifact's files are its layers: each is a file that an annotation names, or a tar archive of files. That is a ModelPack of the CNCF, what
`oras push` makes of files and folders, and an image that holds nothing but files. The manifest comes by `registry.py`, and the blobs by obstore:
in ranges, with retries. The digest of each is checked before anything is read from it.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import unquote

from fettle.api.reasons import Reason
from fettle.errors import FettleError
from fettle.store import layers
from fettle.store.credentials import Credentials
from fettle.store.files import stream_digest
from fettle.store.listed import WholeFiles
from fettle.store.places import Missing, Place, stays_inside, web_server
from fettle.store.registry import MOST_BYTES, ImageManifest, Layer, Registry, registry_at

TITLE = "org.opencontainers.image.title"
FILEPATH = "org.cncf.model.filepath"
UNPACK = "io.deis.oras.content.unpack"  # oras: the layer is a folder
MODEL_LAYER = "application/vnd.cncf.model."
MOST_LAYERS = 10_000
MOST_ARCHIVES = 500  # each is kept open
_ARCHIVE = re.compile(r"[.+]tar([.+](gzip|zstd))?$")
Found = TypeVar("Found")


def find(
    uri: str, credentials: Credentials | None, pinned: MutableMapping[str, str], missing: Missing
) -> tuple[ArtifactFiles, str]:
    """The files that `uri` lies among, and the path there; nothing is asked of the registry yet. `pinned`: what tags meant before.

    Raises what `missing` makes.
    """
    registry, path = registry_at(uri, credentials, missing)
    return ArtifactFiles(registry, pinned, missing), unquote(path)


@dataclass(frozen=True)
class _Whole:
    """A file that is a layer."""

    layer: Layer

    @property
    def size(self) -> int:
        return self.layer.size


class ArtifactFiles(WholeFiles):
    """The files of one manifest: the one that the tag names when the first file is asked for."""

    def __init__(self, registry: Registry, pinned: MutableMapping[str, str], missing: Missing) -> None:
        super().__init__(registry.api.place, str(registry.reference), missing)
        self._registry, self._pinned, self._renewing = registry, pinned, threading.Lock()

    @property
    def repository(self) -> str:
        """Of the registry."""
        return self._registry.reference.name

    def names(self) -> Mapping[str, Any]:
        """The first call fetches the archives, for nothing else tells what is in them."""
        return self._files

    @cached_property
    def manifest(self) -> ImageManifest:
        """Of the artifact. Raises what `missing` makes."""
        found = self._registry.manifest(self._pinned)
        self._place = self._opened()
        return found

    def digest(self, name: str) -> str | None:
        """sha256 (hexadecimal) of a file that is a layer; None for one in an archive, whose digest nobody wrote down."""
        file = self._files[name]
        return file.layer.digest.removeprefix("sha256:") if isinstance(file, _Whole) else None

    @cached_property
    def _files(self) -> Mapping[str, _Whole | layers.Member]:
        self._require_bounded(self.manifest.layers)
        files: dict[str, _Whole | layers.Member] = {}
        for layer in self.manifest.layers:  # as in an image: what a later one holds counts
            files |= self._files_of(layer)
            if len(files) > layers.MOST_FILES:
                raise self._missing(f"{self._title} holds more than {layers.MOST_FILES} files")
        if not files:
            message = f"{self._title} holds no files: expected layers with the annotation {TITLE} or {FILEPATH}, or tar archives"
            raise self._missing(message)
        both = next((name for name in files for above in PurePosixPath(name).parents if str(above) in files), None)
        if both is not None:
            raise self._missing(f"{self._title} holds {both!r}, and also a file where its folder should be")
        return files

    def _require_bounded(self, listed: Sequence[Layer]) -> None:
        """Raises what `missing` makes for a manifest that lists more than any model has; nothing of it has been fetched yet."""
        archives, size = sum(map(self._is_archive, listed)), sum(layer.size for layer in listed)
        bounds = (
            (len(listed), MOST_LAYERS, "layers"),
            (archives, MOST_ARCHIVES, "archives"),
            (size, MOST_BYTES, "bytes"),
        )
        for found, most, unit in bounds:
            if found > most:
                raise self._missing(f"{self._title}: the manifest lists {found} {unit}, expected at most {most}")

    def _files_of(self, layer: Layer) -> Mapping[str, _Whole | layers.Member]:
        title = layer.annotation(TITLE, FILEPATH)
        if not self._is_archive(layer):
            if title is None:
                return {}  # a signature, a licence of another tool, the empty layer of an artifact without any
            name = PurePosixPath(title).as_posix()
            if not stays_inside(name):
                raise self._missing(
                    f"{self._title} holds {title!r}: expected a relative path that stays inside the artifact"
                )
            return {name: _Whole(layer)}
        blob = tempfile.TemporaryFile(prefix="fettle-")  # noqa: SIM115 - its members are read from it
        self._fetch_layer(layer, blob)
        try:
            return layers.members(layers.unpacked(blob))
        except layers.DamagedLayer as error:
            raise self._missing(f"{self._title}: the layer {title or layer.digest} cannot be read: {error}") from None

    @staticmethod
    def _is_archive(layer: Layer) -> bool:
        """oras calls every file that it was told no media type of an image's layer, and marks the folders among them."""
        if layer.annotation(UNPACK) == "true":
            return True
        named = layer.annotation(TITLE) is not None and not layer.media_type.startswith(MODEL_LAYER)
        return _ARCHIVE.search(layer.media_type) is not None and not named

    # ------------------------------------------------------------------------------------------------------------- reading

    def size_of(self, key: str) -> int:
        """See `WholeFiles.size_of`. Only of a whole file the digest is known."""
        return self._files[key].size

    def _fetch(self, key: str, meta: dict[str, Any], target: IO[bytes]) -> None:
        file = self._files[key]
        if isinstance(file, _Whole):
            self._fetch_layer(file.layer, target)
        else:
            file.copy(target)

    def _fetch_layer(self, layer: Layer, target: IO[bytes]) -> None:
        try:
            super()._fetch(f"blobs/{layer.digest}", {"size": layer.size}, target)
        except FileNotFoundError:
            message = f"{self._title}: the registry has no blob {layer.digest}, which the manifest lists: push the artifact again"
            raise self._missing(message) from None
        target.seek(0)
        found = f"sha256:{stream_digest(target)}"
        if found != layer.digest:
            message = (
                f"{self._title}: expected the blob {layer.digest}, found {found}: it was changed or damaged on the way"
            )
            raise self._missing(message, reason=Reason.DIGEST_MISMATCH)

    def read_range(self, key: str, meta: dict[str, Any], start: int, end: int) -> bytes:
        """As that of the other remote files."""
        return self._admitted(lambda: super(ArtifactFiles, self).read_range(key, meta, start, end))

    def _fetch_whole(self, key: str, target: IO[bytes], most: int | None = None) -> None:
        self._admitted(lambda: super(ArtifactFiles, self)._fetch_whole(key, target, most))

    def _admitted(self, attempt: Callable[[], Found]) -> Found:
        """What `attempt` returns, once more where the registry lets it in no longer: its tokens live for minutes."""
        before = self._place
        try:
            return attempt()
        except FettleError as error:
            if error.reason != Reason.FORBIDDEN:
                raise
        with self._renewing:
            if self._place is before:
                self._registry.renew()
                self._place = self._opened()
        return attempt()

    def _opened(self) -> Place:
        registry = self._registry
        return web_server(registry.root, registry.api.place.credentials, registry.proof, self._missing)
