"""What the demo prints: steps with their times, the table of candidates, the ledger."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.cli.views.progress import candidates_table

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 180)
START = time.monotonic()


def title(text: str) -> None:
    """A step of the demo."""
    console.print(f"\n[bold cyan]{time.monotonic() - START:5.0f} s[/]  [bold]{text}[/]")


def line(text: str) -> None:
    """Something that happened in this step."""
    console.print(f"         {text}", markup=False)


def candidates(found: dict[str, Any]) -> None:
    """The candidates of an OptimizedModel, as `kubectl fettle status` shows them, and why each was or was not chosen."""
    status = OptimizedModelStatus.model_validate(found["status"])
    console.print(candidates_table(status, console.width))
    for row in status.candidates:
        if row.message:
            line(f"{row.name}: {row.message}")


def ledger(found: dict[str, Any]) -> None:
    """What served when, and why it left."""
    table = Table(title=f"ModelDeployment {found['metadata']['name']}: revisions", title_justify="left")
    for column in ("revision", "artifact", "entered", "left", "why it left"):
        table.add_column(column, overflow="fold")
    for row in found["status"].get("revisions", []):
        artifact = row["artifact"].rsplit("/", 1)[-1][:12]
        table.add_row(row["revision"], artifact, row.get("entered", ""), row.get("left", ""), row.get("reason", ""))
    console.print(table)
