"""`report`: the report of an OptimizedModel, out of its store and into a browser."""

from __future__ import annotations

from pathlib import Path

import click

from fettle.cli.access.bucket import SECRET_HELP
from fettle.cli.access.claim_pod import pod_options
from fettle.cli.access.cluster import MODELS, Cluster, connect
from fettle.cli.access.completion import model_names
from fettle.cli.access.connection import cluster_options
from fettle.cli.access.objects import model_of
from fettle.cli.access.subject import NameType
from fettle.cli.browser import open_page
from fettle.cli.commands.pull import Way, pull_from_store
from fettle.errors import UsageError


@click.command()
@click.argument("name", metavar="NAME", type=NameType(MODELS), shell_complete=model_names)
@click.argument("to", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--open", "show", is_flag=True, help="Open the report in a browser.")
@click.option("--secret", type=click.Path(path_type=Path), metavar="FOLDER", help=SECRET_HELP)
@pod_options
@cluster_options
def report(
    name: str,
    to: Path | None,
    show: bool,
    secret: Path | None,
    image: str | None,
    timeout: int,
    **connection: str | None,
) -> None:
    """Download the report of an OptimizedModel as a self-contained HTML file.

    FILE defaults to NAME.html.

    \b
    kubectl fettle report digits --open
    kubectl fettle report digits ./digits.html
    """
    cluster = connect(**connection)
    uri = report_of(cluster, name)
    to = to or Path(f"{name}.html")
    if to.is_dir():
        to /= f"{name}.html"
    pull_from_store(cluster, uri, to, Way(secret, image, timeout))
    click.echo(to)
    if show:
        open_page(to)


def report_of(cluster: Cluster, name: str) -> str:
    """The address of the report. Raises UsageError if there is no report yet."""
    report_status = model_of(cluster, name).status.report
    if report_status is None:
        raise UsageError(f"optimizedmodel {name} has no report yet: see `kubectl fettle status {name}`")
    return report_status.uri
