"""The annotation `fettle.dev/retry` on an OptimizedModel: failed tasks of its run are tried again, and published artifacts that were lost are
made again. Each value acts once."""

from __future__ import annotations

from dataclasses import replace

from fettle.api.conditions import READY, find
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.text import counted
from fettle.api.vocabulary import CandidateState
from fettle.plan.commands import VALUE_LIMIT, Command, acceptance, refusal
from fettle.plan.run.attempts import found_loss, retries_of
from fettle.plan.run.state import RetryOrder, RunSnapshot, TaskPhase
from fettle.plan.run.status import IN_PROGRESS

# Repeating a build now would end the measurement in progress.
MEASURED_NOW = frozenset({Reason.MEASURING, Reason.PUBLISHING})
# Results of a run in which every task succeeded: a retry of the same tasks would give the same results.
VERDICTS = frozenset(
    {Reason.CONSTRAINTS_NOT_MET, Reason.NOT_FASTER, Reason.EVALUATION_TOO_SMALL, Reason.EVALUATION_DATA_MISSING}
)


def is_new(value: str, status: OptimizedModelStatus) -> bool:
    """Whether the annotation has a value that was not handled yet."""
    return bool(value) and value[:VALUE_LIMIT] != status.last_handled_retry


def failure_of(status: OptimizedModelStatus) -> str | None:
    """What can be tried again, in a few words; None if nothing failed."""
    ready = find(status.conditions, READY)
    if ready is None or ready.reason == Reason.INVALID_SPEC:
        return None
    if ready.reason not in IN_PROGRESS | VERDICTS | {Reason.PUBLISHED}:
        return ready.reason
    failed = [row for row in status.candidates if row.state == CandidateState.FAILED]
    names = ", ".join(f"{row.target}/{row.name}" for row in failed[:3])
    more = ", …" if len(failed) > 3 else ""
    return f"{counted(len(failed), 'failed candidate')}: {names}{more}" if failed else None


def subject_of(status: OptimizedModelStatus) -> str | None:
    """What a retry would do, in a few words: try again what failed, or check what was published; None if there is neither.

    The operator cannot see whether published files were lost, only a Job can. So a retry of a published run checks them.
    """
    failure, ready = failure_of(status), find(status.conditions, READY)
    if failure is None and ready is not None and ready.reason == Reason.PUBLISHED:
        return "nothing failed; checking that the published artifacts are complete"
    return failure


def _nothing_failed(status: OptimizedModelStatus) -> str:
    """Why a retry has nothing to do."""
    ready = find(status.conditions, READY)
    if ready is None or ready.reason == Reason.INVALID_SPEC:
        return "it repeats the failed tasks of a run, and there was none: correct the spec"
    if ready.reason in IN_PROGRESS:
        return "it repeats the failed tasks of a run, and none has failed so far"
    return (
        f"it repeats the failed tasks of a run, and none failed; to change the result ({ready.reason}), change the spec"
    )


def measured_now(status: OptimizedModelStatus) -> bool:
    """Whether a retry has to wait for the end of the measurement in progress."""
    ready = find(status.conditions, READY)
    return ready is not None and ready.reason in MEASURED_NOW


def _made_again(snapshot: RunSnapshot) -> bool:
    """Whether the run is in progress and is making something again that the store lost."""
    ready, states = find(snapshot.status.conditions, READY), snapshot.tasks.values()
    if ready is None or ready.reason not in IN_PROGRESS:
        return False
    return any(map(found_loss, states)) and any(state.phase == TaskPhase.RUNNING for state in states)


def read(snapshot: RunSnapshot) -> RetryOrder:
    """The retry that is requested now, by the annotation or by a changed spec (more memory for a Job does not change the task, but may help it).

    Without a status, it is not known what failed, and no value acts, because it may have acted already.
    """
    status, value = snapshot.status, snapshot.retry[:VALUE_LIMIT]
    if status.observed_generation is None:
        return RetryOrder(value or status.last_handled_retry, retries_of(snapshot.tasks))
    unchanged = RetryOrder(status.last_handled_retry, status.retries or 0)
    failure, changed = failure_of(status), status.observed_generation != snapshot.generation
    if not is_new(value, status):
        return replace(unchanged, retries=unchanged.retries + 1, acts=True) if changed and failure else unchanged
    subject = subject_of(status)
    if subject is None:
        return RetryOrder(value, unchanged.retries, events=(refusal(Command.RETRY, value, _nothing_failed(status)),))
    if (measured_now(status) or _made_again(snapshot)) and not changed:
        return unchanged
    effect = f"the failed tasks run again ({failure})" if failure else subject
    accepted = acceptance(Command.RETRY, value, effect)
    return RetryOrder(value, unchanged.retries + 1, acts=True, events=(accepted,))


def noted(status: OptimizedModelStatus, order: RetryOrder) -> OptimizedModelStatus:
    """The status of a run that does not change, with the retry that was handled."""
    if order.handled == status.last_handled_retry:
        return status
    return status.model_copy(update={"last_handled_retry": order.handled})
