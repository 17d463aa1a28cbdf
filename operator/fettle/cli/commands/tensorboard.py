"""`tensorboard`: the curves of an OptimizedModel's trainings, out of its store and into TensorBoard."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path, PurePosixPath

import click

from fettle.api.reasons import Reason
from fettle.cli.access.claim_files import ClaimFiles
from fettle.cli.access.claim_pod import parse_target, pod_options, progress_bar
from fettle.cli.access.cluster import MODELS, connect
from fettle.cli.access.completion import model_names
from fettle.cli.access.connection import cluster_options
from fettle.cli.access.pull_files import Total, pull_files
from fettle.cli.access.subject import NameType
from fettle.cli.commands.pull import opened
from fettle.cli.commands.report import report_of
from fettle.errors import StoreError, UsageError

PROGRAM = "tensorboard"


@click.command()
@click.argument("name", metavar="NAME", type=NameType(MODELS), shell_complete=model_names)
@click.argument("to", metavar="[FOLDER]", required=False, type=click.Path(path_type=Path, file_okay=False))
@pod_options
@cluster_options
def tensorboard(name: str, to: Path | None, image: str | None, timeout: int, **connection: str | None) -> None:
    """Download the training curves of an OptimizedModel and show them in TensorBoard.

    Each run gets a folder of its own in FOLDER, so that TensorBoard shows several runs together. FOLDER defaults to
    NAME-tensorboard. If TensorBoard is not installed, the command says how to install and start it.

    \b
    kubectl fettle tensorboard digits
    kubectl fettle tensorboard digits ./curves
    """
    cluster = connect(**connection)
    place = parse_target(curves_of(report_of(cluster, name)))
    to = to or Path(f"{name}-tensorboard")
    with progress_bar(None) as progress, opened(cluster, place, image, timeout, progress) as files:
        run = pull_curves(files, place.path, to, lambda number: progress.update(progress.task_ids[0], total=number))
    click.echo(run)
    show(to)


def curves_of(report: str) -> str:
    """The address of the curves that lie beside a report."""
    return f"{report.removesuffix('.html')}.tensorboard"


def pull_curves(files: ClaimFiles, path: str, to: Path, total: Total) -> Path:
    """Copy the curves of a run to a folder in `to` that has the run's number. Raises UsageError where there are none, StoreError."""
    run = to / PurePosixPath(path).stem
    try:
        pull_files(files, path, run, total)
    except StoreError as error:
        if error.reason != Reason.STORE_NOT_FOUND:
            raise
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
