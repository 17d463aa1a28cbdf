"""The state of a task, derived from its Job, the Job's pods and their Events. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from fettle.api.reasons import Reason
from fettle.api.report import Termination
from fettle.api.text import MESSAGE_LIMIT, clip
from fettle.cluster.jobs import ATTEMPT_LABEL, CONTAINER, LEADER, STAGE_LABEL, TASK_ANNOTATION, index_of
from fettle.cluster.kinds import DISRUPTION, Object, held_condition, holds
from fettle.cluster.owner import terminating
from fettle.cluster.waiting import (
    IMAGE_WAITS,
    QUIET_SECONDS,
    REMAINS,
    START_WAITS,
    container_of,
    not_pulled,
    told_by,
    unscheduled,
)
from fettle.plan.run.state import TaskPhase, TaskState

LOST = ("Evicted", "NodeLost", "NodeShutdown", "Preempting", "Shutdown", "Terminated", "UnexpectedAdmissionError")


@dataclass(frozen=True)
class JobObservation:
    """A task's state, as far as it is known without further requests.

    `log_of`: the pod whose log has the report with the digest `result_sha256`. `events_of`: UID of a pod or Job that has made no progress for
    a while; its Events may say why. `look_seconds`: when to look again if nothing changes.
    """

    state: TaskState
    log_of: str | None = None
    result_sha256: str | None = None
    events_of: str | None = None
    look_seconds: float | None = None


def task_hash_of(job: Object) -> str:
    """The hash of a Job's task; empty for a Job that is not one of ours."""
    return str((job["metadata"].get("annotations") or {}).get(TASK_ANNOTATION, ""))


def attempt_of(job: Object) -> int:
    """The number of a Job's attempt at its task."""
    word = str((job["metadata"].get("labels") or {}).get(ATTEMPT_LABEL, "0"))
    return int(word) if word.isdigit() else 0


def finished(job: Object) -> bool:
    """Whether a Job is complete or failed, its pods gone or ended."""
    return holds(job, "Complete") or holds(job, "Failed")


def observe(job: Object, pods: Sequence[Object], now: datetime, patience: int) -> JobObservation:
    """The state of a Job's task. `patience`: how many seconds a pod may wait for anything before this is reported."""
    running = TaskState(task_hash_of(job), TaskPhase.RUNNING, attempt_of(job))
    newest = {index_of(pod): pod for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))}
    if holds(job, "Complete"):
        return _complete(running, newest.get(LEADER), _finished_at(job, now))
    failed = held_condition(job, "Failed")
    if failed is not None:
        return JobObservation(_failed(running, failed, list(newest.values()), _finished_at(job, now)))
    seen = [_waiting(running, pod, now, patience) for pod in newest.values()]
    if len(newest) < ((job.get("spec") or {}).get("completions") or 1):
        seen.append(_without_pod(running, job, now))
    return max(
        seen, key=lambda one: (one.state.reason is not None, one.events_of is not None, one.look_seconds is not None)
    )


def explain(state: TaskState, events: Sequence[Object]) -> TaskState:
    """A RUNNING state with the reason of the newest warning, if there is one."""
    cause = told_by(events)
    return state if cause is None else replace(state, reason=cause[0], message=cause[1])


def _complete(running: TaskState, pod: Object | None, at: datetime) -> JobObservation:
    """The task is done. Its result is in the pod's log, as long as the pod exists."""
    done = replace(running, phase=TaskPhase.SUCCEEDED, finished_at=at)
    termination = termination_of(pod)
    if pod is None or termination is None or termination.result_sha256 is None:
        return JobObservation(done)
    return JobObservation(done, log_of=pod["metadata"]["name"], result_sha256=termination.result_sha256)


def _failed(running: TaskState, condition: Object, pods: Sequence[Object], at: datetime) -> TaskState:
    """Why a Job failed: because of the deadline, the node, the task itself or the kernel, checked in this order. Of several pods, one that would
    fail again has the word, then one with a reason of its own: the others only lost it."""
    ended = [pod for pod in pods if (terminated(pod) or {}).get("exitCode") or _lost(pod)]
    blamed = sorted(ended, key=lambda pod: not _lost(pod)) or pods
    causes = [_cause(condition, pod) for pod in blamed] or [_cause(condition, None)]
    reason, message, retryable = min(causes, key=lambda cause: (cause[2], cause[0] == Reason.NODE_LOST))
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
    """What removed the pod, if that was not its own fault; empty otherwise."""
    status = pod.get("status") or {}
    disruption = held_condition(pod, DISRUPTION)
    if disruption is not None:
        return f"{disruption.get('reason')}: {disruption.get('message', '')}"
    if status.get("reason") in LOST:
        return f"{status['reason']}: {status.get('message', '')}"
    ended = terminated(pod) or {}
    if ended.get("reason") in REMAINS:
        return f"{ended['reason']}: {ended.get('message') or 'its node, or the container runtime, was started again'}"
    return "the pod was deleted" if terminating(pod) else ""


