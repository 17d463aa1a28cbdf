"""Judge and time candidates beside the original, on the kind of node that will serve them.

Importing this package stays cheap: the worker processes live in it, and what they hold is measured as the candidate's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fettle.api.report import MeasureReport
    from fettle.api.task import MeasureTask
    from fettle.optimizer.measure.schedule import TimingSchedule
    from fettle.store.store import Store


def run(task: MeasureTask, store: Store, schedule: TimingSchedule | None = None) -> MeasureReport:
    """Measure what `task` names; `schedule` says how long, where that is not the usual.

    Raises FettleError only where nothing can be said at all: no items, no baseline, no store.
    """
    from fettle.optimizer.measure.schedule import TimingSchedule  # scipy stays out of the workers
    from fettle.optimizer.measure.stage import measure

    return measure(task, store, schedule or TimingSchedule())
