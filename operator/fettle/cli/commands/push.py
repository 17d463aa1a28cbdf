"""`fettle push`: a file or folder into a claim, through a short-lived pod; into a bucket; into a registry."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress, TaskID

from fettle.api.uris import OBJECT_STORES, REGISTRY, is_remote
from fettle.cli.access.bucket import REGISTRY_SECRET_HELP, SECRET_HELP, location_of, write_files
from fettle.cli.access.claim_pod import (
    POLL_SECONDS,
    ClaimPath,
    Exec,
    Wire,
    find_image,
    parse_target,
    pod,
    pod_options,
    progress_bar,
    running_pod,
)
from fettle.cli.access.cluster import Cluster, Object, api_errors, connect
from fettle.cli.access.connection import cluster_options
from fettle.cli.access.packs import files_at, pack_of, push_pack
from fettle.cli.access.push_files import Entry, entries, transfer
from fettle.cli.pods import receive
from fettle.cli.views.progress import size as readable
from fettle.errors import ClusterError, MissingError, UsageError
from fettle.store.uris import path_of

ATTEMPTS = 3  # connections to the pod


@dataclass(frozen=True)
class NewClaim:
    """The claim that `--create` makes; `size` is a quantity, `storage_class` None the cluster's default."""

    size: str
    storage_class: str | None
    access_mode: str

    def manifest(self, target: ClaimPath) -> Object:
        """The PersistentVolumeClaim to create."""
        spec: Object = {"accessModes": [self.access_mode], "resources": {"requests": {"storage": self.size}}}
        if self.storage_class is not None:
            spec["storageClassName"] = self.storage_class
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": target.claim}, "spec": spec}


