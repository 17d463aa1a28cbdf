"""`why`: the decisions that led to the current state. For a ModelDeployment, they are from its ledger, status and Events; for an
OptimizedModel, they tell why each candidate was or was not chosen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fettle.api.base import REVISION_LABEL
from fettle.api.conditions import DEGRADED, PROGRESSING, READY, find
from fettle.api.modeldeployment import ModelDeployment
from fettle.api.modeldeployment_status import AnalysisStatus, AnalysisWindow, MetricRecord, Verdict
from fettle.api.optimizedmodel import OptimizedModel
from fettle.api.reasons import Reason
from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, Cluster, Object
from fettle.cli.access.completion import names
from fettle.cli.access.objects import deployment_of, echo, model_of, output_option
from fettle.cli.access.options import with_cluster
from fettle.cli.access.subject import Subject, SubjectType
from fettle.cli.commands.history import RevisionLine, lines_of, read_ledger
from fettle.cli.commands.status import absent
from fettle.cli.views.model import retry_hint
from fettle.cli.views.progress import result_console, show_result
from fettle.cli.views.reasons import JudgedCandidate, choices, judgements
from fettle.cluster import ledger
from fettle.errors import ClusterError, MissingError
from fettle.plan import timestamps
from fettle.plan.rollout.analysis import SINCE

Found = TypeVar("Found", ModelDeployment, OptimizedModel)
STYLES = {"Good": "green", "Bad": "red", "Warning": "yellow", "Inconclusive": "yellow"}
# Events that only repeat a line of the ledger.
FROM_LEDGER = re.compile(r"revision \S+ (\(artifact \S+\) is (deployed|the new canary)|was removed)\b")


@dataclass(frozen=True)
class Decision:
    """One decision. `at` is in RFC 3339; `verdict` and `metrics` are those of an analysis window."""

    at: str
    revision: str | None
    reason: str
    message: str
    verdict: str | None = None
    metrics: tuple[dict[str, Any], ...] = ()


@click.command()
@click.argument("subject", metavar="[mdep/|om/]NAME", type=SubjectType(), shell_complete=names)
@click.option("--all", "everything", is_flag=True, help="Include every revision in the ledger, not only the last one.")
@output_option()
@with_cluster
def why(cluster: Cluster, subject: Subject, everything: bool, output: str | None) -> None:
    """Explain the decisions that led to the current state, with metrics, values, bounds and sample counts.

    For a ModelDeployment, this is the history of the last rollout. For an OptimizedModel, it is why each candidate was or was not
    chosen.

    \b
    kubectl fettle why digits
    kubectl fettle why digits --all
    kubectl fettle why digits -o json
    """
    told: dict[str, Any] = {}
    parts: list[RenderableType] = []
    name = subject.name
    if (deployment := _found(deployment_of, cluster, subject, DEPLOYMENTS)) is not None:
        decisions = decisions_of(cluster, deployment, everything=everything)
        told["modeldeployment"] = {"summary": summary(deployment), "decisions": [asdict(row) for row in decisions]}
        parts += [Text(f"modeldeployment/{name}: {summary(deployment)}", style="bold"), chain(decisions)]
        parts += _other_model(name, deployment)
    if (model := _found(model_of, cluster, subject, MODELS)) is not None:
        judged = judgements(model)
        told["optimizedmodel"] = {"summary": outcome(model), "candidates": [asdict(row) for row in judged]}
        parts += ["", *_choices(name, model, judged)] if parts else _choices(name, model, judged)
    if not told:
        raise absent(cluster, subject)
    if output is not None:
        echo(told, output)
        return
    show_result(result_console(), Group(*parts))


def _found(read: Callable[[Cluster, str], Found], cluster: Cluster, subject: Subject, kind: str) -> Found | None:
    """The object of that kind, if that kind is requested and it exists."""
    if kind in subject.kinds:
        with suppress(MissingError):
            return read(cluster, subject.name)
    return None


def _other_model(name: str, deployment: ModelDeployment) -> list[RenderableType]:
    """A remark if it follows an OptimizedModel of another name than its own, which a bare name does not show."""
    ref = deployment.spec.model.ref
    if ref is None or ref.name == name:
        return []
    text = f"modeldeployment/{name} follows optimizedmodel/{ref.name}: kubectl fettle why om/{ref.name} explains that model"
    return ["", Text(text)]


def _choices(name: str, model: OptimizedModel, judged: Sequence[JudgedCandidate]) -> list[RenderableType]:
    parts = [Text(f"optimizedmodel/{name}: {outcome(model)}", style="bold"), choices(judged)]
    hint = retry_hint(model)
    return parts if hint is None else [*parts, Text(f"failed: {hint}")]


def summary(deployment: ModelDeployment) -> str:
    """The state of a ModelDeployment in one sentence."""
    status = deployment.status
    said = {kind: find(status.conditions, kind) for kind in (DEGRADED, PROGRESSING, READY)}
    degraded, progressing, ready = said[DEGRADED], said[PROGRESSING], said[READY]
    stable = f"revision {status.stable.revision} is serving" if status.stable is not None else "no revision is serving"
    if degraded is not None and degraded.status == "True":
        return f"{stable}; {degraded.reason}: {degraded.message}"
    if progressing is not None and (progressing.status == "True" or progressing.reason != Reason.SERVING):
        return f"{stable}; {progressing.reason}: {progressing.message}"
    return f"{stable}; {ready.message}" if ready is not None and ready.status != "True" else stable


def outcome(model: OptimizedModel) -> str:
    """The state of an OptimizedModel in one sentence."""
    ready = find(model.status.conditions, READY)
    return f"{ready.reason}: {ready.message}" if ready is not None else "the operator has not processed it yet"


def decisions_of(cluster: Cluster, deployment: ModelDeployment, *, everything: bool) -> list[Decision]:
    """The decisions, oldest first, about the last revision that was tried, or about all revisions in the ledger."""
    revisions = read_ledger(cluster, deployment.metadata["name"])
    lines = lines_of(deployment, revisions)
    shown = lines if everything else lines[-1:]
    since = min((line.created for line in shown), default="")
    decisions = [decision for line in lines for decision in _of_line(line) if decision.at >= since]
    judged = {entry["metadata"]["labels"].get(REVISION_LABEL): ledger.windows_of(entry) for entry in revisions or ()}
    canary = deployment.status.canary
    if canary is not None and canary.analysis is not None:
        judged[canary.revision] = canary.analysis.windows
        decisions += _of_open_window(canary.revision, canary.analysis)
    for revision, windows in judged.items():
        decisions += [_of_window(revision, window) for window in windows if window.end >= since]
    with suppress(ClusterError):  # Events are a help, and not everybody may read them
        decisions += [
            event for event in _of_events(cluster.events(deployment.metadata.get("uid", ""))) if event.at >= since
        ]
    return sorted(decisions, key=lambda decision: decision.at)


def _of_line(line: RevisionLine) -> Iterable[Decision]:
    yield Decision(line.created, line.revision, "Created", f"revision {line.revision} was created for {line.artifact}")
    if line.entered is not None:
        yield Decision(line.entered, line.revision, "Entered", f"revision {line.revision} got its first traffic")
    if line.left is not None:
        text = f"revision {line.revision} was removed" + (f": {line.message}" if line.message else "")
        yield Decision(line.left, line.revision, line.reason or "", text)


def _of_window(revision: str, window: AnalysisWindow) -> Decision:
    said = "; ".join(map(_measured, window.metrics)) or f"{window.requests} requests, {window.failures} failed"
    text = f"window at weight {window.weight}: {said}"
    metrics = tuple(metric.to_json() for metric in window.metrics)
    return Decision(window.end, revision, "Analysis", text, window.verdict.value, metrics)


def _of_open_window(revision: str, analysis: AnalysisStatus) -> Iterable[Decision]:
    """What the open window is waiting for."""
    text = analysis.message or ""
    if analysis.verdict not in (Verdict.GOOD, Verdict.BAD) or text.startswith(SINCE):
        text = text.removeprefix(SINCE) or f"{analysis.requests} requests"
        verdict = Verdict.PENDING if analysis.verdict in (Verdict.GOOD, Verdict.BAD) else analysis.verdict
        yield Decision(analysis.window_start, revision, "Analysis", f"open window: {text}", verdict.value)


def _measured(record: MetricRecord) -> str:
    """A metric of a window with its bound. The verdict tells on which side of the bound the value must be."""
    samples = f"({record.samples} samples)"
    if record.verdict not in (Verdict.GOOD, Verdict.BAD):
        so_far = f" so far {record.value:g}," if record.value is not None else ""
        return f"{record.metric} {record.verdict.lower()}:{so_far} bound {record.bound:g} {samples}"
    if record.value is None:
        return f"{record.metric} unknown, bound {record.bound:g} {samples}"
    above = record.value > record.bound
    sign = (">=" if above else "<=") if record.verdict is Verdict.GOOD else (">" if above else "<")
    return f"{record.metric} {record.value:g} {sign} {record.bound:g} {samples}"


def _of_events(events: Iterable[Object]) -> Iterable[Decision]:
    for event in events:
        message = event.get("message") or ""
        if FROM_LEDGER.match(message):
            continue
        at = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
        verdict = "Warning" if event.get("type") == "Warning" else None
        # The API writes moments in more ways than one; written alike they sort.
        moment = timestamps.read(at)
        yield Decision(timestamps.write(moment) if moment else "", None, event.get("reason") or "", message, verdict)


def chain(decisions: Sequence[Decision]) -> RenderableType:
    """A table with one line per decision."""
    if not decisions:
        return Text("no decisions yet")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for decision in decisions:
        judged = decision.verdict if decision.verdict in {*Verdict} else ""
        reason = f"{decision.reason} {judged}".rstrip()
        table.add_row(decision.at, Text(reason, style=STYLES.get(decision.verdict or "", "")), Text(decision.message))
    return table
