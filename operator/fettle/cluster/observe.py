"""What a Job says about its task. Pure: the Job, its pods and their Events in, a finding out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from fettle.api.reasons import Reason
from fettle.api.report import Termination
from fettle.api.text import MESSAGE_LIMIT, clip
from fettle.cluster.jobs import ATTEMPT_LABEL, CONTAINER, TASK_ANNOTATION
from fettle.cluster.kinds import Object
from fettle.cluster.owner import terminating
from fettle.cluster.waiting import (
    IMAGE_WAITS,
    QUIET_SECONDS,
    REMAINS,
    START_WAITS,
    told_by,
    unscheduled,
)
from fettle.plan.run.state import TaskPhase, TaskState

LOST = ("Evicted", "NodeLost", "NodeShutdown", "Preempting", "Shutdown", "Terminated", "UnexpectedAdmissionError")


@dataclass(frozen=True)
class JobObservation:
    """A task's state, as far as it can be told without asking further.

    `log_of`: the pod whose log carries the report that `result_sha256` vouches for. `events_of`: UID of a pod or Job that has
    not moved for a while; its Events may say why. `look_seconds`: when to look again although nothing changed.
    """

    state: TaskState
    log_of: str | None = None
    result_sha256: str | None = None
    events_of: str | None = None
    look_seconds: float | None = None


def task_hash_of(job: Object) -> str:
    """Hash of the task a Job works on; empty for a Job that is not one of ours."""
    return str((job["metadata"].get("annotations") or {}).get(TASK_ANNOTATION, ""))


def attempt_of(job: Object) -> int:
    """Which attempt at its task a Job is."""
    word = str((job["metadata"].get("labels") or {}).get(ATTEMPT_LABEL, "0"))
    return int(word) if word.isdigit() else 0


def finished(job: Object) -> bool:
    """Whether a Job is complete or failed, its pods gone or ended."""
    return _condition(job, "Complete") is not None or _condition(job, "Failed") is not None


def observe(job: Object, pods: Sequence[Object], now: datetime, patience: int) -> JobObservation:
    """The state of a Job's task. `patience`: seconds a pod may wait, for whatever it be, before that is worth saying."""
    running = TaskState(task_hash_of(job), TaskPhase.RUNNING, attempt_of(job))
    pod = max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
    if _condition(job, "Complete") is not None:
        return _complete(running, pod, _finished_at(job, now))
    failed = _condition(job, "Failed")
    if failed is not None:
        return JobObservation(_failed(running, failed, pod, _finished_at(job, now)))
    if pod is None:
        return _without_pod(running, job, now)
    return _waiting(running, pod, now, patience)


def explain(state: TaskState, events: Sequence[Object]) -> TaskState:
    """A RUNNING state with the reason that the newest warning gives, if one does."""
    cause = told_by(events)
    return state if cause is None else replace(state, reason=cause[0], message=cause[1])


def _complete(running: TaskState, pod: Object | None, at: datetime) -> JobObservation:
    """Done; what it answered lies in the pod's log, as long as there is a pod."""
    done = replace(running, phase=TaskPhase.SUCCEEDED, finished_at=at)
    termination = termination_of(pod)
    if pod is None or termination is None or termination.result_sha256 is None:
        return JobObservation(done)
    return JobObservation(done, log_of=pod["metadata"]["name"], result_sha256=termination.result_sha256)


def _failed(running: TaskState, condition: Object, pod: Object | None, at: datetime) -> TaskState:
    """Why a Job failed: what the deadline, the node, the task itself or the kernel said, in this order."""
    reason, message, retryable = _cause(condition, pod)
    return replace(
        running,
        phase=TaskPhase.FAILED,
        reason=reason,
        message=clip(message),
        retryable=retryable,
        finished_at=at,
    )


def _cause(condition: Object, pod: Object | None) -> tuple[Reason, str, bool]:
    if condition.get("reason") == "DeadlineExceeded":
        return Reason.DEADLINE_EXCEEDED, "the Job did not end before its deadline", False
    if pod is None:
        return Reason.NODE_LOST, "the pod is gone and left no result", True
    termination = termination_of(pod)
    if termination is not None and termination.outcome == "Failed":
        return termination.reason or Reason.JOB_FAILED, termination.message, termination.retryable
    ended = terminated(pod)
    if ended is not None and ended.get("reason") == "OOMKilled":
        limit = _container_limit(pod)
        return (
            Reason.OUT_OF_MEMORY,
            f"killed by the kernel at its memory limit ({limit}): raise resources.limits.memory",
            False,
        )
    lost = _lost(pod)
    if lost:
        return Reason.NODE_LOST, lost, True
    if ended is None:
        return Reason.JOB_FAILED, f"{condition.get('reason')}: {condition.get('message', '')}", False
    tail = str(ended.get("message") or "").strip()[-(MESSAGE_LIMIT - 64) :]
    return Reason.JOB_FAILED, f"exit code {ended.get('exitCode')}: {tail or 'no message'}", False


