"""`fettle init`: the manifests of a model, written from what it and its items show."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path

import click

from fettle.api.report import PrepareReport
from fettle.cli.commands.optimize import documents_of, followed, tell_options
from fettle.cli.entry import EXIT_FAILURE
from fettle.cli.local.manifests import ModelDocument
from fettle.cli.local.model_options import ModelOptions, model_options
from fettle.cli.local.model_run import model_run
from fettle.cli.local.mounts import Places, places
from fettle.cli.local.partial import Prepared, UntilPrepared
from fettle.cli.views.progress import stage_line
from fettle.cli.views.starter import Starter, addresses
from fettle.errors import UsageError


@click.command()
@model_options
@click.option(
    "--claim",
    default="models",
    show_default=True,
    metavar="NAME",
    help="PersistentVolumeClaim to which the files will be uploaded.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write [default: print the manifests].",
)
def init(options: ModelOptions, claim: str, output: Path | None) -> None:
    """Inspect a model and its data, and write an OptimizedModel and a ModelDeployment for them, with comments.

    The command does the first stage of a run on this machine. The comments say what it found: inputs and outputs, how labels are interpreted, and
    which metric evaluates them. If the model or the data cannot be used, it reports the same error as a run.

    \b
    fettle init model.onnx --evaluation items.npz -o model.yaml
    """
    if output is not None and output.exists():
        raise UsageError(f"{output} already exists: choose another file")
    if options.model is None:
        raise UsageError("no model given: name a file, as in `fettle init model.onnx --evaluation items.npz`")
    (document,) = documents_of(options, None).models
    paths = addresses(document.name, claim, options.paths)
    with tempfile.TemporaryDirectory(prefix="fettle-init-") as folder:
        report = _prepared(document, places(document.spec, {}, Path(folder)))
    command = shlex.join(["fettle", *sys.argv[1:]])
    text = Starter(document.name, claim, options.document(), paths, report, command).text()
    if output is None:
        click.echo(text, nl=False)
        return
    output.write_text(text.replace("kubectl apply -f FILE", f"kubectl apply -f {output}"), encoding="utf-8")
    click.echo(f"wrote {output}")


def _prepared(document: ModelDocument, located: Places) -> PrepareReport:
    """What preparing it found. Ends the command where it failed."""
    try:
        status = followed(document, lambda change: model_run(document, located, change, through=UntilPrepared))
    except Prepared as prepared:
        return prepared.report
    click.echo(f"{document.name}: {stage_line(status)}", err=True)
    tell_options(status)
    sys.exit(EXIT_FAILURE)