def _without_pod(running: TaskState, job: Object, now: datetime) -> JobObservation:
    """The state of a task whose Job has no pod, or fewer than it should have: its Events may say why none can be created."""
    age = (now - _time(job["metadata"]["creationTimestamp"], now)).total_seconds()
    if age < QUIET_SECONDS / 4:
        return JobObservation(running, look_seconds=QUIET_SECONDS / 4)
    return JobObservation(running, events_of=job["metadata"]["uid"], look_seconds=QUIET_SECONDS)


def _waiting(running: TaskState, pod: Object, now: datetime, patience: int) -> JobObservation:
    """The state of a task whose pod has not started: with the cause, once it has waited longer than usual."""
    status = pod.get("status") or {}
    if status.get("phase") != "Pending":
        return JobObservation(running)
    created = _time(pod["metadata"]["creationTimestamp"], now)
    conditions: list[Object] = status.get("conditions") or []
    placed: Object = next((condition for condition in conditions if condition.get("type") == "PodScheduled"), {})
    waited = (now - _time(placed.get("lastTransitionTime"), created)).total_seconds()
    said = _says(pod, placed)
    quiet = patience if said is not None else max(QUIET_SECONDS, patience)
    if waited < quiet:
        return JobObservation(
            running, look_seconds=min(quiet - waited, quiet) + 0.1
        )  # a clock that is behind waits no longer
    if said is None:
        return JobObservation(running, events_of=pod["metadata"]["uid"], look_seconds=QUIET_SECONDS)
    reason, message = said
    return JobObservation(replace(running, reason=reason, message=message))


def _says(pod: Object, placed: Object) -> tuple[Reason, str] | None:
    """What a pod waits for, according to its status. `placed`: its condition PodScheduled."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        word = str(waiting.get("reason", ""))
        if word in IMAGE_WAITS:
            return Reason.IMAGE_PULL_FAILED, not_pulled(container)
        if word in START_WAITS:
            return Reason.JOB_FAILED, clip(f"{word}: {waiting.get('message', '')}")
    if placed.get("status") != "False":
        return None
    return unscheduled(str(placed.get("message", "")), container_of(pod, CONTAINER), _resources_field(pod))


def _resources_field(pod: Object) -> str:
    """The field that sets the resources of a Job's pod: on its target's nodes that of the target."""
    measures = (pod["metadata"].get("labels") or {}).get(STAGE_LABEL) == "measure"
    return "spec.targets[].resources" if measures else "spec.jobs.resources"


def terminated(pod: Object | None) -> Object | None:
    """How the task's container terminated; None if it has not."""
    if pod is None:
        return None
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if container["name"] == CONTAINER:
            ended: Object | None = (container.get("state") or {}).get("terminated")
            return ended
    return None


def termination_of(pod: Object | None) -> Termination | None:
    """The termination message; None if there is none that can be read (after a crash, the end of the log takes its place)."""
    ended = terminated(pod)
    try:
        return Termination.model_validate_json(str((ended or {}).get("message") or ""))
    except ValidationError:
        return None


def _container_limit(pod: Object) -> str:
    limits = (container_of(pod, CONTAINER).get("resources") or {}).get("limits") or {}
    return str(limits.get("memory", "the node's"))


def _finished_at(job: Object, now: datetime) -> datetime:
    """When the Job ended, but never after `now`: the back-off starts at this time, and the cluster's clock may be ahead of this one."""
    done = held_condition(job, "Complete") or held_condition(job, "Failed") or {}
    return min(_time(done.get("lastTransitionTime"), now), now)


def _time(word: object, default: datetime) -> datetime:
    """RFC 3339 as Kubernetes writes it."""
    return datetime.fromisoformat(str(word)).astimezone(UTC) if word else default
