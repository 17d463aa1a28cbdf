"""`status`: a ModelDeployment and an OptimizedModel on one screen, once or continuously."""

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
from fettle.cli.views.progress import result_console, show_result
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
        show_result(console, picture(look(cluster, subject), console.width))


@dataclass(frozen=True)
class Seen:
    """The objects with a name. `pods` is None if the user may not list them."""

    deployment: Object | None
    model: Object | None
    pods: Sequence[Object] | None

    @property
    def nothing(self) -> bool:
        """Whether there is no object of either kind."""
        return self.deployment is None and self.model is None


def look(cluster: Cluster, subject: Subject) -> Seen:
    """The current objects. Raises MissingError if there are none."""
    pods = _pods(cluster, subject.name) if DEPLOYMENTS in subject.kinds else None
    seen = Seen(_get(cluster, DEPLOYMENTS, subject), _get(cluster, MODELS, subject), pods)
    if seen.nothing:
        raise absent(cluster, subject)
    return seen


def picture(seen: Seen, width: int) -> RenderableType:
    """The view of all objects, `width` columns wide. Raises ClusterError if an object cannot be read."""
    parts: list[RenderableType] = []
    if seen.deployment is not None:
        parts.append(rollout(read_deployment(seen.deployment), seen.pods, datetime.now(UTC)))
    if seen.model is not None:
        shown = model(read_model(seen.model), width)
        parts += ["", shown] if parts else [shown]
    return Group(*parts)


def absent(cluster: Cluster, subject: Subject) -> MissingError:
    """The error if no object of the requested kinds has that name, with the names that exist."""
    there = {plural: cluster.names(plural) for plural in subject.kinds}
    known = "; ".join(f"{plural}: {', '.join(found[:20]) or 'none'}" for plural, found in there.items())
    kinds = " or ".join(plural.removesuffix("s") for plural in subject.kinds)
    advice = cluster.elsewhere(subject.kinds, subject.name)
    return MissingError(f"no {kinds} {subject.name!r} in namespace {cluster.namespace!r} ({known}); {advice}")


def documents(cluster: Cluster, subject: Subject) -> Object:
    """The objects with that name as the API server stores them; a List if both exist."""
    found = (_get(cluster, plural, subject) for plural in (DEPLOYMENTS, MODELS))
    items = [_shown(item) for item in found if item is not None]
    if not items:
        raise absent(cluster, subject)
    return items[0] if len(items) == 1 else {"apiVersion": "v1", "kind": "List", "items": items}


def _shown(item: Object) -> Object:
    """The object without the fields that kubectl also leaves out."""
    return {**item, "metadata": {key: value for key, value in item["metadata"].items() if key != "managedFields"}}


def follow(console: Console, cluster: Cluster, subject: Subject, output: str | None) -> None:
    """Show the objects at every change until they are deleted. Raises ClusterError if they cannot be read at the start."""
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
    """Draw in place, once per second, because the remaining time of a pause changes by itself."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            seen = _seen(watched)
            notes = [Text(note, style="yellow") for note in (*_deleted(watched, name), *_problem(watched))]
            live.update(Group(*notes) if seen.nothing else Group(_drawn(seen, console), *notes), refresh=True)
            if seen.nothing:
                return
            time.sleep(DRAW_SECONDS)


def _print_pictures(console: Console, watched: Watched, name: str) -> None:
    """For pipes: print the view at each visible change."""
    before = ""
    for seen in _changes(watched, name):
        with console.capture() as capture:
            console.print(_drawn(seen, console), soft_wrap=True)
        if capture.get() != before:
            before = capture.get()
            click.echo(before)
        time.sleep(DRAW_SECONDS)


def _print_documents(watched: Watched, name: str, output: str) -> None:
    """For programs: print each object whenever it changes, like `kubectl get --watch -o`."""
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
    """The objects, now and after each change, until none is left. Problems are written to stderr, each once."""
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
    """The object of that kind, if that kind is requested and it exists."""
    if plural in subject.kinds:
        with suppress(MissingError):
            return cluster.get(plural, subject.name)
    return None


def _pods(cluster: Cluster, name: str) -> Sequence[Object] | None:
    try:
        return cluster.pods(name)
    except ClusterError:
        return None  # whoever may see a ModelDeployment need not see pods
