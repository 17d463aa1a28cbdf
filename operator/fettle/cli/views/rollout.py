"""A ModelDeployment in a terminal: its steps and the current one, the weights, each revision's pods, and the analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fettle.api.base import REVISION_LABEL
from fettle.api.conditions import DEGRADED, PAUSED, PROGRESSING, READY, Condition, ConditionStatus, find
from fettle.api.modeldeployment import ModelDeployment, RolloutStep
from fettle.api.modeldeployment_status import (
    AnalysisStatus,
    CanaryStatus,
    ModelDeploymentStatus,
    RevisionRecord,
    RevisionStatus,
    Verdict,
)
from fettle.api.text import counted
from fettle.cli.access.cluster import Object
from fettle.cli.views.sparkline import bar, sparkline
from fettle.cluster.kinds import holds
from fettle.plan import timestamps
from fettle.plan.commands import Command, command_line
from fettle.plan.rollout.analysis import SINCE

VERDICTS = {Verdict.GOOD: "green", Verdict.BAD: "red", Verdict.INCONCLUSIVE: "yellow", Verdict.PENDING: "dim"}
WANTED = {READY: True, DEGRADED: False}  # conditions that are good or bad news; others are merely said
SERVES, STARTING, LEAVING = "●", "○", "◌"
HISTORY = 4  # last lines of the ledger that a screen shows; the stable revision's is always shown


def rollout(deployment: ModelDeployment, pods: Sequence[Object] | None, now: datetime) -> RenderableType:
    """The whole view. `pods` is None if the user may not list them."""
    status = deployment.status
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for kind in (READY, PROGRESSING, DEGRADED, PAUSED):
        condition_row = find(status.conditions, kind)
        if condition_row is not None:
            table.add_row(kind, condition(condition_row))
    if status.address is not None:
        table.add_row("url", status.address.url)
    if (ref := deployment.spec.model.ref) is not None:
        table.add_row("model", f"follows optimizedmodel/{ref.name} ({ref.target})")
    for label, revision in (("stable", status.stable), ("canary", status.canary)):
        if revision is not None:
            table.add_row(label, _revision(revision, pods))
    if status.canary is not None:
        _trial(table, deployment, status.canary, now)
    _orders(table, deployment)
    for number, record in enumerate(_history(status)):
        entered = f"{record.revision}  entered {record.entered or 'never'}  {_left_or_role(record, status)}"
        table.add_row("ledger" if not number else "", entered)
    name = deployment.metadata["name"]
    return Group(Text.assemble(("modeldeployment/", "dim"), (name, "bold")), table)


def _history(status: ModelDeploymentStatus) -> list[RevisionRecord]:
    """The last lines of the ledger, newest first, with that of the stable revision."""
    older, last = status.revisions[:-HISTORY], status.revisions[-HISTORY:]
    return [*reversed(last), *(record for record in reversed(older) if not record.left)]


def _left_or_role(record: RevisionRecord, status: ModelDeploymentStatus) -> str:
    if record.left:
        return f"left {record.left}, {record.reason}"
    return "canary" if status.canary is not None and status.canary.revision == record.revision else "serves"


def condition(observed: Condition) -> Text:
    """'True     Serving: 3 pods ready'."""
    good = WANTED.get(observed.type)
    true = observed.status is ConditionStatus.TRUE
    style = "" if good is None or observed.status is ConditionStatus.UNKNOWN else ("green" if true is good else "red")
    return Text.assemble(
        (f"{observed.status:<8} ", style), observed.reason, f": {observed.message}" if observed.message else ""
    )


def _revision(revision: RevisionStatus, pods: Sequence[Object] | None) -> Text:
    text = Text(f"{revision.revision}  ")
    own = [pod for pod in pods or () if _labels(pod).get(REVISION_LABEL) == revision.revision]
    if own:
        text.append("".join(sorted(map(_glyph, own), key=(SERVES + STARTING + LEAVING).index)) + " ", style="cyan")
    text.append(f"{revision.ready}/{revision.replicas} ready")
    return text


def _glyph(pod: Object) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return LEAVING
    return SERVES if holds(pod, "Ready") else STARTING


def _labels(pod: Object) -> Mapping[str, str]:
    return pod["metadata"].get("labels") or {}


def _trial(table: Table, deployment: ModelDeployment, canary: CanaryStatus, now: datetime) -> None:
    filled, empty = bar(canary.actual_weight)
    share = f" {canary.actual_weight} % of the ready pods, step reached: {canary.weight} %"
    table.add_row("weight", Text.assemble((filled, "cyan"), (empty, "dim"), share))
    table.add_row("steps", steps(deployment.spec.rollout.steps, canary, now))
    if canary.analysis is not None:
        for label, text in analysis(canary.analysis):
            table.add_row(label, text)


def steps(planned: Sequence[RolloutStep], canary: CanaryStatus, now: datetime) -> Text:
    """'✓ 10 %  ✓ 60 s  ▶ 50 %  · until promote  · 100 %'."""
    text = Text()
    for index, step in enumerate(planned or (RolloutStep(weight=100),)):
        here = index == canary.step
        mark, style = ("✓", "green") if index < canary.step else ("▶", "bold cyan") if here else ("·", "dim")
        text.append(f"{mark} {_step(step)}{_left(step, canary, now) if here else ''}  ", style=style)
    if canary.step >= max(len(planned), 1):
        text.append("▶ promotion", style="bold cyan")
    return text


def _step(step: RolloutStep) -> str:
    if step.pause is None:
        return f"{step.weight} %"
    return f"{step.pause.seconds} s" if step.pause.seconds is not None else "until promote"


def _left(step: RolloutStep, canary: CanaryStatus, now: datetime) -> str:
    began = timestamps.read(canary.step_started_at)
    if step.pause is None or step.pause.seconds is None or began is None:
        return ""
    left = (began + timedelta(seconds=step.pause.seconds) - now).total_seconds()
    return f" ({left:.0f} s left)" if left > 0 else ""


def analysis(watched: AnalysisStatus) -> Iterable[tuple[str, Text]]:
    """The open window, and each metric over the judged windows."""
    counts = f"{counted(watched.requests, 'request')}, {watched.failures} failed{_period(watched)}"
    explanation = f": {watched.message}" if watched.message else ""
    yield "analysis", Text.assemble((watched.verdict.value, VERDICTS[watched.verdict]), f" ({counts}){explanation}")
    names = list(dict.fromkeys(assessment.metric for window in watched.windows for assessment in window.metrics))
    width = max(map(len, names), default=0)
    for number, name in enumerate(names):
        assessments = [
            next((assessment for assessment in window.metrics if assessment.metric == name), None)
            for window in watched.windows
        ]
        last = next(assessment for assessment in reversed(assessments) if assessment is not None)
        line = sparkline([assessment.value if assessment else None for assessment in assessments], last.bound)
        text = Text(f"{name:<{width}}  ")
        for letter, assessment in zip(line, assessments, strict=True):
            text.append(letter, style=VERDICTS[assessment.verdict] if assessment else "dim")
        value = "unknown" if last.value is None else f"{last.value:g}"
        text.append(f"  {value}, bound {last.bound:g}, {last.samples} samples")
        yield "windows" if not number else "", text


def _period(watched: AnalysisStatus) -> str:
    """The window that the counts are of: the open one, or the one that was judged when the open one began."""
    judged = watched.verdict in (Verdict.GOOD, Verdict.BAD) and not (watched.message or "").startswith(SINCE)
    return f", in the window {'until' if judged else 'since'} {watched.window_start}" if watched.window_start else ""


def _orders(table: Table, deployment: ModelDeployment) -> None:
    status, metadata = deployment.status, deployment.metadata
    if status.rollback is not None:
        text = f"from {status.rollback.desired} to {status.rollback.target}, until the spec asks for another revision"
        table.add_row("rollback", text)
    if status.failed_revision is not None:
        command = command_line(Command.RETRY, metadata.get("namespace", "default"), metadata["name"])
        table.add_row("failed", f"{status.failed_revision} (to retry: {command})")
    if status.last_command is not None:
        table.add_row("command", f"{status.last_command.name} {status.last_command.value}")
