"""`fettle optimize`: the plan of an OptimizedModel on this machine, no cluster."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import yaml
from rich.console import Console

from fettle.api.conditions import READY, ConditionStatus, find
from fettle.api.optimizedmodel_status import ArtifactStatus, OptimizedModelStatus
from fettle.api.task import SECONDS_PER_CANDIDATE
from fettle.api.uris import is_remote
from fettle.cli.browser import open_page
from fettle.cli.entry import EXIT_FAILURE
from fettle.cli.local.manifests import Documents, ModelDocument, read
from fettle.cli.local.model_options import ModelOptions, gathered, model_options
from fettle.cli.local.model_run import logs_of, model_run
from fettle.cli.local.mounts import DEFAULT_FOLDER, Places, parse_maps, places, with_parallelism
from fettle.cli.local.option_hints import option_hint
from fettle.cli.local.results import keep_result
from fettle.cli.local.run import LocalRun, OnChange
from fettle.cli.plain_yaml import dumped
from fettle.cli.views.cost import cost_lines
from fettle.cli.views.progress import (
    Display,
    LiveDisplay,
    PlainDisplay,
    candidates_table,
    result_console,
    show_result,
    size,
    stage_line,
)
from fettle.errors import UsageError

INTERRUPTED = 130  # 128 + SIGINT, as shells say it


@dataclass(frozen=True)
class ShownOptions:
    """What is shown of a run: its `output` for programs, what predictions cost at a `price`, the report in a browser."""

    output: str | None
    price: float | None
    show_report: bool


shown_options = gathered(
    "shown",
    ShownOptions,
    click.option(
        "-o",
        "--output",
        type=click.Choice(["json", "yaml"]),
        help="json: print the objects with their status for programs. yaml: only print the manifest for MODEL and its options.",
    ),
    click.option(
        "--price-per-hour",
        "price",
        type=click.FloatRange(min=0, min_open=True),
        metavar="P",
        help="Price of an hour of the cores that a target uses: prints the cost of a million predictions.",
    ),
    click.option("--open", "show_report", is_flag=True, help="Open the report in a browser at the end."),
)


def manifest_options(command: Callable[..., None]) -> Callable[..., None]:
    """-f and --map: OptimizedModels of a file, and the folders that stand for their claims and Secrets."""
    file = click.option(
        "-f",
        "--filename",
        "file",
        type=click.Path(allow_dash=True),
        metavar="FILE",
        help="YAML file with OptimizedModels instead of MODEL and its options, or - for stdin.",
    )
    maps = click.option(
        "--map",
        "maps",
        multiple=True,
        metavar="pvc://CLAIM=FOLDER",
        help="Local folder that replaces a claim, or secret/NAME=FOLDER with a file for each key that replaces a Secret; may be repeated.",
    )
    return file(maps(command))


@click.command()
@model_options
@manifest_options
@click.option(
    "--store", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder of the store [default: ./fettle-store]."
)
@shown_options
@click.option(
    "--parallelism",
    type=click.IntRange(1, 32),
    metavar="N",
    help="Number of concurrent builds; overrides search.parallelism.",
)
@click.option(
    "--measure-seconds",
    type=click.FloatRange(min=1),
    default=SECONDS_PER_CANDIDATE,
    show_default=True,
    metavar="S",
    help="Time budget for timing each finalist, in seconds.",
)
def optimize(
    options: ModelOptions,
    file: str | None,
    maps: tuple[str, ...],
    store: Path | None,
    shown: ShownOptions,
    parallelism: int | None,
    measure_seconds: float,
) -> None:
    """Optimize a model on this machine, without a cluster.

    Give the MODEL and its evaluation data, or a FILE with the same YAML as for `kubectl apply`. The command runs the same plan
    and the same tasks as local processes instead of Jobs, and writes the same artifacts. The exit status is 0 only if an artifact
    was published for every target. `-o yaml` prints the manifest for later use.

    \b
    fettle optimize model.onnx --evaluation items.npz --max-drop 0.01
    fettle optimize -f optimizedmodel.yaml --map pvc://models=./models
    """
    documents = documents_of(options, file)
    if shown.output == "yaml":
        click.echo(dumped(manifest.document for manifest in documents.models), nl=False)
        return
    progress = Console(stderr=True)
    for kind in documents.others:
        progress.print(f"{file}: ignored a {kind}", style="dim", highlight=False)
    if any(target.node_selector for manifest in documents.models for target in manifest.spec.targets):
        text = "nodeSelector is ignored: every target is measured on this machine"
        progress.print(text, style="dim", highlight=False)
    folders = parse_maps(maps)
    runs = [
        (manifest, places(with_parallelism(manifest.spec, parallelism), folders, store))
        for manifest in documents.models
    ]
    done: list[tuple[ModelDocument, OptimizedModelStatus]] = []
    for manifest, located in runs:
        status = run_one(manifest, located, progress, measure_seconds)
        done.append((manifest, status))
        if shown.output is None:
            show(result_console(), manifest, located, status)
            if file is None:
                tell_options(status)
            for line in cost_lines(status, shown.price) if shown.price is not None else ():
                click.echo(line)
        if shown.show_report and status.report is not None:
            open_page(_page(located, status.report.uri))
    if shown.output == "json":
        click.echo(_json(done))
    if not all(is_ready(status) for _, status in done):
        sys.exit(EXIT_FAILURE)


def run_one(
    manifest: ModelDocument, located: Places, console: Console, measure_seconds: float = SECONDS_PER_CANDIDATE
) -> OptimizedModelStatus:
    """One OptimizedModel from its spec to its final status, followed on `console`."""
    status = followed(manifest, lambda change: model_run(manifest, located, change, measure_seconds), console)
    keep_result(located, manifest, status)
    return status


def followed(
    manifest: ModelDocument, begun: Callable[[OnChange], LocalRun], console: Console | None = None
) -> OptimizedModelStatus:
    """The final status of a run that tells its progress on `console`, by default on stderr."""
    shown = console or Console(stderr=True)
    display: Display = (LiveDisplay if shown.is_terminal else PlainDisplay)(shown, manifest.name)
    with display:
        return _finished(begun(display.update))


def _finished(run: LocalRun) -> OptimizedModelStatus:
    """Its status after it has run to the end; a signal ends the children first, then this process."""

    async def main() -> OptimizedModelStatus | None:
        work = asyncio.ensure_future(run.run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, work.cancel)
        with suppress(asyncio.CancelledError):
            return await work
        return None

    status = asyncio.run(main())
    if status is None:
        click.echo("interrupted; finished builds are kept in the store", err=True)
        sys.exit(INTERRUPTED)
    return status


def show(console: Console, manifest: ModelDocument, located: Places, status: OptimizedModelStatus) -> None:
    """The result for a person: candidates, why the others were not chosen, artifacts, report."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{manifest.name}: {stage_line(status)}")
    for baseline in status.baselines:
        say(f"original  {baseline.target}: {baseline.worth}")
    if status.candidates:
        say("")
        show_result(console, candidates_table(status, console.width))
        say("")
    several = len({row.target for row in status.candidates}) > 1
    for row in status.candidates:
        if row.message:
            say(f"  {f'{row.target}/' if several else ''}{row.name}: {row.message}")
    if status.artifacts or status.report:
        say("")
    for artifact in status.artifacts:
        what = f"{artifact.target}: {artifact.candidate} in {artifact.runtime}, {size(artifact.bytes)}"
        say(f"artifact  {what}  {located.local(artifact.uri)}")
        if artifact.registry_uri is not None:
            say(f"pushed    {artifact.registry_uri}")
    for artifact in status.artifacts:
        say(f"serve     {_serve_line(manifest, located, artifact, several=len(status.artifacts) > 1)}")
    if status.report is not None:
        say(f"report    {located.local(status.report.uri)}")
    if not is_ready(status):
        say(f"logs      {logs_of(located, manifest)}")


