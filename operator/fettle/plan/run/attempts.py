"""The attempts at a run's tasks: which attempt of each task should exist now, and the results so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from fettle.api.optimizedmodel import TargetSpec
from fettle.api.progress import TrainingStatus
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, MeasureReport, PrepareReport, PublishReport
from fettle.api.task import AnyTask, task_hash
from fettle.api.vocabulary import CandidateState
from fettle.plan.run.planned import Finding
from fettle.plan.run.state import TaskPhase, TaskRequest, TaskState

MAX_ATTEMPTS = 3  # at one task without a command; only failures that may be temporary are retried
BACK_OFF_SECONDS = (
    10,
    80,
)  # before the second and the third attempt: long enough for a store that is full for a minute
# The reasons of a task that no longer finds in the store what an earlier task left there.
LOST = frozenset({Reason.ARTIFACT_NOT_FOUND, Reason.ARTIFACT_TAMPERED, Reason.STORE_NOT_FOUND})
LATE_LOOK_SECONDS = 60.0  # between looks at tasks that still run past the deadline: the event of their end may be lost

ReportT = TypeVar("ReportT", PrepareReport, BuildReport, MeasureReport, PublishReport)


@dataclass(frozen=True)
class TaskProgress(Generic[ReportT]):
    """A task that a stage requested: it has a result (`report`), it failed permanently (`fault`), or neither yet.

    `request` is the attempt that shall exist, None where nothing begins any more. `running` says whether it occupies a
    place now; a task that waits `retry_seconds` for its next attempt does not. `note` is what its Job says while it waits,
    such as why it cannot be scheduled. `training`: how far one that trains has come.
    """

    task_hash: str
    request: TaskRequest | None = None
    report: ReportT | None = None
    fault: Finding | None = None
    running: bool = False
    note: Finding | None = None
    retry_seconds: float | None = None
    training: TrainingStatus | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.report is not None or self.fault is not None


AnyTaskProgress = (
    TaskProgress[PrepareReport] | TaskProgress[BuildReport] | TaskProgress[MeasureReport] | TaskProgress[PublishReport]
)


@dataclass(frozen=True)
class Attempts:
    """The attempts made so far, and the times that determine which of them should exist at `now`.

    `ends` is the run's deadline. Nothing starts after it. Running tasks are not stopped: their Jobs have deadlines of their own, which
    the cluster's clock measures, and if only this clock jumped by an hour, their work should not be lost.

    `retries`: how often a person requested a retry. Each retry has attempts of its own: those of the n-th start at n * MAX_ATTEMPTS.
    So the number of an attempt tells which retry it belongs to, and the same decision after a restart names the same Jobs.
    """

    tasks: Mapping[str, TaskState]
    now: datetime
    ends: datetime
    retries: int = 0

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.now >= self.ends

    def ask(
        self, task: AnyTask, answer: type[ReportT], *, stage: str, label: str, target: TargetSpec | None = None
    ) -> TaskProgress[ReportT]:
        """Request that `task` is running or done, and return how far it is."""
        name = task_hash(task)
        state = self.tasks.get(name)
        attempt = self._attempt(state)
        if self.late and (state is None or attempt > state.attempt or _waits(state)):
            return TaskProgress(name, note=_fault(state) if state is not None and not _answered(state) else None)
        request = TaskRequest(task, name, attempt, stage, label, self._seconds_left, target, self.ends)
        if state is None or attempt > state.attempt:
            return TaskProgress(name, request, running=True)
        if state.phase == TaskPhase.RUNNING:
            note = _fault(state) if _waits(state) else None
            return TaskProgress(name, request, running=True, note=note, training=state.training)
        if state.phase == TaskPhase.SUCCEEDED and isinstance(state.report, answer):
            return TaskProgress(name, request, report=state.report)
        if _may_pass(state):
            return TaskProgress(name, request, note=_fault(state), retry_seconds=self._back_off_left(state))
        return TaskProgress(name, request, fault=_fault(state))

    def made(self, task: AnyTask) -> bool:
        """Whether the attempt at `task` that should exist now exists."""
        state = self.tasks.get(task_hash(task))
        return state is not None and self._attempt(state) == state.attempt

    def answered(self, task: AnyTask) -> bool:
        """Whether an attempt at `task` has a result."""
        state = self.tasks.get(task_hash(task))
        return state is not None and _answered(state)

    def works(self, requests: Iterable[TaskRequest]) -> bool:
        """Whether any requested task runs, as opposed to waiting for something external, such as a node."""
        states = (self.tasks.get(request.task_hash) for request in requests)
        return any(state is not None and state.phase == TaskPhase.RUNNING and not _waits(state) for state in states)

    def wake_seconds(self, tasks: Iterable[AnyTaskProgress]) -> float:
        """Seconds until the next decision if nothing changes: until the next attempt, or the deadline."""
        retries = (task.retry_seconds for task in tasks if task.retry_seconds is not None)
        return min((LATE_LOOK_SECONDS if self.late else float(self._seconds_left), *retries))

    @property
    def _seconds_left(self) -> int:
        return max(int((self.ends - self.now).total_seconds()), 1)

    def _attempt(self, state: TaskState | None) -> int:
        """The number of the attempt that should exist: the next one after the back-off of a temporary failure, or at once if a retry was
        requested since then, or if something lost has to be made again."""
        first = self.retries * MAX_ATTEMPTS
        if state is None or (state.attempt < first and _worth_another(state)):
            return first
        again = None if self.late else self._again(state)
        if again is not None and again < first + MAX_ATTEMPTS:
            return max(again, first)
        return state.attempt + 1 if _may_pass(state) and self._back_off_left(state) is None else state.attempt

    def _again(self, state: TaskState) -> int | None:
        """The attempt with which a task helps to make again what the store lost; None if it need not.

        If a task found a loss, all tasks that had results before it run again, and take their result from the store if everything that
        they wrote is still there. They run in their order, so that the task that found the loss runs after them.
        """
        if found_loss(state):
            made = any(
                _answered(other) and other.attempt > state.attempt and _is_later(other, state)
                for other in self.tasks.values()
            )
            return state.attempt + 1 if made else None
        if not _answered(state):
            return None
        losses = [other.attempt for other in self.tasks.values() if found_loss(other) and not _is_later(state, other)]
        return max(state.attempt, *losses) + 1 if losses else None

    def _back_off_left(self, state: TaskState) -> float | None:
        """Seconds until a temporary failure is retried; None if the back-off is over."""
        back_off = BACK_OFF_SECONDS[min(_own_attempts(state) - 1, len(BACK_OFF_SECONDS) - 1)]
        passed = (self.now - state.finished_at).total_seconds() if state.finished_at is not None else back_off
        # An end that lies so far ahead: the clock was set back since.
        return None if passed >= back_off or passed < -back_off else back_off - passed


def requests_of(tasks: Sequence[AnyTaskProgress]) -> tuple[TaskRequest, ...]:
    """The tasks that should exist, in the order of their requests."""
    return tuple(task.request for task in tasks if task.request is not None)


def notes_of(tasks: Iterable[AnyTaskProgress]) -> list[Finding]:
    """What the tasks are waiting for."""
    return [task.note for task in tasks if task.note is not None]


def retries_of(tasks: Mapping[str, TaskState]) -> int:
    """The number of retries that these attempts belong to."""
    return max((state.attempt // MAX_ATTEMPTS for state in tasks.values()), default=0)


def _own_attempts(state: TaskState) -> int:
    """The number of attempts since the run began or was last retried by a command."""
    return state.attempt % MAX_ATTEMPTS + 1


def _worth_another(state: TaskState) -> bool:
    """Whether a requested retry repeats the task: it failed, it has no result, a candidate failed while it was measured, or it verified
    artifacts that may have been damaged since."""
    if state.phase != TaskPhase.SUCCEEDED:
        return state.phase == TaskPhase.FAILED
    if isinstance(state.report, MeasureReport):
        return any(row.state == CandidateState.FAILED for row in state.report.candidates)
    return state.report is None or isinstance(state.report, PublishReport)


def _answered(state: TaskState) -> bool:
    return state.phase == TaskPhase.SUCCEEDED and state.report is not None


def found_loss(state: TaskState) -> bool:
    """Whether the task failed because the store no longer has what an earlier task left there."""
    return state.phase == TaskPhase.FAILED and state.reason in LOST


def _is_later(state: TaskState, than: TaskState) -> bool:
    """Whether an attempt ended after another one. If an end is unknown, or both are in the same second, the attempt numbers decide."""
    if state.finished_at is None or than.finished_at is None or state.finished_at == than.finished_at:
        return state.attempt > than.attempt
    return state.finished_at > than.finished_at


def _waits(state: TaskState) -> bool:
    """Whether the task exists or is requested, and waits for something external: a node, a quota, a claim, an image."""
    return state.phase == TaskPhase.RUNNING and state.reason is not None


def _lost_answer(state: TaskState) -> bool:
    """Whether the task is done, but its result was lost with its log. If it runs again, it takes the result from the store."""
    return state.phase == TaskPhase.SUCCEEDED and state.report is None


def _may_pass(state: TaskState) -> bool:
    failed = state.phase == TaskPhase.FAILED and state.retryable
    return (failed or _lost_answer(state)) and _own_attempts(state) < MAX_ATTEMPTS


def _fault(state: TaskState) -> Finding:
    if state.phase == TaskPhase.SUCCEEDED:
        received = "its result is missing" if state.report is None else f"its result is a {type(state.report).__name__}"
        return Finding(Reason.JOB_FAILED, f"the Job succeeded, but {received}")
    message = state.message or "failed without a message"
    if state.retryable and _own_attempts(state) > 1:
        message += f" ({_own_attempts(state)} attempts)"
    return Finding(state.reason or Reason.JOB_FAILED, message)
