"""`status`: a ModelDeployment and an OptimizedModel on one screen, once or for as long as one looks."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fettle.api.optimizedmodel import OptimizedModel
from fettle.cli.completion import names
from fettle.cli.display import result_console
from fettle.cli.kube import DEPLOYMENTS, MODELS, Cluster, Object, with_cluster
from fettle.cli.objects import echo, model_of, output_option, read_deployment
from fettle.cli.show_model import model
from fettle.cli.show_rollout import rollout
from fettle.errors import ClusterError, MissingError

LOOK_SECONDS = 1.0


@click.command()
@click.argument("name", metavar="NAME", shell_complete=names)
@click.option("-w", "--watch", is_flag=True, help="Draw it again whenever something changes, until Ctrl-C.")
@output_option
@with_cluster
def status(cluster: Cluster, name: str, watch: bool, output: str | None) -> None:
    """Show the ModelDeployment and the OptimizedModel of that name.

    \b
    kubectl fettle status digits
    kubectl fettle status digits --watch
    kubectl fettle status digits -o json
    """
    if output is not None:
        echo(documents(cluster, name), output)
        return
    console = result_console()
    if watch:
        follow(console, lambda: picture(cluster, name, console.width))
    else:
        console.print(picture(cluster, name, console.width), soft_wrap=not console.is_terminal)


def picture(cluster: Cluster, name: str, width: int) -> RenderableType:
    """What there is of that name. Raises MissingError where there is neither."""
    parts: list[RenderableType] = []
    with suppress(MissingError):
        found = read_deployment(cluster.get(DEPLOYMENTS, name))
        parts.append(rollout(found, _pods(cluster, name), datetime.now(UTC)))
    with suppress(MissingError):
        shown: OptimizedModel = model_of(cluster, name)
        parts += ["", model(shown, width)] if parts else [model(shown, width)]
    if not parts:
        raise absent(cluster, name)
    return Group(*parts)


def absent(cluster: Cluster, name: str) -> MissingError:
    """Neither kind has an object of that name; which do."""
    there = {plural: cluster.names(plural) for plural in (DEPLOYMENTS, MODELS)}
    known = "; ".join(f"{plural}: {', '.join(found[:20]) or 'none'}" for plural, found in there.items())
    text = f"neither a modeldeployment nor an optimizedmodel {name!r} in namespace {cluster.namespace!r} ({known})"
    return MissingError(text)


def documents(cluster: Cluster, name: str) -> Object:
    """The objects of that name as the API server holds them; a List where there are both."""
    items = []
    for plural in (DEPLOYMENTS, MODELS):
        with suppress(MissingError):
            items.append(cluster.get(plural, name))
    if not items:
        raise absent(cluster, name)
    for item in items:
        item["metadata"].pop("managedFields", None)
    return items[0] if len(items) == 1 else {"apiVersion": "v1", "kind": "List", "items": items}


def follow(console: Console, draw: Callable[[], RenderableType]) -> None:
    """Draw again and again; what fails for a while is said in the picture. Ends by Ctrl-C."""
    first = draw()  # what cannot be drawn at all is an error, not a picture
    with suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Live(first, console=console, screen=False, auto_refresh=False) as live:
                while True:
                    live.update(_again(draw), refresh=True)
                    time.sleep(LOOK_SECONDS)
        _print_changes(console, first, draw)


def _print_changes(console: Console, first: RenderableType, draw: Callable[[], RenderableType]) -> None:
    before, shown = "", first
    while True:
        with console.capture() as capture:
            console.print(shown, soft_wrap=True)
        if capture.get() != before:
            before = capture.get()
            click.echo(before)
        time.sleep(LOOK_SECONDS)
        shown = _again(draw)


def _again(draw: Callable[[], RenderableType]) -> RenderableType:
    try:
        return draw()
    except ClusterError as error:
        return Text(f"{error.message}; looking again", style="yellow")


def _pods(cluster: Cluster, name: str) -> list[Object] | None:
    try:
        return cluster.pods(name)
    except ClusterError:
        return None  # whoever may see a ModelDeployment need not see pods
