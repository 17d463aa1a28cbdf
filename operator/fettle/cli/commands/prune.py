"""`fettle prune`: make room in a store, by removing what nothing refers to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from fettle.cli.access.claim_pod import Wire, inside_claim, parse_target, pod_options
from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, Object, connect
from fettle.cli.access.connection import cluster_options
from fettle.cli.pods import prune as program
from fettle.cli.views.progress import size
from fettle.errors import StoreError, UsageError

HOUR = 3600


@click.command()
@click.argument("store", metavar="[pvc://CLAIM]", default="pvc://fettle-store")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.option(
    "--older-than",
    type=click.IntRange(min=0),
    default=24,
    show_default=True,
    metavar="HOURS",
    help="Remove only files that were not used for this many hours.",
)
@click.option(
    "--keep", multiple=True, metavar="SHA256", help="Digest of an additional artifact to keep; may be repeated."
)
@pod_options
@cluster_options
def prune(
    store: str,
    dry_run: bool,
    older_than: int,
    keep: tuple[str, ...],
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
    """
    target = parse_target(store)
    if wrong := [digest for digest in keep if not program.DIGEST.fullmatch(digest)]:
        raise UsageError(f"--keep {wrong[0]}: expected the sha256 of an artifact, 64 hexadecimal digits")
    cluster = connect(**connection)
    with inside_claim(cluster, target.claim, program.__file__, image, timeout, purpose="prune") as wire:
        objects = [*cluster.objects(MODELS), *cluster.objects(DEPLOYMENTS), *cluster.children()]
        answer = swept(wire, target.path, {*keep, *mentioned(objects)}, older_than * HOUR, dry_run)
    click.echo(outcome(answer, dry_run))


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
