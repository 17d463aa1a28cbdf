"""An OptimizedModel in a terminal: the progress of its run, its candidates, and what was published."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fettle.api.conditions import READY, RECONCILING, STALLED, find
from fettle.api.optimizedmodel import OptimizedModel
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.uris import is_remote
from fettle.cli.views.progress import candidates_table, size
from fettle.cli.views.rollout import condition
from fettle.plan.commands import Command, command_line
from fettle.plan.run.retry import failure_of
from fettle.plan.run.status import IN_PROGRESS

STAGES = (Reason.PREPARING, Reason.OPTIMIZING, Reason.MEASURING, Reason.PUBLISHING, Reason.PUBLISHED)
NAMES = ("prepare", "optimize", "measure", "publish")


def model(optimized: OptimizedModel, width: int) -> RenderableType:
    """The whole picture, `width` columns wide."""
    status = optimized.status
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("stages", stages(status))
    for condition_row in status.conditions:
        if condition_row.type in (RECONCILING, STALLED):  # for tools: they repeat Ready's reason
            continue
        table.add_row(condition_row.type, condition(condition_row))
    if (hint := retry_hint(optimized)) is not None:
        table.add_row("failed", hint)
    for baseline in status.baselines:
        table.add_row("original", f"{baseline.target}: {baseline.worth}")
    for artifact in status.artifacts:
        what = f"{artifact.target}: {artifact.candidate} in {artifact.runtime}, {size(artifact.bytes)}"
        where = [artifact.uri, *([artifact.registry_uri] if artifact.registry_uri else [])]
        table.add_row("artifact", "\n".join((what, *where)))
    if status.report is not None:
        command = "" if is_remote(status.report.uri) else f"\nkubectl fettle report {optimized.metadata['name']} --open"
        table.add_row("report", f"{status.report.uri}{command}")
    parts: list[RenderableType] = [
        Text.assemble(("optimizedmodel/", "dim"), (optimized.metadata["name"], "bold")),
        table,
    ]
    if status.candidates:
        parts += ["", candidates_table(status, width)]
    return Group(*parts)


def retry_hint(optimized: OptimizedModel) -> str | None:
    """What failed in a finished run, and the command that retries it; None if nothing did."""
    failure, ready = failure_of(optimized.status), find(optimized.status.conditions, READY)
    if failure is None or ready is None or ready.reason in IN_PROGRESS:
        return None
    metadata = optimized.metadata
    command = command_line(Command.RETRY, metadata.get("namespace", "default"), f"om/{metadata['name']}")
    return f"{failure} (to retry: {command})"


def stages(status: OptimizedModelStatus) -> Text:
    """'✓ prepare  ✓ optimize  ▶ measure  · publish'; a failed run has ✗ at the stage that failed."""
    ready = find(status.conditions, READY)
    reason = ready.reason if ready is not None else Reason.PREPARING
    running = reason in STAGES
    at = STAGES.index(Reason(reason)) if running else _failed_at(status)
    text = Text()
    for index, name in enumerate(NAMES):
        if index < at:
            mark, style = "✓", "green"
        elif index == at:
            mark, style = ("▶", "bold cyan") if running else ("✗", "red")
        else:
            mark, style = "·", "dim"
        text.append(f"{mark} {name}  ", style=style)
    return text


def _failed_at(status: OptimizedModelStatus) -> int:
    """The index of the stage that failed."""
    for index, kinds in enumerate((("SourceResolved", "Converted"), (), ("Measured",))):
        conditions = [known for kind in kinds if (known := find(status.conditions, kind)) is not None]
        if any(condition.status != "True" for condition in conditions):
            return index
    return len(NAMES) - 1