def new_claim_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--create` and what the new claim is like, turned into the argument `new_claim`: None without `--create`."""

    @click.option("--create", is_flag=True, help="Create the claim if it is missing.")
    @click.option(
        "--size", "claim_size", default="1Gi", show_default=True, metavar="QUANTITY", help="Size of the new claim."
    )
    @click.option(
        "--storage-class", metavar="NAME", help="StorageClass of the new claim [default: the cluster's default]."
    )
    @click.option(
        "--access-mode",
        type=click.Choice(["ReadWriteOnce", "ReadWriteMany"]),
        default="ReadWriteOnce",
        show_default=True,
        help="Access mode of the new claim; use ReadWriteMany if pods run on several nodes.",
    )
    @wraps(command)
    def run(create: bool, claim_size: str, storage_class: str | None, access_mode: str, **others: Any) -> None:
        command(new_claim=NewClaim(claim_size, storage_class, access_mode) if create else None, **others)

    return run


@click.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("uri", metavar="URI")
@click.option(
    "--secret", type=click.Path(path_type=Path), metavar="FOLDER", help=f"{SECRET_HELP} {REGISTRY_SECRET_HELP}"
)
@new_claim_options
@pod_options
@cluster_options
def push(
    source: Path,
    uri: str,
    secret: Path | None,
    new_claim: NewClaim | None,
    image: str | None,
    timeout: int,
    **connection: str | None,
) -> None:
    """Upload a file or a folder to a claim in the cluster, to a bucket, or to an OCI registry.

    URI is pvc://CLAIM/PATH, s3://BUCKET/PATH (or gs://, az://) or oci://REGISTRY/REPOSITORY:TAG. A PATH that ends with / is a folder. In a
    claim, each file is verified against its digest and gets its final name only when it is complete; files that are already there are
    skipped. In a bucket, each file is replaced as a whole. In a registry, the files become a ModelPack, which oras pulls too, and FILE may
    be an artifact: one that was pulled, or STORE/artifacts/SHA256 of a store on this machine.

    \b
    fettle push model.onnx pvc://models/digits/model.onnx
    fettle push ./digits pvc://models/digits --create --size 5Gi
    fettle push ./digits s3://models/digits --secret ./minio
    fettle push ./winner oci://registry.example/models/digits:v1
    """
    if is_remote(uri):
        click.echo(_push_remote(source, uri, secret))
        return
    target = parse_target(uri)
    files = entries(source, target.path)
    cluster = connect(**connection)
    missing = missing_claim(cluster, target, new_claim)
    image, pull_secrets = find_image(cluster, image)
    if missing is not None:
        create_claim(cluster, target, missing)
    total = sum(entry.bytes for entry in files)
    manifest = pod(target.claim, image, pull_secrets, purpose="push")
    with progress_bar(total) as progress, running_pod(cluster, manifest, timeout) as name:
        task = progress.add_task(source.name, total=total)
        count = transferred(files, lambda: Exec(cluster, name, receive.__file__), progress, task)
    unchanged = f", {len(files) - count} unchanged" if count < len(files) else ""
    click.echo(f"{count} of {len(files)} files pushed to {uri} ({readable(total)}{unchanged})")


def _push_remote(source: Path, uri: str, secret: Path | None) -> str:
    scheme = uri.partition("://")[0]
    if scheme == REGISTRY:
        return _push_pack(source, uri, secret)
    if scheme not in OBJECT_STORES:
        known = ", ".join(f"{each}://" for each in ("pvc", *OBJECT_STORES, REGISTRY))
        raise UsageError(f"{uri}: files cannot be uploaded to {scheme}://, expected one of {known}")
    bucket = location_of(uri, secret)
    files = entries(source, path_of(uri, UsageError).lstrip("/"))
    total = sum(entry.bytes for entry in files)
    with progress_bar(total) as progress:
        task = progress.add_task(source.name, total=total)
        write_files(files, bucket, lambda number: progress.advance(task, number))
    return f"{len(files)} files pushed to {uri} ({readable(total)})"


def _push_pack(source: Path, uri: str, secret: Path | None) -> str:
    with files_at(source) as place:
        pack = pack_of(place)
        total = sum(file.stat().st_size for file in pack.files.values())
        with progress_bar(total) as progress:
            task = progress.add_task(source.name, total=total)
            address = push_pack(pack, uri, secret, lambda number: progress.advance(task, number))
        artifact = f": artifact {pack.artifact[0]}" if pack.artifact is not None else ""
        return f"{len(pack.files)} files pushed ({readable(total)}){artifact}\n{address}"


def transferred(files: tuple[Entry, ...], connected: Callable[[], Wire], progress: Progress, task: TaskID) -> int:
    """How many files the last connection sent: where one breaks, another goes on behind what has arrived. Raises ClusterError."""
    for left in reversed(range(ATTEMPTS)):
        try:
            return transfer(files, connected(), lambda number: progress.advance(task, number))
        except ClusterError as error:
            if not (error.retryable and left):
                raise
            progress.reset(task)
            time.sleep(POLL_SECONDS)
    raise AssertionError("unreachable")


def missing_claim(cluster: Cluster, target: ClaimPath, new_claim: NewClaim | None) -> NewClaim | None:
    """The claim to create: None if it is there. Raises UsageError when it is missing and may not be made."""
    try:
        with api_errors(f"claim {target.claim}"):
            cluster.core.read_namespaced_persistent_volume_claim(target.claim, cluster.namespace)
        return None
    except MissingError as error:
        if new_claim is None:
            message = (
                f"claim {target.claim!r} not found in namespace {cluster.namespace!r}: create it, or pass --create"
            )
            raise UsageError(message) from error
        return new_claim


def create_claim(cluster: Cluster, target: ClaimPath, new_claim: NewClaim) -> None:
    """Create the claim. Raises ClusterError."""
    with api_errors(f"claim {target.claim}"):
        cluster.core.create_namespaced_persistent_volume_claim(cluster.namespace, new_claim.manifest(target))
    click.echo(f"claim {target.claim} created in namespace {cluster.namespace}", err=True)
