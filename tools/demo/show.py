"""What the demo prints: steps with their times, the table of candidates, the ledger."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from fettle.cli.views.progress import size

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 180)
START = time.monotonic()


def title(text: str) -> None:
    """A step of the demo."""
    console.print(f"\n[bold cyan]{time.monotonic() - START:5.0f} s[/]  [bold]{text}[/]")


def line(text: str) -> None:
    """Something that happened in this step."""
    console.print(f"         {text}", markup=False)


def _interval(value: dict[str, Any] | None, digits: int) -> str:
    if not value:
        return "-"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _p50(row: dict[str, Any]) -> str:
    measurements = row.get("measurements") or []
    p50 = measurements[0]["latencyMilliseconds"].get("p50") if measurements else None
    return f"{p50:.2f}" if p50 is not None else "-"


def candidates(found: dict[str, Any]) -> None:
    """The table of candidates of an OptimizedModel."""
    status = found["status"]
    table = Table(title=f"OptimizedModel {found['metadata']['name']}: candidates", title_justify="left")
    for column in ("candidate", "runtime", "p50 ms", "speed-up [95 %]", "accuracy drop [interval]", "size", "state"):
        table.add_column(column, overflow="fold")
    named = {(row["target"], row["name"]) for row in status.get("candidates", [])}
    for baseline in status.get("baselines", []):
        if (baseline["target"], "original") not in named:
            row = (baseline["runtime"], _p50(baseline), "1", "none", size(baseline["bytes"]), "not a candidate")
            table.add_row("original", *row)
    for row in status.get("candidates", []):
        state = row["state"] + (f": {row['reason']}" if row.get("reason") else "")
        total = size(row["bytes"]) if row.get("bytes") else "-"
        drop = "none" if row.get("exact") else _interval(row.get("accuracyDrop"), 4)
        style = "bold green" if row["state"] == "Selected" else None
        table.add_row(
            row["name"], row["runtime"], _p50(row), _interval(row.get("speedup"), 2), drop, total, state, style=style
        )
    console.print(table)
    for row in status.get("candidates", []):
        if row.get("message"):
            line(f"{row['name']}: {row['message']}")


def ledger(found: dict[str, Any]) -> None:
    """What served when, and why it left."""
    table = Table(title=f"ModelDeployment {found['metadata']['name']}: revisions", title_justify="left")
    for column in ("revision", "artifact", "entered", "left", "why it left"):
        table.add_column(column, overflow="fold")
    for row in found["status"].get("revisions", []):
        artifact = row["artifact"].rsplit("/", 1)[-1][:12]
        table.add_row(row["revision"], artifact, row.get("entered", ""), row.get("left", ""), row.get("reason", ""))
    console.print(table)
