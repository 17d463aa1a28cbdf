"""The reconciler of OptimizedModels: observe its Jobs, let the plan decide, and apply: Jobs, status, Events."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import replace

from pydantic import ValidationError

from fettle.api.conditions import READY, RECONCILING, STALLED
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.cluster.answers import JobAnswers, TaskStates
from fettle.cluster.claims import require_claims
from fettle.cluster.credentials import store_of
from fettle.cluster.jobs import job_name, render, render_meeting
from fettle.cluster.kinds import JOB, OPTIMIZED_MODEL, SERVICE, Object
from fettle.cluster.nodes import offers
from fettle.cluster.observe import finished
from fettle.cluster.owner import apply_owned, controller_of, name_conflict, owned_by, terminating
from fettle.controller.context import Context
from fettle.controller.refusals import Refusals
from fettle.controller.stored import legible, report, status_of, unreadable, write_status
from fettle.errors import ClusterError, ConflictError, ExistsError
from fettle.plan.commands import Command
from fettle.plan.events import EventDraft
from fettle.plan.run.decide import decide
from fettle.plan.run.preflight import wants_nodes
from fettle.plan.run.retry import is_new
from fettle.plan.run.state import RunDecision, RunSnapshot, TaskPhase, TaskRequest
from fettle.plan.run.status import is_settled

logger = logging.getLogger(__name__)


class OptimizedModels:
    """The reconciler. Its memory only saves work: after a restart, everything is read from the cluster again."""

    def __init__(self) -> None:
        self._answers = JobAnswers()
        self._refusals = Refusals()

    async def reconcile(self, context: Context, namespace: str, name: str) -> float | None:
        """Reconcile one object; returns the seconds until the next pass, or None. Raises ClusterError to be called again."""
        obj = context.cache.get(OPTIMIZED_MODEL, namespace, name)
        if obj is None or terminating(obj):
            return None
        try:
            spec = OptimizedModelSpec.model_validate(obj["spec"])
        except ValidationError as error:
            await _report_invalid(context, obj, error)
            return None
        tasks = await self._gather(context, obj)
        snapshot = _snapshot(context, obj, spec, tasks)
        if context.settings.gpu_preflight and wants_nodes(snapshot):
            snapshot = replace(snapshot, nodes=await offers(context.client))
        decision = decide(snapshot)
        look = await self._apply_jobs(context, obj, spec, tasks, decision)
        await write_status(context, OPTIMIZED_MODEL, obj, decision.status, decision.events)
        looks = (look, tasks.look_seconds, decision.requeue_seconds)
        return min((seconds for seconds in looks if seconds is not None), default=None)

    async def _gather(self, context: Context, obj: Object) -> TaskStates:
        """The states of the tasks, from Jobs and their logs, and from Jobs that the API server refused to create."""
        status = status_of(obj, OptimizedModelStatus)
        if is_settled(status, obj["metadata"]["generation"]) and not is_new(_retry(obj), status):
            return TaskStates({}, None)  # its word is final: no log need be read
        uid, patience = obj["metadata"]["uid"], context.settings.unschedulable_seconds
        known = await self._answers.states(context.client, context.cache, uid, context.now(), patience)
        return TaskStates({**known.states, **self._refusals.states(uid, known.states)}, known.look_seconds)

    async def _apply_jobs(
        self, context: Context, obj: Object, spec: OptimizedModelSpec, tasks: TaskStates, decision: RunDecision
    ) -> float | None:
        """Create missing Jobs and Services, and delete unfinished Jobs that are no longer needed. Returns when to reconcile again."""
        uid, now = obj["metadata"]["uid"], context.now()
        jobs = {job["metadata"]["name"]: job for job in context.cache.owned(JOB, uid)}
        requests = {job_name(obj, task): task for task in decision.requests}
        missing = [task for name, task in requests.items() if name not in jobs and not _over(tasks, task)]
        due = [task for task in missing if self._refusals.may_try(uid, task, now)]
        unfinished = {name: job for name, job in jobs.items() if not finished(job)}
        unrequested = [job for name, job in unfinished.items() if name not in requests]
        meetings = {name: task for name, task in requests.items() if name in unfinished and task.nodes > 1}
        if due or unrequested:
            await _require_current(context, obj)
        refused = [not await self._made(context, obj, task, _start(context, obj, spec, task)) for task in due]
        for name, task in meetings.items():
            if self._refusals.may_try(uid, task, now):
                meeting = _ensure_meeting(context, unfinished[name])
                refused.append(not await self._made(context, obj, task, meeting, begun=True))
        for job in unrequested:
            await _delete(context, job)
        if any(refused):
            return 0.0  # the next pass writes down why
        return self._refusals.next_try(uid, [*missing, *meetings.values()], context.now())

    async def _made(
        self, context: Context, obj: Object, task: TaskRequest, making: Awaitable[None], *, begun: bool = False
    ) -> bool:
        """Make a task's Job, or its Service (`begun`); returns False if that was refused, which is kept as the task's state."""
        metadata = obj["metadata"]
        try:
            await making
        except ConflictError:
            raise
        except ClusterError as error:
            if error.reason == Reason.CLUSTER_UNREACHABLE:
                raise
            logger.warning("%s/%s: %s was rejected: %s", metadata["namespace"], metadata["name"], task.label, error)
            self._refusals.note(metadata["uid"], task, error, context.now(), begun=begun)
            return False
        self._refusals.clear(metadata["uid"], task)
        return True


def _snapshot(context: Context, obj: Object, spec: OptimizedModelSpec, tasks: TaskStates) -> RunSnapshot:
    metadata = obj["metadata"]
    return RunSnapshot(
        namespace=metadata["namespace"],
        name=metadata["name"],
        generation=metadata["generation"],
        spec=spec,
        status=status_of(obj, OptimizedModelStatus),
        default_store=context.settings.store_uri,
        store_secret=store_of(spec, context.settings).secret_name,
        tasks=tasks.states,
        now=context.now(),
        retry=_retry(obj),
        seconds_per_candidate=context.settings.measure_seconds,
    )


def _retry(obj: Object) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(Command.RETRY.annotation, ""))


def _over(tasks: TaskStates, task: TaskRequest) -> bool:
    """Whether this attempt has already ended. Its Job may have been deleted since."""
    state = tasks.states.get(task.task_hash)
    return state is not None and state.attempt == task.attempt and state.phase != TaskPhase.RUNNING


async def _require_current(context: Context, obj: Object) -> None:
    """Check, before anything is created or deleted, that the object in the API server is still the one that was decided on.

    Raises ConflictError if it is not; the newer one is in the cache then."""
    metadata = obj["metadata"]
    live = await context.client.get(OPTIMIZED_MODEL, metadata["namespace"], metadata["name"])
    if live is None:
        context.cache.drop(OPTIMIZED_MODEL, metadata["namespace"], metadata["name"], metadata["uid"])
    elif (live["metadata"]["uid"], live["metadata"]["generation"]) == (metadata["uid"], metadata["generation"]):
        return
    else:
        context.cache.put(OPTIMIZED_MODEL, live)
    raise ConflictError(
        f"OptimizedModel {metadata['namespace']}/{metadata['name']} changed in the meantime", retryable=True
    )


async def _start(context: Context, obj: Object, spec: OptimizedModelSpec, task: TaskRequest) -> None:
    """Create the Job of a task, and its store's claim where that is missing. Raises ClusterError."""
    metadata, settings = obj["metadata"], context.settings
    await require_claims(context.client, settings, metadata["namespace"], task.task)
    await _create_owned(context, obj, render(obj, spec.jobs, task, store_of(spec, settings), settings))
    logger.info("%s/%s: %s started", metadata["namespace"], metadata["name"], task.label)


