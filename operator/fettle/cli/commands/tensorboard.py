"""`tensorboard`: the curves of an OptimizedModel's trainings, out of its store and into TensorBoard."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

import click

from fettle.cli.access.bucket import SECRET_HELP
from fettle.cli.access.claim_pod import pod_options
from fettle.cli.access.cluster import MODELS, connect
from fettle.cli.access.completion import model_names
from fettle.cli.access.connection import cluster_options
from fettle.cli.access.subject import NameType
from fettle.cli.commands.pull import Way, pull_from_store
from fettle.cli.commands.report import report_of
from fettle.errors import AbsentError, UsageError

PROGRAM = "tensorboard"


@click.command()
@click.argument("name", metavar="NAME", type=NameType(MODELS), shell_complete=model_names)
@click.argument("to", metavar="[FOLDER]", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--secret", type=click.Path(path_type=Path), metavar="FOLDER", help=SECRET_HELP)
@pod_options
@cluster_options
def tensorboard(
    name: str, to: Path | None, secret: Path | None, image: str | None, timeout: int, **connection: str | None
) -> None:
    """Download the training curves of an OptimizedModel and show them in TensorBoard.

    Each run gets a folder of its own in FOLDER, so that TensorBoard shows several runs together. FOLDER defaults to
    NAME-tensorboard. If TensorBoard is not installed, the command says how to install and start it.

    \b
    kubectl fettle tensorboard digits
    kubectl fettle tensorboard digits ./curves
    """
    cluster = connect(**connection)
    to, way = to or Path(f"{name}-tensorboard"), Way(secret, image, timeout)
    uri = curves_of(report_of(cluster, name))
    click.echo(pull_curves(uri, to, lambda uri, folder: pull_from_store(cluster, uri, folder, way)))
    show(to)


def curves_of(report: str) -> str:
    """The address of the curves that lie beside a report."""
    return f"{report.removesuffix('.html')}.tensorboard"


def pull_curves(uri: str, to: Path, pull: Callable[[str, Path], None]) -> Path:
    """Copy the curves of a run to a folder in `to` that has the run's number. Raises UsageError where there are none, StoreError."""
    run = to / PurePosixPath(uri).stem
    try:
        pull(uri, run)
    except AbsentError as error:
        raise UsageError(
            "the last run trained nothing, so it has no curves: recipes train with data.training"
        ) from error
    return run


def show(folder: Path) -> None:
    """Run TensorBoard on a folder until it is interrupted; where it is not installed, say how to."""
    program = shutil.which(PROGRAM)
    if program is None:
        click.echo(f"TensorBoard is not installed: pip install {PROGRAM}, then {PROGRAM} --logdir {folder}", err=True)
        return
    with suppress(KeyboardInterrupt):  # TensorBoard gets it too, and ends
        subprocess.run([program, "--logdir", str(folder)], check=False)