def _lost(pod: Object) -> str:
    """What took the pod away, if it was not its own doing; empty otherwise."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return f"{condition.get('reason')}: {condition.get('message', '')}"
    if status.get("reason") in LOST:
        return f"{status['reason']}: {status.get('message', '')}"
    ended = terminated(pod) or {}
    if ended.get("reason") in REMAINS:
        return f"{ended['reason']}: {ended.get('message') or 'its node, or the container runtime, was started again'}"
    return "the pod was deleted" if terminating(pod) else ""


def _without_pod(running: TaskState, job: Object, now: datetime) -> JobObservation:
    age = (now - _time(job["metadata"]["creationTimestamp"], now)).total_seconds()
    if age < QUIET_SECONDS / 4:
        return JobObservation(running, look_seconds=QUIET_SECONDS / 4)
    return JobObservation(running, events_of=job["metadata"]["uid"], look_seconds=QUIET_SECONDS)


def _waiting(running: TaskState, pod: Object, now: datetime, patience: int) -> JobObservation:
    """A pod that has not started says what it waits for, once it has waited longer than what passes by itself."""
    status = pod.get("status") or {}
    if status.get("phase") != "Pending":
        return JobObservation(running)
    created = _time(pod["metadata"]["creationTimestamp"], now)
    conditions: list[Object] = status.get("conditions") or []
    placed: Object = next((condition for condition in conditions if condition.get("type") == "PodScheduled"), {})
    waited = (now - _time(placed.get("lastTransitionTime"), created)).total_seconds()
    said = _says(status, placed)
    quiet = patience if said is not None else max(QUIET_SECONDS, patience)
    if waited < quiet:
        return JobObservation(
            running, look_seconds=min(quiet - waited, quiet) + 0.1
        )  # a clock that is behind waits no longer
    if said is None:
        return JobObservation(running, events_of=pod["metadata"]["uid"], look_seconds=QUIET_SECONDS)
    reason, message = said
    return JobObservation(replace(running, reason=reason, message=message))


def _says(status: Object, placed: Object) -> tuple[Reason, str] | None:
    """What a pod's status says that it waits for. `placed`: its condition PodScheduled."""
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        word = str(waiting.get("reason", ""))
        if word in IMAGE_WAITS or word in START_WAITS:
            reason = Reason.IMAGE_PULL_FAILED if word in IMAGE_WAITS else Reason.JOB_FAILED
            return reason, clip(f"{word}: {waiting.get('message', '')}")
    return unscheduled(str(placed.get("message", ""))) if placed.get("status") == "False" else None


def terminated(pod: Object | None) -> Object | None:
    """How the task's container ended, or None while it has not."""
    if pod is None:
        return None
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if container["name"] == CONTAINER:
            ended: Object | None = (container.get("state") or {}).get("terminated")
            return ended
    return None


def termination_of(pod: Object | None) -> Termination | None:
    """The termination message, or None when there is none that can be read (the log's tail takes its place after a crash)."""
    ended = terminated(pod)
    try:
        return Termination.model_validate_json(str((ended or {}).get("message") or ""))
    except ValidationError:
        return None


def _container_limit(pod: Object) -> str:
    for container in pod["spec"]["containers"]:
        if container["name"] == CONTAINER:
            return str(((container.get("resources") or {}).get("limits") or {}).get("memory", "the node's"))
    return "unknown"


def _condition(job: Object, kind: str) -> Object | None:
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            holding: Object = condition
            return holding
    return None


def _finished_at(job: Object, now: datetime) -> datetime:
    """When it ended. Never after `now`: the back-off counts from here, and the cluster's clock may be ahead of this one."""
    done = _condition(job, "Complete") or _condition(job, "Failed") or {}
    return min(_time(done.get("lastTransitionTime"), now), now)


def _time(word: object, default: datetime) -> datetime:
    """RFC 3339 as Kubernetes writes it."""
    return datetime.fromisoformat(str(word)).astimezone(UTC) if word else default
