"""Jobs, and Services of Jobs, that could not be created: why, and when to try again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.errors import ClusterError
from fettle.plan.run.state import TaskPhase, TaskRequest, TaskState

RETRY_SECONDS = 10.0
KEPT = 4096


@dataclass(frozen=True)
class Refusal:
    """One refused attempt. `begun`: its Job is there, and lacks something else."""

    state: TaskState
    again_at: datetime
    begun: bool = False

    def holds(self, known: TaskState | None) -> bool:
        """Whether it says more than what is known from Jobs."""
        if known is None or known.attempt < self.state.attempt:
            return True
        return self.begun and known.attempt == self.state.attempt and known.phase == TaskPhase.RUNNING

    def seconds_left(self, now: datetime) -> float:
        """Until it may be tried again; 0 where that lies further ahead than it ever did: the clock was set back."""
        seconds = (self.again_at - now).total_seconds()
        return seconds if 0 < seconds <= RETRY_SECONDS else 0.0


class Refusals:
    """Kept in memory only: after a restart the same Job is refused again, or is not."""

    def __init__(self) -> None:
        self._refused: dict[tuple[str, str], Refusal] = {}  # owner's UID, task hash

    def note(self, uid: str, request: TaskRequest, error: ClusterError, now: datetime, *, begun: bool = False) -> None:
        """Remember a refusal: the task waits for a quota, a right, a claim; or has failed, where the Job itself is invalid."""
        hopeless = error.reason == Reason.INVALID_SPEC
        state = TaskState(
            request.task_hash,
            TaskPhase.FAILED if hopeless else TaskPhase.RUNNING,
            request.attempt,
            reason=error.reason,
            message=clip(error.message),
            finished_at=now if hopeless else None,
        )
        self._refused.pop((uid, request.task_hash), None)
        self._refused[uid, request.task_hash] = Refusal(state, now + timedelta(seconds=RETRY_SECONDS), begun)
        while len(self._refused) > KEPT:
            del self._refused[next(iter(self._refused))]

    def clear(self, uid: str, request: TaskRequest) -> None:
        """It was created after all."""
        self._refused.pop((uid, request.task_hash), None)

    def states(self, uid: str, known: Mapping[str, TaskState]) -> dict[str, TaskState]:
        """The owner's refused tasks, where that says more than what is known from Jobs."""
        return {
            task: refusal.state
            for (owner, task), refusal in self._refused.items()
            if owner == uid and refusal.holds(known.get(task))
        }

    def may_try(self, uid: str, request: TaskRequest, now: datetime) -> bool:
        """Whether this attempt was not refused, or long enough ago."""
        refusal = self._refused.get((uid, request.task_hash))
        return refusal is None or refusal.state.attempt != request.attempt or refusal.seconds_left(now) <= 0

    def next_try(self, uid: str, missing: Iterable[TaskRequest], now: datetime) -> float | None:
        """Seconds until one of the missing tasks may be tried again; None when none was refused."""
        refusals = (self._refused.get((uid, request.task_hash)) for request in missing)
        waits = [refusal.seconds_left(now) for refusal in refusals if refusal is not None]
        return max(min(waits), 0.1) if waits else None
