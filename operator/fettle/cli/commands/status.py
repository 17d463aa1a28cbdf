"""`status`: a ModelDeployment and an OptimizedModel on one screen, once or for as long as one looks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, Cluster, Object
from fettle.cli.access.completion import names
from fettle.cli.access.objects import echo, output_option, read_deployment, read_model
from fettle.cli.access.options import with_cluster
from fettle.cli.access.subject import Subject, SubjectType
from fettle.cli.access.watching import Watched
from fettle.cli.views.model import model
from fettle.cli.views.progress import result_console
from fettle.cli.views.rollout import rollout
from fettle.errors import ClusterError, MissingError

DRAW_SECONDS = 1.0  # between two pictures; of changes in between, the last is drawn


@click.command()
@click.argument("subject", metavar="[mdep/|om/]NAME", type=SubjectType(), shell_complete=names)
@click.option(
    "-w",
    "--watch",
    is_flag=True,
    help="Update the output on every change, until the object is deleted or you press Ctrl-C.",
)
@output_option()
@with_cluster
def status(cluster: Cluster, subject: Subject, watch: bool, output: str | None) -> None:
    """Show the ModelDeployment and the OptimizedModel with this name, or only the one of the kind that is named.

    With -o, print the objects as the API server stores them, as a List if both exist. With -o and --watch, print each object
    whenever it changes, as a sequence of JSON documents or as YAML documents separated by ---.

    \b
    kubectl fettle status digits
    kubectl fettle status digits --watch
    kubectl fettle status om/digits
    kubectl fettle status digits -o json
    kubectl fettle status digits -o json --watch
    """
    console = result_console()
    if watch:
        with suppress(KeyboardInterrupt):
            follow(console, cluster, subject, output)
    elif output is not None:
        echo(documents(cluster, subject), output)
    else:
        console.print(picture(look(cluster, subject), console.width), soft_wrap=not console.is_terminal)


@dataclass(frozen=True)
class Seen:
    """What there is of a name. `pods` is None where they may not be listed."""

    deployment: Object | None
    model: Object | None
    pods: Sequence[Object] | None

    @property
    def nothing(self) -> bool:
        """Neither of both kinds."""
        return self.deployment is None and self.model is None


def look(cluster: Cluster, subject: Subject) -> Seen:
    """What there is now. Raises MissingError where there is nothing."""
    pods = _pods(cluster, subject.name) if DEPLOYMENTS in subject.kinds else None
    seen = Seen(_get(cluster, DEPLOYMENTS, subject), _get(cluster, MODELS, subject), pods)
    if seen.nothing:
        raise absent(cluster, subject)
    return seen


def picture(seen: Seen, width: int) -> RenderableType:
    """All of it, `width` columns wide. Raises ClusterError where an object cannot be read."""
    parts: list[RenderableType] = []
    if seen.deployment is not None:
        parts.append(rollout(read_deployment(seen.deployment), seen.pods, datetime.now(UTC)))
    if seen.model is not None:
        shown = model(read_model(seen.model), width)
        parts += ["", shown] if parts else [shown]
    return Group(*parts)


def absent(cluster: Cluster, subject: Subject) -> MissingError:
    """No kind that is meant has an object of that name; which do."""
    there = {plural: cluster.names(plural) for plural in subject.kinds}
    known = "; ".join(f"{plural}: {', '.join(found[:20]) or 'none'}" for plural, found in there.items())
    kinds = " or ".join(plural.removesuffix("s") for plural in subject.kinds)
    return MissingError(f"no {kinds} {subject.name!r} in namespace {cluster.namespace!r} ({known})")


def documents(cluster: Cluster, subject: Subject) -> Object:
    """The objects of that name as the API server holds them; a List where there are both."""
    found = (_get(cluster, plural, subject) for plural in (DEPLOYMENTS, MODELS))
    items = [_shown(item) for item in found if item is not None]
    if not items:
        raise absent(cluster, subject)
    return items[0] if len(items) == 1 else {"apiVersion": "v1", "kind": "List", "items": items}


def _shown(item: Object) -> Object:
    """Without what kubectl leaves out too."""
    return {**item, "metadata": {key: value for key, value in item["metadata"].items() if key != "managedFields"}}


def follow(console: Console, cluster: Cluster, subject: Subject, output: str | None) -> None:
    """Show it again and again, until what was there is deleted. Raises ClusterError where it cannot be read to begin with."""
    name = subject.name
    with Watched(cluster, name, subject.kinds) as watched:
        if _seen(watched).nothing:
            raise absent(cluster, subject)
        if output is not None:
            _print_documents(watched, name, output)
        elif console.is_terminal:
            _draw_in_place(console, watched, name)
        else:
            _print_pictures(console, watched, name)


def _seen(watched: Watched) -> Seen:
    return Seen(watched.object(DEPLOYMENTS), watched.object(MODELS), watched.pods)


def _draw_in_place(console: Console, watched: Watched, name: str) -> None:
    """The time that a pause still lasts moves without any change, so it is drawn anew each second."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            seen = _seen(watched)
            notes = [Text(note, style="yellow") for note in (*_deleted(watched, name), *_problem(watched))]
            live.update(Group(*notes) if seen.nothing else Group(_drawn(seen, console), *notes), refresh=True)
            if seen.nothing:
                return
            time.sleep(DRAW_SECONDS)