def tell_options(status: OptimizedModelStatus) -> None:
    """For who wrote no manifest: which options stand for the fields that the run's error names."""
    hint = "" if is_ready(status) else option_hint(stage_line(status))
    if hint:
        click.echo(f"hint      {hint}", err=True)


def _page(located: Places, uri: str) -> str:
    """The report as a file of this machine."""
    if not is_remote(uri):
        return located.local(uri)
    store, copy = located.opened(), located.logs.parent / "report.html"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(store.read_bytes(uri.removeprefix(f"{store.uri}/")))
    return str(copy)


def _serve_line(manifest: ModelDocument, located: Places, artifact: ArtifactStatus, *, several: bool) -> str:
    """The command that serves an artifact here."""
    if is_remote(artifact.uri):
        return f"fettle pull {artifact.uri} ./{manifest.name} && fettle serve ./{manifest.name}"
    chosen = f" --target {artifact.target}" if several else ""
    return f"fettle serve {manifest.name}{chosen}{_store_option(located)}"


def _store_option(located: Places) -> str:
    """What tells `fettle serve` the store, where it is not the one that is looked into."""
    store = located.local(located.store)
    return "" if Path(store) == DEFAULT_FOLDER.resolve() else f" --store {shlex.quote(store)}"


def is_ready(status: OptimizedModelStatus) -> bool:
    """Whether every target has its artifact."""
    ready = find(status.conditions, READY)
    return ready is not None and ready.status == ConditionStatus.TRUE


def documents_of(options: ModelOptions, file: str | None) -> Documents:
    """What the command line asks for. Raises UsageError."""
    if file is None:
        return read(yaml.safe_dump(options.document()), str(options.model), Path.cwd())
    if options.model is not None:
        raise UsageError("give either a MODEL or a manifest with -f, not both")
    if options.given:
        raise UsageError(f"{' and '.join(options.given)} can only be used with MODEL: a manifest has its own settings")
    return read(_text(file), file, Path.cwd() if file == "-" else Path(file).resolve().parent)


def _text(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error


def _json(done: list[tuple[ModelDocument, OptimizedModelStatus]]) -> str:
    items = [{**manifest.document, "status": status.to_json()} for manifest, status in done]
    document = items[0] if len(items) == 1 else {"apiVersion": "v1", "kind": "List", "items": items}
    return json.dumps(document, indent=2)