async def _create_owned(context: Context, obj: Object, job: Object) -> None:
    """Create a Job, unless one of that name exists and is ours. Raises ClusterError NameConflict if it belongs to something else."""
    try:
        await context.client.create(JOB, job)
        return
    except ExistsError:
        metadata = job["metadata"]
        there = await context.client.get(JOB, metadata["namespace"], metadata["name"])
    if there is None or not owned_by(there, obj["metadata"]["uid"]) or terminating(there):
        raise name_conflict(JOB, there or job, controller_of(job))
    context.cache.put(JOB, there)


async def _ensure_meeting(context: Context, job: Object) -> None:
    """Create the Service by which the pods of a Job find each other. It needs the Job's UID, so the Job comes first, and its pods wait.

    Raises ClusterError NameConflict if it belongs to something else, such as an earlier Job of that name."""
    service = render_meeting(job)
    metadata = service["metadata"]
    known = context.cache.get(SERVICE, metadata["namespace"], metadata["name"])
    await apply_owned(context.client, SERVICE, service, known)


async def _delete(context: Context, job: Object) -> None:
    metadata = job["metadata"]
    if terminating(job):
        return
    logger.info("%s: deleting Job %s, which is no longer needed", metadata["namespace"], metadata["name"])
    await context.client.delete(JOB, metadata["namespace"], metadata["name"], uid=metadata["uid"])


async def _report_invalid(context: Context, obj: Object, error: ValidationError) -> None:
    """Report that the stored spec cannot be parsed, and change nothing else, especially not what is published."""
    status, wrong = legible(obj, OptimizedModelStatus), {READY: False, RECONCILING: False, STALLED: True}
    fault = EventDraft("Warning", Reason.INVALID_SPEC, unreadable(error))
    await report(context, OPTIMIZED_MODEL, obj, status, wrong, fault)
