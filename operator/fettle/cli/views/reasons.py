"""Why each candidate of an OptimizedModel was or was not selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fettle.api.bounds import ORIGINAL, gain, span
from fettle.api.optimizedmodel import OptimizedModel
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.vocabulary import CandidateState, Evidence, Metric
from fettle.cli.views.progress import STYLES

ORDER = (CandidateState.SELECTED, CandidateState.MEASURED, CandidateState.REJECTED, CandidateState.FAILED)

ITEMS: dict[Evidence | None, str] = {
    Evidence.LABELS: "labeled items",
    Evidence.AGREEMENT: "items without labels",
    Evidence.GENERATED: "generated items",
}


@dataclass(frozen=True)
class JudgedCandidate:
    """A candidate with its verdict, and the figures behind it."""

    target: str
    candidate: str
    state: str
    reason: str | None
    message: str | None
    figures: str


def judgements(optimized: OptimizedModel) -> list[JudgedCandidate]:
    """Every candidate, by target: first the selected one, then the others by how close they came."""
    rank = {state: place for place, state in enumerate(ORDER)}
    rows = sorted(
        optimized.status.candidates,
        key=lambda row: (row.target, rank.get(row.state, len(rank)), -(row.speedup.value if row.speedup else 0)),
    )
    return [
        JudgedCandidate(row.target, row.name, row.state.value, row.reason, row.message, _figures(row)) for row in rows
    ]


def _figures(row: CandidateStatus) -> str:
    """'3.98 [3.9, 4.1] times as fast as the original; drop 0.0011 [-0.0042, 0.0073] in Accuracy on 897 labeled items'.

    Empty for the original, which would be compared with itself.
    """
    if row.recipe == ORIGINAL:
        return ""
    parts = []
    if row.speedup is not None:
        parts.append(gain(row))
    if row.exact:
        parts.append(f"exact: the same answers on all {row.samples} items")
    elif row.accuracy_drop is not None and row.accuracy is not None:
        metric = "agreement with the original" if row.accuracy.metric == Metric.AGREEMENT else row.accuracy.metric
        parts.append(f"drop {span(row.accuracy_drop)} in {metric} on {row.samples} {ITEMS.get(row.evidence, 'items')}")
    return "; ".join(parts)


def choices(judged: Sequence[JudgedCandidate]) -> RenderableType:
    """One paragraph per candidate."""
    if not judged:
        return Text("no candidates yet")
    several = len({candidate.target for candidate in judged}) > 1
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for candidate in judged:
        name = f"{candidate.target}/{candidate.candidate}" if several else candidate.candidate
        explanation = ": ".join(part for part in (candidate.reason, candidate.message) if part)
        text = "\n".join(part for part in (explanation, candidate.figures) if part)
        table.add_row(name, candidate.state, text, style=STYLES[CandidateState(candidate.state)])
    return table
