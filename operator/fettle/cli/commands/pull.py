"""`fettle pull`: a file, a folder or an artifact out of a claim, through a short-lived pod that reads it, or from an address outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click
from fsspec.implementations.local import LocalFileSystem
from rich.progress import Progress

from fettle.api.uris import is_remote
from fettle.cli.access.bucket import REGISTRY_SECRET_HELP, SECRET_HELP, location_of
from fettle.cli.access.claim_files import ClaimFiles
from fettle.cli.access.claim_pod import ClaimPath, inside_claim, parse_target, pod_options, progress_bar
from fettle.cli.access.cluster import MODELS, Cluster, connect
from fettle.cli.access.completion import sources
from fettle.cli.access.connection import cluster_options
from fettle.cli.access.objects import model_of
from fettle.cli.access.packs import pull_pack
from fettle.cli.access.published import for_target
from fettle.cli.access.pull_files import artifact_of, pull_artifact, pull_files, pull_remote
from fettle.cli.access.subject import kind_of
from fettle.cli.pods import send
from fettle.cli.views.progress import size
from fettle.errors import UsageError
from fettle.store.manifest import Manifest, model_entry
from fettle.store.oci import ArtifactFiles
from fettle.store.store import Store
from fettle.store.uris import Location


@click.command()
@click.argument("source", metavar="SOURCE", shell_complete=sources)
@click.argument("to", metavar="[TO]", required=False, type=click.Path(path_type=Path))
@click.option("--target", metavar="NAME", help="Target to download from, for an OptimizedModel with several targets.")
@click.option(
    "--secret", type=click.Path(path_type=Path), metavar="FOLDER", help=f"{SECRET_HELP} {REGISTRY_SECRET_HELP}"
)
@pod_options
@cluster_options
def pull(
    source: str,
    to: Path | None,
    target: str | None,
    secret: Path | None,
    image: str | None,
    timeout: int,
    **connection: str | None,
) -> None:
    """Download a file, a folder or an artifact.

    SOURCE is pvc://CLAIM/PATH, om/NAME for the artifact that an OptimizedModel published, or an artifact in a store: of
    `fettle optimize`, in a bucket (s3://BUCKET/artifacts/SHA256), or in an OCI registry (oci://REGISTRY/REPOSITORY:TAG). An artifact
    becomes a folder with manifest.json, reference.npz and the model's files in model/, and every digest is verified. Files of a claim, of
    an artifact or of a registry that are already there are skipped. SOURCE may also be any other file or folder in a bucket, on a web
    server, or of a model hub (s3://, gs://, az://, https://, hf://, mlflow://). TO defaults to the last part of SOURCE.

    \b
    fettle pull om/digits ./winner
    fettle pull pvc://models/digits/evaluation.npz
    fettle pull s3://models/digits ./digits --secret ./minio
    fettle pull fettle-store/artifacts/4d734099a9c7de2730cd27004ee1355757d47d16fd998980177429e7accef336 ./winner
    fettle pull oci://registry.example/models/digits:v1 ./winner
    """
    model = _model_in(source)
    if model is None and not source.startswith("pvc://"):
        click.echo(_pull_remote(source, to, secret) if is_remote(source) else _pull_local(source, to))
        return
    cluster = connect(**connection)
    uri = published(cluster, model, target) if model is not None else source
    if is_remote(uri):
        click.echo(_pull_remote(uri, to or Path(PurePosixPath(source).name), secret))
        return
    place = parse_target(uri)
    to = to or Path(PurePosixPath(source).name if place.path else place.claim)
    with progress_bar(None) as progress, opened(cluster, place, image, timeout, progress) as files:
        click.echo(_pull(files, uri, place, to, progress))


@dataclass(frozen=True)
class Way:
    """How files of a store are reached: those in a bucket with the folder `secret`, those in a claim by a pod of `image`, waited for `timeout` s."""

    secret: Path | None
    image: str | None
    timeout: int


def pull_from_store(cluster: Cluster, uri: str, to: Path, way: Way) -> None:
    """Copy a file or a folder of a store, which lies in a claim or in a bucket, to `to`. Raises StoreError, ClusterError, UsageError."""
    if is_remote(uri):
        pull_remote(location_of(uri, way.secret), to)
        return
    place = parse_target(uri)
    with progress_bar(None) as progress, opened(cluster, place, way.image, way.timeout, progress) as files:
        pull_files(files, place.path, to, lambda number: progress.update(progress.task_ids[0], total=number))


def _model_in(source: str) -> str | None:
    """NAME of om/NAME, in any spelling of the kind; None for anything else."""
    kind, slash, name = source.partition("/")
    return name if slash and kind_of(kind) == MODELS and name and "/" not in name else None


def published(cluster: Cluster, name: str, target: str | None) -> str:
    """Address of the artifact that an OptimizedModel published for `target`. Raises UsageError where there is not one of them."""
    artifacts = model_of(cluster, name).status.artifacts
    if not artifacts:
        raise UsageError(f"optimizedmodel {name} has published nothing yet: see `kubectl fettle status {name}`")
    return for_target(f"optimizedmodel {name}", artifacts, target).uri


@contextmanager
def opened(
    cluster: Cluster, place: ClaimPath, image: str | None, timeout: int, progress: Progress
) -> Iterator[ClaimFiles]:
    """The files of a claim, while a pod reads them; `progress` follows the bytes. Raises UsageError, ClusterError."""
    task = progress.add_task(place.claim, total=None)
    with inside_claim(cluster, place.claim, send.__file__, image, timeout, purpose="pull", read_only=True) as wire:
        yield ClaimFiles(wire, lambda number: progress.advance(task, number))


def _pull(files: ClaimFiles, uri: str, place: ClaimPath, to: Path, progress: Progress) -> str:
    def total(number: int) -> None:
        progress.update(progress.task_ids[0], total=number)

    artifact = artifact_of(Location(uri, files, place.path))
    if artifact is not None:
        return _told(*artifact, to, total)
    count, sent, number = pull_files(files, place.path.rstrip("/"), to, total)
    unchanged = f", {count - sent} unchanged" if sent < count else ""
    return f"{sent} of {count} files pulled to {to} ({size(number)}{unchanged})"


def _told(store: Store, sha256: str, to: Path, total: Any) -> str:
    return _described(sha256, pull_artifact(store, sha256, to, total), to)


def _described(sha256: str, manifest: Manifest, to: Path) -> str:
    what = f"{manifest.recipe.name} in {manifest.runtime}, {size(manifest.bytes)}, all digests verified"
    return f"artifact {sha256[:12]}: {what}\n{model_entry(to, manifest)}"


def _pull_remote(source: str, to: Path | None, secret: Path | None) -> str:
    location = location_of(source, secret)
    if isinstance(location.filesystem, ArtifactFiles):
        return _pull_pack(location, to)
    artifact = artifact_of(location)
    if artifact is None:
        to = to or Path(PurePosixPath(location.path).name or "files")
        count, number = pull_remote(location, to)
        return f"{count} files pulled to {to} ({size(number)})"
    return _told(*artifact, to or Path(artifact[1]), lambda number: None)


def _pull_pack(location: Location, to: Path | None) -> str:
    folder, artifact = pull_pack(location, to)
    return f"files pulled to {folder}, all digests verified" if artifact is None else _described(*artifact, folder)


def _pull_local(source: str, to: Path | None) -> str:
    path = Path(source).absolute()
    artifact = artifact_of(Location(path.as_uri(), LocalFileSystem(), path.as_posix()))
    if artifact is None:
        raise UsageError(
            f"{source}: expected pvc://CLAIM/PATH, om/NAME, an address such as s3://BUCKET/PATH, "
            "or an artifact's folder (STORE/artifacts/SHA256)"
        )
    return _told(*artifact, to or Path(path.name), lambda number: None)
