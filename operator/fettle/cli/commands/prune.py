"""`fettle prune`: make room in a store, by removing what nothing refers to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fettle.api.uris import is_remote
from fettle.cli.access.bucket import SECRET_HELP, BucketFiles, location_of
from fettle.cli.access.claim_pod import Wire, inside_claim, parse_target, pod_options
from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, Cluster, Object, connect
from fettle.cli.access.connection import cluster_options
from fettle.cli.local.model_options import gathered
from fettle.cli.pods import prune as program
from fettle.cli.views.progress import size
from fettle.errors import StoreError, UsageError

HOUR = 3600


@dataclass(frozen=True)
class SweepOptions:
    """What may go."""

    dry_run: bool
    older_than: int
    keep: tuple[str, ...]


sweep_options = gathered(
    "sweep",
    SweepOptions,
    click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing."),
    click.option(
        "--older-than",
        type=click.IntRange(min=0),
        default=24,
        show_default=True,
        metavar="HOURS",
        help="Remove only files that were not used for this many hours.",
    ),
    click.option(
        "--keep", multiple=True, metavar="SHA256", help="Digest of an additional artifact to keep; may be repeated."
    ),
)


@click.command()
@click.argument("store", metavar="[STORE]", default="pvc://fettle-store")
@sweep_options
@click.option("--secret", type=click.Path(path_type=Path), metavar="FOLDER", help=SECRET_HELP)
@pod_options
@cluster_options
def prune(
    store: str,
    sweep: SweepOptions,
    secret: Path | None,
    image: str | None,
    timeout: int,
    **connection: str | None,
) -> None:
    """Free space in a store by removing files that nothing in the namespace refers to.

    The command keeps artifacts that an OptimizedModel published, artifacts that a ModelDeployment serves, rolls out or may roll
    back to, and the results of the namespace's Jobs. Everything else is cache, such as candidates that lost and runs of deleted
    objects. The command removes their files and keeps their manifests and figures. A removed file is built again when needed.

    Use --keep for artifacts that are only referenced from other namespaces or from files in Git.

    \b
    fettle prune --dry-run
    fettle prune pvc://fettle-store --older-than 168
    fettle prune s3://artifacts/team-a --dry-run
    """
    if wrong := [digest for digest in sweep.keep if not program.DIGEST.fullmatch(digest)]:
        raise UsageError(f"--keep {wrong[0]}: expected the sha256 of an artifact, 64 hexadecimal digits")
    target = None if is_remote(store) else parse_target(store)
    cluster, older = connect(**connection), sweep.older_than * HOUR
    if target is None:
        files = BucketFiles(location_of(store, secret))
        kept = sorted({*sweep.keep, *mentioned(objects_of(cluster))})
        answer = program.sweep(files, {"keep": kept, "older": older, "dry": sweep.dry_run})
    else:
        with inside_claim(cluster, target.claim, program.__file__, image, timeout, purpose="prune") as wire:
            answer = swept(wire, target.path, {*sweep.keep, *mentioned(objects_of(cluster))}, older, sweep.dry_run)
    click.echo(outcome(answer, sweep.dry_run))


def objects_of(cluster: Cluster) -> list[Object]:
    """Every object of the namespace that may name a file of a store."""
    return [*cluster.objects(MODELS), *cluster.objects(DEPLOYMENTS), *cluster.children()]


def mentioned(objects: Iterable[Object]) -> set[str]:
    """Every sha256 that objects of the cluster name anywhere: addresses of artifacts, hashes of tasks."""
    return {digest for resource in objects for digest in program.DIGEST.findall(json.dumps(resource))}


def swept(wire: Wire, store: str, keep: Iterable[str], older: int, dry: bool) -> dict[str, Any]:
    """What the pod's program answers. Raises StoreError."""
    question = {"store": store, "keep": sorted(keep), "older": older, "dry": dry}
    wire.send(json.dumps(question).encode() + b"\n")
    line = wire.line()
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise StoreError(f"unexpected response from the pod: {line!r}") from error
    if "error" in answer:
        raise StoreError(answer["error"])
    return answer


def outcome(answer: dict[str, Any], dry: bool) -> str:
    """Two lines for a person."""
    removed, stays = answer["removed"], answer["stays"]
    if not removed["files"]:
        return f"nothing to remove; {size(stays['bytes'])} in {stays['files']} files kept"
    verb = "would be removed" if dry else "removed"
    lost = f"; the manifests and figures of {answer['artifacts']} artifacts are kept" if answer["artifacts"] else ""
    return (
        f"{size(removed['bytes'])} in {removed['files']} files {verb}{lost}\n"
        f"{size(stays['bytes'])} in {stays['files']} files kept"
    )
