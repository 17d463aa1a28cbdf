"""Files as a ModelPack in an OCI registry: the artifact that the CNCF's model specification describes. Clients of artifacts, such as oras, read it.

Each file is a layer of its own, as it is: no archive, no compression. So its digest in the registry is its own. No time stands in it: the same
files make the same digest anywhere.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from fettle.api.base import GROUP
from fettle.api.reasons import Reason
from fettle.errors import FettleError
from fettle.store.files import file_digest
from fettle.store.manifest import Manifest
from fettle.store.oci import FILEPATH, MODEL_LAYER, TITLE
from fettle.store.places import Missing
from fettle.store.registry import IMAGE_MANIFEST, Registry
from fettle.store.web import patiently

ARTIFACT_TYPE = f"{MODEL_LAYER}manifest.v1+json"
CONFIG = f"{MODEL_LAYER}config.v1+json"
DOMAIN = ".".join(reversed(GROUP.split(".")))
ARTIFACT, RUNTIME, RECIPE = f"{DOMAIN}.artifact", f"{DOMAIN}.runtime", f"{DOMAIN}.recipe"
# What a file is for, by the end of its name; all else is weights.
_KINDS = {
    ".json": "weight.config",
    ".yaml": "weight.config",
    ".yml": "weight.config",
    ".txt": "weight.config",
    ".md": "doc",
    ".py": "code",
    ".npz": "dataset",
}
TAG_DIGITS = 12  # of a digest, in a tag
Sent = Callable[[int], None]  # told of bytes that are in the registry


@dataclass(frozen=True)
class Pack:
    """What goes into the registry: files by their path in it. `artifact`: digest and manifest, where they are one of Fettle's."""

    files: Mapping[str, Path]
    artifact: tuple[str, Manifest] | None = None

    @property
    def annotations(self) -> dict[str, str]:
        """What clients of registries show of it."""
        if self.artifact is None:
            return {}
        sha256, manifest = self.artifact
        return {ARTIFACT: sha256, RUNTIME: str(manifest.runtime), RECIPE: manifest.recipe.name}


def files_in(folder: Path) -> dict[str, Path]:
    """All files below a folder, by their path in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def require_push(registry: Registry) -> None:
    """Begin an upload as `push` does, and cancel it. Raises what `missing` makes where the registry takes none."""
    place = registry.begin_upload()
    with suppress(FileNotFoundError, FettleError):  # a registry that cannot cancel one forgets it in time
        registry.ask(place, "DELETE", once=True)


def push(pack: Pack, registry: Registry, sent: Sent, missing: Missing, name: str | None = None) -> str:
    """The address, by digest, of the artifact that the registry has now. What it had already is not sent again. Raises what `missing` makes.

    With `name`, its tag is NAME and the first digits of that digest: such a tag never moves, and what it names is never without a tag.
    """
    reference = registry.reference
    if reference.tag is None or reference.digest is not None:
        raise missing(
            f"{reference}: expected oci://REGISTRY/REPOSITORY:TAG; the digest follows from what is pushed",
            reason=Reason.INVALID_SPEC,
        )
    layers = [_layer(path, *file_digest(file)) for path, file in sorted(pack.files.items())]
    for layer in layers:
        with pack.files[layer["annotations"][TITLE]].open("rb") as stream:
            _put(registry, layer, stream)
        sent(layer["size"])
    config = _canonical(_config(pack, reference.name.rpartition("/")[2], [layer["digest"] for layer in layers]))
    described = {"mediaType": CONFIG, "digest": _digest(config), "size": len(config)}
    _put(registry, described, io.BytesIO(config))
    manifest = _canonical(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": described,
            "layers": layers,
            "annotations": pack.annotations,
        }
    )
    digest = _digest(manifest)
    tag = reference.tag if name is None else f"{name}-{digest.removeprefix('sha256:')[:TAG_DIGITS]}"
    registry.put(f"manifests/{tag}", manifest, len(manifest), IMAGE_MANIFEST)
    return str(replace(reference, tag=None, digest=digest))


def _layer(path: str, digest: str, size: int) -> dict[str, Any]:
    kind = _KINDS.get(Path(path).suffix.lower(), "weight")
    annotations = {TITLE: path, FILEPATH: path}
    return {
        "mediaType": f"{MODEL_LAYER}{kind}.v1.raw",
        "digest": f"sha256:{digest}",
        "size": size,
        "annotations": annotations,
    }


def _config(pack: Pack, name: str, digests: list[str]) -> dict[str, Any]:
    return {
        "descriptor": {"name": name},
        "config": {"format": pack.artifact[1].model.format.lower()} if pack.artifact is not None else {},
        "modelfs": {"type": "layers", "diffIds": digests},
    }


def _put(registry: Registry, blob: Mapping[str, Any], content: IO[bytes]) -> None:
    """See that the registry has a blob. An upload that breaks begins again: what had arrived counts for nothing."""
    if registry.has(blob["digest"]):
        return

    def upload() -> None:
        place = registry.begin_upload()
        whole = f"{place}{'&' if '?' in place else '?'}digest={quote(blob['digest'])}"
        registry.put(whole, content, blob["size"], "application/octet-stream")

    patiently(upload)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"
