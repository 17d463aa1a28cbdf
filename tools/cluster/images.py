"""Fettle's container images: built where their inputs changed, pushed where the registry, or the nodes of kind, lack them.

An image's tag is a digest of what goes into it: its Dockerfile, its build arguments and everything that it copies from the repository.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tools.cluster import kind
from tools.cluster.builders import Builder, choose_builder, is_plain
from tools.cluster.errors import ClusterError
from tools.cluster.paths import Paths
from tools.cluster.shell import Progress, write
from tools.cluster.target import Target

BUILD_ATTEMPTS = 3
NAMES = ("operator", "server", "optimizer")
TORCH_NAMES = ("server-torch", "optimizer-torch")  # large: only on request
# For source formats: only by name.
FORMAT_NAMES = ("optimizer-tensorflow", "optimizer-transformers", "optimizer-sklearn", "server-litert")
GPU_NAMES = ("server-gpu", "optimizer-gpu")  # larger still
GPU_TORCH_NAMES = ("server-gpu-torch", "optimizer-gpu-torch")
NO_ARGUMENTS: Mapping[str, str] = {}
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.manifest.v1",
        "oci.image.index.v1",
        "docker.distribution.manifest.v2",
        "docker.distribution.manifest.list.v2",
    )
)


def copied(dockerfile: str) -> list[str]:
    """The sources in the build context of every COPY and ADD; not those of another stage."""
    joined = re.sub(r"\\\s*\n", " ", dockerfile)
    sources: list[str] = []
    for line in joined.splitlines():
        words = line.split()
        if not words or words[0].upper() not in ("COPY", "ADD") or any(word.startswith("--from=") for word in words):
            continue
        sources += [word for word in words[1:] if not word.startswith("--")][:-1]
    return sources


def taken(dockerfile: str, arguments: Mapping[str, str]) -> dict[str, str]:
    """Those of the build arguments that a Dockerfile declares."""
    return {name: value for name, value in arguments.items() if re.search(rf"(?m)^ARG {name}\b", dockerfile)}


def content_tag(root: Path, dockerfile: Path, arguments: Mapping[str, str] = NO_ARGUMENTS) -> str:
    """A digest of an image's inputs, twelve hex digits. Raises ClusterError when a copied file is missing."""
    text = dockerfile.read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(taken(text, arguments).items()):
        digest.update(f"\0{name}={value}".encode())
    for source in copied(text):
        found = sorted(root.glob(source.rstrip("/")))
        if not found:
            raise ClusterError(f"{dockerfile} copies {source}, which does not exist")
        for file in (file for path in found for file in _files(path)):
            executable = file.stat().st_mode & 0o111
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"\0{file.relative_to(root)} {bool(executable)} {content}".encode())
    return digest.hexdigest()[:12]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            yield file


def references(
    paths: Paths, registry: str, names: Sequence[str], arguments: Mapping[str, str] = NO_ARGUMENTS
) -> dict[str, str]:
    """Where each image belongs."""
    files = {name: paths.root / "docker" / f"Dockerfile.{name}" for name in names}
    return {
        name: f"{registry}/fettle-{name}:{content_tag(paths.root, file, arguments)}" for name, file in files.items()
    }


def build(
    paths: Paths,
    target: Target,
    progress: Progress,
    names: Sequence[str] = NAMES,
    arguments: Mapping[str, str] = NO_ARGUMENTS,
) -> dict[str, str]:
    """Build and push what the registry lacks; each image's reference by its name, also in a file of .cluster/images.

    `arguments`: build arguments, for those Dockerfiles that declare them.
    """
    if target.registry is None:
        raise ClusterError(
            "FETTLE_REGISTRY must name a registry that the cluster can pull from, such as localhost:5001"
        )
    with _lock(paths.cache / "images.lock", progress):  # base image, layers and registry are there for all checkouts
        wanted = references(paths, target.registry, names, arguments)
        missing = {name: reference for name, reference in wanted.items() if not _is_there(target, reference)}
        if missing:
            builder = choose_builder(paths, target, progress)
            with ThreadPoolExecutor(2) as pool:  # while one waits for downloads, another compiles
                jobs = {
                    name: pool.submit(_one, builder, paths, name, missing[name], progress, arguments)
                    for name in missing
                }
                wanted |= {name: job.result() for name, job in jobs.items()}
        file = paths.images(target.registry)
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        write(file, json.dumps({**known, **wanted}, indent=2) + "\n")
    return wanted


def _one(
    builder: Builder, paths: Paths, name: str, reference: str, progress: Progress, arguments: Mapping[str, str]
) -> str:
    """Build and push one image; its reference, which is another one when its inputs changed meanwhile."""
    dockerfile, log = paths.root / "docker" / f"Dockerfile.{name}", paths.logs / f"image-{name}.log"
    for _ in range(BUILD_ATTEMPTS):
        progress(f"building {reference}")
        builder.build(dockerfile, reference, log, taken(dockerfile.read_text(encoding="utf-8"), arguments))
        current = f"{reference.rpartition(':')[0]}:{content_tag(paths.root, dockerfile, arguments)}"
        if current == reference:
            progress(f"delivering {reference}")
            builder.push(reference, log)
            progress(f"{name} is available")
            return reference
        reference = current  # a tag must tell the truth about what is in it
    raise ClusterError(f"the inputs of image {name} changed during each of {BUILD_ATTEMPTS} builds")


def _is_there(target: Target, reference: str) -> bool:
    return kind.holds(target.kind, reference) if target.kind is not None else is_present(reference)


def split(reference: str) -> tuple[str, str, str]:
    """Registry host, repository and tag of a reference."""
    host, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    return host, repository, tag


def is_present(reference: str) -> bool:
    """Whether the registry has it, as far as it tells without a password."""
    host, repository, tag = split(reference)
    url = f"{'http' if is_plain(host) else 'https'}://{host}/v2/{repository}/manifests/{tag}"
    try:
        answer = httpx.head(url, headers={"accept": _MANIFESTS}, timeout=10, trust_env=not is_plain(host))
    except httpx.TransportError as error:
        raise ClusterError(f"the registry {host} does not respond: {error}") from error
    return answer.status_code == 200


@contextlib.contextmanager
def _lock(file: Path, progress: Progress) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of images to finish")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
