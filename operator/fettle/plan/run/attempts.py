"""The attempts at a run's tasks: which attempt of each shall exist now, and what each has answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from fettle.api.optimizedmodel import TargetSpec
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, MeasureReport, PrepareReport, PublishReport
from fettle.api.task import AnyTask, task_hash
from fettle.api.vocabulary import CandidateState
from fettle.plan.run.planned import Finding
from fettle.plan.run.state import TaskPhase, TaskState, WantedTask

MAX_ATTEMPTS = 3  # of one task by itself; only failures that say they may pass are tried again
BACK_OFF_SECONDS = (10, 80)  # before the second and the third attempt: a store that is full for a minute is outlasted
LATE_LOOK_SECONDS = 60.0  # between looks at what still runs past the deadline: its end is an event, which may be lost

Report = TypeVar("Report", PrepareReport, BuildReport, MeasureReport, PublishReport)


@dataclass(frozen=True)
class View(Generic[Report]):
    """A task as the plan sees it: answered (`report`), failed for good (`fault`), or neither yet.

    `running` says whether it occupies a place now; a task that waits for its next attempt does not. `note` is what its
    Job says while it waits, such as why it cannot be scheduled.
    """

    task_hash: str
    report: Report | None = None
    fault: Finding | None = None
    running: bool = False
    note: Finding | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.report is not None or self.fault is not None


class Attempts:
    """Collects the tasks that a decision wants. One for each decision."""

    def __init__(self, tasks: Mapping[str, TaskState], now: datetime, ends: datetime, retries: int = 0) -> None:
        """`ends` is the run's deadline. `retries`: how often a person had what failed tried again.

        Past the deadline nothing begins. What runs is not stopped: its Job has a deadline of its own, which the cluster's clock
        measures, and an hour that only this clock jumped over is no reason to throw its work away.

        Each of them has attempts of its own: those of the n-th begin at n * MAX_ATTEMPTS, so an attempt's number says what
        it was ordered by, and the same decision after a restart names the same Jobs.
        """
        self._tasks = tasks
        self._now = now
        self._first = retries * MAX_ATTEMPTS
        self.late = now >= ends
        self._seconds_left = max(int((ends - now).total_seconds()), 1)
        self._wanted: list[WantedTask] = []
        self._wake = LATE_LOOK_SECONDS if self.late else float(self._seconds_left)

    @property
    def wanted(self) -> tuple[WantedTask, ...]:
        """What was asked for, in that order."""
        return tuple(self._wanted)

    @property
    def wake_seconds(self) -> float:
        """When to look again although nothing changed: the next attempt, or the deadline."""
        return self._wake

    @property
    def works(self) -> bool:
        """Whether anything that was asked for runs, and does not only wait for something outside, such as a node."""
        states = (self._tasks.get(one.task_hash) for one in self._wanted)
        return any(state is not None and state.phase == TaskPhase.RUNNING and not _waits(state) for state in states)

    def knows(self, task: AnyTask) -> bool:
        """Whether the attempt at it that shall exist now was made."""
        state = self._tasks.get(task_hash(task))
        return state is not None and self._attempt(state) == state.attempt

    def want(
        self, task: AnyTask, answer: type[Report], *, stage: str, label: str, target: TargetSpec | None = None
    ) -> View[Report]:
        """Ask that `task` be running or done."""
        name = task_hash(task)
        state = self._tasks.get(name)
        attempt = self._attempt(state)
        if self.late and (state is None or attempt > state.attempt or _waits(state)):
            return View(name, note=_fault(state) if state is not None else None)
        self._wanted.append(WantedTask(task, name, attempt, stage, label, self._seconds_left, target))
        if state is None or attempt > state.attempt:
            return View(name, running=True)
        if state.phase == TaskPhase.RUNNING:
            return View(name, running=True, note=_fault(state) if _waits(state) else None)
        if state.phase == TaskPhase.SUCCEEDED and isinstance(state.report, answer):
            return View(name, report=state.report)
        fault = _fault(state)
        return View(name, note=fault) if _may_pass(state) else View(name, fault=fault)

    def _attempt(self, state: TaskState | None) -> int:
        """The attempt that shall exist: the next one as soon as a failure that may pass has waited long enough, or at once
        where a retry was ordered after it began."""
        if state is None or (state.attempt < self._first and _worth_another(state)):
            return self._first
        if not _may_pass(state):
            return state.attempt
        back_off = BACK_OFF_SECONDS[min(_own_attempts(state) - 1, len(BACK_OFF_SECONDS) - 1)]
        passed = (self._now - state.finished_at).total_seconds() if state.finished_at is not None else back_off
        if passed >= back_off or passed < -back_off:  # an end that lies so far ahead: the clock was set back since
            return state.attempt + 1
        self._wake = min(self._wake, back_off - passed)
        return state.attempt


def retries_of(tasks: Mapping[str, TaskState]) -> int:
    """How many retries these attempts tell of."""
    return max((state.attempt // MAX_ATTEMPTS for state in tasks.values()), default=0)


def _own_attempts(state: TaskState) -> int:
    """Attempts made since the run began or was last tried again by order."""
    return state.attempt % MAX_ATTEMPTS + 1


def _worth_another(state: TaskState) -> bool:
    """Whether an ordered retry repeats it: it failed, its answer is none, or a candidate failed while it was measured."""
    if state.phase != TaskPhase.SUCCEEDED:
        return state.phase == TaskPhase.FAILED
    if isinstance(state.report, MeasureReport):
        return any(row.state == CandidateState.FAILED for row in state.report.candidates)
    return state.report is None


def _waits(state: TaskState) -> bool:
    """Whether it exists or is wanted, and waits for something outside: a node, a quota, a claim, an image."""
    return state.phase == TaskPhase.RUNNING and state.reason is not None


def _lost_answer(state: TaskState) -> bool:
    """Done, but its answer is gone with its log: run again, it answers from the store."""
    return state.phase == TaskPhase.SUCCEEDED and state.report is None


def _may_pass(state: TaskState) -> bool:
    failed = state.phase == TaskPhase.FAILED and state.retryable
    return (failed or _lost_answer(state)) and _own_attempts(state) < MAX_ATTEMPTS


def _fault(state: TaskState) -> Finding:
    if state.phase == TaskPhase.SUCCEEDED:
        what = "nothing" if state.report is None else type(state.report).__name__
        return Finding(Reason.JOB_FAILED, f"succeeded, but answered {what}")
    message = state.message or "failed without a message"
    if state.retryable and _own_attempts(state) > 1:
        message += f" ({_own_attempts(state)} attempts)"
    return Finding(state.reason or Reason.JOB_FAILED, message)
