"""`fettle reproduce`: build an artifact again on this machine, and compare the digests of its files."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import click

from fettle.api.task import MeasureTask
from fettle.cli.commands.optimize import documents_of, followed, manifest_options
from fettle.cli.entry import EXIT_FAILURE
from fettle.cli.local.manifests import ModelDocument
from fettle.cli.local.model_options import ModelOptions, model_options
from fettle.cli.local.model_run import model_run
from fettle.cli.local.mounts import Places, parse_maps, places
from fettle.cli.local.partial import Built, UntilBuilt
from fettle.cli.local.reproduction import Reproduction, compared, spec_for
from fettle.cli.views.progress import stage_line
from fettle.errors import UsageError
from fettle.store.files import file_digest
from fettle.store.manifest import MANIFEST, Manifest, read_fetched


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@model_options
@manifest_options
def reproduce(artifact: Path, options: ModelOptions, file: str | None, maps: tuple[str, ...]) -> None:
    """Build an artifact again and compare the digests of its files.

    ARTIFACT is the folder that `fettle pull` made, or one in a store of `fettle optimize`. The MODEL and its items, or the FILE with the
    OptimizedModel, are those that it was made from. Everything is prepared and built anew, without any cache. The exit status is 0 only if
    every file of the model is the same, byte for byte.

    \b
    fettle reproduce ./winner -f optimizedmodel.yaml --map pvc://models=./models
    """
    manifest = manifest_in(artifact)
    documents = documents_of(options, file)
    if len(documents.models) != 1:
        raise UsageError(
            f"{file} has {len(documents.models)} OptimizedModels: leave only the one from which the artifact was made"
        )
    (document,) = documents.models
    with tempfile.TemporaryDirectory(prefix="fettle-reproduce-") as folder:
        located = places(spec_for(manifest, document.spec), parse_maps(maps), Path(folder))
        reproduction = compared(manifest, _built(document, located))
    _show(manifest, reproduction)
    if not reproduction.equal:
        sys.exit(EXIT_FAILURE)


def manifest_in(folder: Path) -> Manifest:
    """The manifest of the artifact in `folder`, its digest checked where the folder's name is one. Raises UsageError, StoreError."""
    path = folder / MANIFEST
    if not path.is_file():
        found = f"{folder} has no {MANIFEST}" if folder.exists() else f"{folder} does not exist"
        raise UsageError(f"{found}: name a folder that `fettle pull` made, or STORE/artifacts/SHA256")
    return read_fetched(folder, folder.name if re.fullmatch("[0-9a-f]{64}", folder.name) else file_digest(path)[0])


def _built(document: ModelDocument, located: Places) -> MeasureTask:
    """What was built, as the task that would measure it names it. Ends the command where the run ends before that."""
    try:
        status = followed(document, lambda change: model_run(document, located, change, through=UntilBuilt))
    except Built as built:
        return built.task
    click.echo(f"nothing was built: {stage_line(status)}", err=True)
    sys.exit(EXIT_FAILURE)


def _show(manifest: Manifest, reproduction: Reproduction) -> None:
    what = f"artifact {manifest.digest[:12]} ({manifest.recipe.name} in {manifest.runtime})"
    if reproduction.equal:
        click.echo(
            f"{what}: reproduced, {len(reproduction.files)} of {len(reproduction.files)} files are the same, byte for byte"
        )
        return
    click.echo(f"{what}: not reproduced")
    for name, (recorded, now) in reproduction.files.items():
        if recorded != now:
            click.echo(f"  {name}: recorded {_short(recorded)}, now {_short(now)}")
    for said in reproduction.others or (
        "libraries and items are as recorded; the bytes may depend on the CPU, because calibration runs the model on it",
    ):
        click.echo(f"  {said}")


def _short(digest: str | None) -> str:
    return digest[:12] if digest is not None else "no such file"
