"""A run that stops early: when its model is prepared, or when everything is built."""

from __future__ import annotations

from dataclasses import dataclass

from fettle.api.report import PrepareReport
from fettle.api.task import MeasureTask
from fettle.cli.local.run import Runner
from fettle.plan.run.state import TaskRequest, TaskState


class Prepared(Exception):
    """The model is prepared."""

    def __init__(self, report: PrepareReport) -> None:
        super().__init__("prepared")
        self.report = report


class Built(Exception):
    """Everything that the run builds has been built; `task` lists it."""

    def __init__(self, task: MeasureTask) -> None:
        super().__init__("built")
        self.task = task


@dataclass(frozen=True)
class UntilPrepared:
    """Runs the prepare task only."""

    runner: Runner

    async def run(self, request: TaskRequest) -> TaskState:
        """The outcome of a task that failed. Raises Prepared."""
        state = await self.runner.run(request)
        if isinstance(state.report, PrepareReport):
            raise Prepared(state.report)
        return state


@dataclass(frozen=True)
class UntilBuilt:
    """Runs tasks until the first measure task."""

    runner: Runner

    async def run(self, request: TaskRequest) -> TaskState:
        """The task's outcome. Raises Built."""
        if isinstance(request.task, MeasureTask):
            raise Built(request.task)
        return await self.runner.run(request)
