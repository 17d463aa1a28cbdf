"""Judge and time candidates beside the original, on the kind of node that will serve them.

Importing this package stays cheap: the worker processes live in it, and what they hold is measured as the candidate's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fettle.api.report import MeasureReport
    from fettle.api.task import MeasureTask
    from fettle.store.store import Store


def run(task: MeasureTask, store: Store) -> MeasureReport:
    """Measure what `task` names. Raises FettleError only where nothing can be said at all: no items, no baseline, no store."""
    from fettle.optimizer.measure.stage import measure  # scipy stays out of the workers

    return measure(task, store)
