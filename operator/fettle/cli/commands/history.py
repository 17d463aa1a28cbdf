"""`history`: the ledger of a ModelDeployment: what served when, and why it left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import click
from rich.markup import escape
from rich.table import Table

from fettle.api.modeldeployment import ModelDeployment
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.cli.access.cluster import DEPLOYMENTS, Cluster, Object
from fettle.cli.access.completion import deployment_names
from fettle.cli.access.objects import deployment_of, echo, output_option
from fettle.cli.access.options import with_cluster
from fettle.cli.access.subject import NameType
from fettle.cli.views.progress import result_console, show_result
from fettle.cluster import ledger
from fettle.errors import ClusterError
from fettle.plan import timestamps

DIGEST_LENGTH = 12


@dataclass(frozen=True)
class RevisionLine:
    """A line of the ledger. `state`: stable, canary or left; times are RFC 3339."""

    serial: int
    revision: str
    artifact: str
    state: str
    created: str
    entered: str | None
    left: str | None
    reason: str | None
    message: str | None


@click.command()
@click.argument("deployment", metavar="NAME", type=NameType(DEPLOYMENTS), shell_complete=deployment_names)
@output_option()
@with_cluster
def history(cluster: Cluster, deployment: str, output: str | None) -> None:
    """Show which revisions served, when, and why they left, newest first.

    \b
    kubectl fettle history digits
    kubectl fettle history digits -o json
    """
    resource = deployment_of(cluster, deployment)
    lines = lines_of(resource, read_ledger(cluster, deployment))
    if output is not None:
        echo([asdict(line) for line in lines], output)
        return
    if not lines:
        click.echo(f"modeldeployment {deployment} has served nothing yet")
        return
    show_result(result_console(), table(lines, datetime.now(UTC)))


def read_ledger(cluster: Cluster, name: str) -> list[Object] | None:
    """The ControllerRevisions; None where they may not be listed (status holds most of it too)."""
    try:
        return cluster.ledger(name)
    except ClusterError:
        return None


def lines_of(deployment: ModelDeployment, revisions: Sequence[Object] | None) -> list[RevisionLine]:
    """The ledger, oldest first."""
    status = deployment.status
    if revisions is None:
        return _from_status(status)
    return [
        RevisionLine(
            serial=entry.serial,
            revision=entry.revision,
            artifact=entry.artifact,
            state=_state(status, entry.revision, left=entry.left is not None),
            created=timestamps.write(entry.created),
            entered=timestamps.write(entry.entered) if entry.entered else None,
            left=timestamps.write(entry.left) if entry.left else None,
            reason=entry.reason,
            message=entry.message or None,
        )
        for entry in ledger.read(revisions)
    ]


def _from_status(status: ModelDeploymentStatus) -> list[RevisionLine]:
    return [
        RevisionLine(
            serial=number,
            revision=record.revision,
            artifact=record.artifact,
            state=_state(status, record.revision, left=record.left is not None),
            created=record.entered or record.left or "",
            entered=record.entered,
            left=record.left,
            reason=record.reason,
            message=None,
        )
        for number, record in enumerate(status.revisions, 1)
    ]


def _state(status: ModelDeploymentStatus, revision: str, *, left: bool) -> str:
    if left:
        return "left"
    if status.canary is not None and status.canary.revision == revision:
        return "canary"
    return "stable" if status.stable is not None and status.stable.revision == revision else "leaving"


def table(lines: Sequence[RevisionLine], now: datetime) -> Table:
    """The newest on top."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("#", "REVISION", "ARTIFACT", "STATE", "ENTERED", "SERVED", "REASON"):
        shown.add_column(name, no_wrap=True)
    shown.add_column("MESSAGE", overflow="fold")
    for line in reversed(lines):
        style = {"stable": "bold green", "canary": "cyan"}.get(line.state, "")
        digest = line.artifact.rsplit("/", 1)[-1][:DIGEST_LENGTH]
        cells = (str(line.serial), line.revision, digest, line.state, line.entered or "never")
        said = (served(line, now), line.reason or "", line.message or "")
        shown.add_row(*(escape(cell) for cell in (*cells, *said)), style=style)
    return shown


def served(line: RevisionLine, now: datetime) -> str:
    """How long it had traffic: '3m12s'."""
    entered = timestamps.read(line.entered)
    if entered is None:
        return ""
    return duration((timestamps.read(line.left) or now) - entered)


def duration(time: timedelta) -> str:
    """As kubectl writes ages: '45s', '3m12s', '5h2m', '3d4h'."""
    seconds = max(int(time.total_seconds()), 0)
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return "".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"
