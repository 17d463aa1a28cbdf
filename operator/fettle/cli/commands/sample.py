"""`sample`: live inputs of a ModelDeployment as a data file, for the next optimization."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fettle.api.base import REVISION_LABEL
from fettle.api.text import counted
from fettle.cli.access.cluster import DEPLOYMENTS, Cluster
from fettle.cli.access.completion import deployment_names
from fettle.cli.access.live_items import PodPort, gather, token_of
from fettle.cli.access.objects import read_deployment
from fettle.cli.access.options import with_cluster
from fettle.cli.access.subject import NameType
from fettle.cluster.workloads import is_ready
from fettle.errors import ClusterError, UsageError
from fettle.server.live_items import LiveItems
from fettle.store.files import whole_file


@click.command()
@click.argument("deployment", metavar="NAME", type=NameType(DEPLOYMENTS), shell_complete=deployment_names)
@click.argument("to", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--items", type=click.IntRange(1, 20_000), default=512, show_default=True, help="Number of items to collect."
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=120,
    show_default=True,
    help="Time after which fewer items are enough.",
)
@with_cluster
def sample(cluster: Cluster, deployment: str, to: Path | None, items: int, seconds: float) -> None:
    """Collect live inputs of a ModelDeployment in an .npz file.

    The stable revision's pods keep a sample of recent requests in memory (spec.server.samples). This command takes items from them until
    it has enough. The file has no labels: an optimization with it compares candidates with the original model's answers. Live inputs can
    be personal data: store the file accordingly. You need permission to get Secrets and to forward ports of pods.

    \b
    kubectl fettle sample digits live.npz --items 1000
    fettle push live.npz pvc://models/digits/live.npz
    """
    path = to or Path(f"{deployment}.npz")
    if path.suffix != ".npz":
        raise UsageError(f"{path}: expected a file name that ends in .npz")
    if path.exists():
        raise UsageError(f"{path} already exists: choose another file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder")
    ports = _ports(cluster, deployment)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"items from {len(ports)} pods", total=items)
        collected = gather(ports, items, seconds, lambda done: progress.update(bar, completed=done))
    _write(path, collected, items)
    click.echo(f"{path}: {summary(collected, items)}")


def _ports(cluster: Cluster, name: str) -> list[PodPort]:
    """Of the stable revision's ready pods. Raises ClusterError, UsageError."""
    manifest = cluster.get(DEPLOYMENTS, name)
    deployment = read_deployment(manifest)
    if not deployment.spec.server.samples:
        raise UsageError(f"modeldeployment {name} keeps no samples: spec.server.samples is 0")
    stable = deployment.status.stable
    pods = [
        pod
        for pod in cluster.pods(name)
        if stable is not None and pod["metadata"]["labels"].get(REVISION_LABEL) == stable.revision and is_ready(pod)
    ]
    if not pods:
        raise ClusterError(
            f"modeldeployment {name} has no ready pod of a stable revision: see `kubectl fettle status {name}`"
        )
    if deployment.status.canary is not None:
        click.echo(
            "a canary is running: the items that this command takes are not compared with the canary's answers",
            err=True,
        )
    token = token_of(cluster, manifest)
    return [PodPort.forwarded(cluster, pod, token) for pod in pods]


def _write(path: Path, collected: LiveItems, most: int) -> None:
    """The file appears whole or not at all."""
    with whole_file(path) as part:
        part.touch(mode=0o600)  # what people sent to a model is for nobody else
        with part.open("wb") as stream:
            collected.write(stream, most)


def summary(collected: LiveItems, wanted: int) -> str:
    """'120 of 512 items (3 repeated ones skipped)'."""
    skipped = [
        f"{count} {what} skipped"
        for count, what in (
            (collected.repeated, "repeated ones"),
            (collected.misfits, "of other shapes"),
            (collected.infinite, "with infinity"),
            (collected.large, "too large"),
        )
        if count
    ]
    kept = min(len(collected), wanted)
    text = (
        counted(kept, "item")
        if kept == wanted
        else f"{kept} of {wanted} items, because there were no more requests in that time"
    )
    return text + (f" ({', '.join(skipped)})" if skipped else "")