def _print_pictures(console: Console, watched: Watched, name: str) -> None:
    """For pipes: a picture at each change that shows."""
    before = ""
    for seen in _changes(watched, name):
        with console.capture() as capture:
            console.print(_drawn(seen, console), soft_wrap=True)
        if capture.get() != before:
            before = capture.get()
            click.echo(before)
        time.sleep(DRAW_SECONDS)


def _print_documents(watched: Watched, name: str, output: str) -> None:
    """For programs: each object whenever it is another one, as `kubectl get --watch -o` prints it."""
    printed: dict[str, str] = {}  # kind -> version
    for seen in _changes(watched, name):
        for item in (seen.deployment, seen.model):
            if item is None or printed.get(item["kind"]) == item["metadata"]["resourceVersion"]:
                continue
            if printed and output == "yaml":
                click.echo("---")
            printed[item["kind"]] = item["metadata"]["resourceVersion"]
            echo(_shown(item), output)


def _changes(watched: Watched, name: str) -> Iterator[Seen]:
    """What there is, now and after each change, until nothing is left; all else there is to say goes to stderr, each once."""
    said, waiting = list[str](), False
    while True:
        watched.changed.clear()
        seen, deleted, problem = _seen(watched), _deleted(watched, name), _problem(watched)
        news = [note for note in deleted if note not in said]
        if bool(problem) != waiting:  # only that it began and that it is over: each try may fail in other words
            news += problem or ["the API server is reachable again"]
        for note in news:
            click.echo(note, err=True)
        said, waiting = deleted, bool(problem)
        if seen.nothing:
            return
        yield seen
        watched.changed.wait()


def _drawn(seen: Seen, console: Console) -> RenderableType:
    try:
        return picture(seen, console.width)
    except ClusterError as error:  # written by another version; the next change may be readable
        return Text(error.message, style="yellow")


def _deleted(watched: Watched, name: str) -> list[str]:
    return [f"{plural}/{name} was deleted" for plural in watched.deleted]


def _problem(watched: Watched) -> list[str]:
    problem = watched.problem
    return [f"{problem.message}; retrying"] if problem is not None else []


def _get(cluster: Cluster, plural: str, subject: Subject) -> Object | None:
    """The object of that kind, if it is meant and there is one."""
    if plural in subject.kinds:
        with suppress(MissingError):
            return cluster.get(plural, subject.name)
    return None


def _pods(cluster: Cluster, name: str) -> Sequence[Object] | None:
    try:
        return cluster.pods(name)
    except ClusterError:
        return None  # whoever may see a ModelDeployment need not see pods
