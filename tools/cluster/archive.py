"""A static binary as a container image: a docker-archive with one layer, which `ctr images import` takes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def docker_archive(binary: Path, entrypoint: Sequence[str], tag: str, machine: str) -> bytes:
    """The image's archive; the binary lies at `entrypoint[0]`."""
    layer = _tar({entrypoint[0].lstrip("/"): (binary.read_bytes(), 0o755)})
    identity = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{identity}"]},
    }
    text = json.dumps(config).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": [f"{identity}.tar"]}]
    parts = {name: text, f"{identity}.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    return _tar({path: (content, 0o644) for path, content in parts.items()})


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
