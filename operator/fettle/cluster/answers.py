"""The states of an OptimizedModel's tasks: its Jobs observed, their answers read from logs and kept."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fettle.api.report import unframe
from fettle.cluster import events
from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.jobs import CONTAINER, LEADER, index_of, trains
from fettle.cluster.kinds import JOB, POD, Object
from fettle.cluster.observe import JobObservation, attempt_of, explain, finished, observe, task_hash_of
from fettle.cluster.progress import PROGRESS_SECONDS, TrainingLogs
from fettle.errors import MissingError
from fettle.plan.run.state import TaskPhase, TaskState

logger = logging.getLogger(__name__)

KEPT = 4096  # answers in memory; one is some tens of kilobytes


@dataclass(frozen=True)
class TaskStates:
    """Task hash -> newest attempt, and when to look again although nothing changed."""

    states: dict[str, TaskState]
    look_seconds: float | None


class JobAnswers:
    """Reads what Jobs answered. What is over is kept by owner and task, so each log is read once, and an answer outlives its Job."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._final: OrderedDict[tuple[str, str], TaskState] = OrderedDict()
        self._trainings = TrainingLogs()

    async def states(self, client: Client, cache: Cache, owner_uid: str, now: datetime, patience: int) -> TaskStates:
        """The state of every task this owner has, or had, a Job for. Raises ClusterError when a log cannot be asked for."""
        newest: dict[str, Object] = {}
        for job in cache.owned(JOB, owner_uid):
            task = task_hash_of(job)
            if task and (task not in newest or attempt_of(job) > attempt_of(newest[task])):
                newest[task] = job
        states = {task: state for (owner, task), state in self._final.items() if owner == owner_uid}
        looks: list[float] = []
        for task, job in newest.items():
            known = states.get(task)
            if known is not None and known.attempt >= attempt_of(job):
                continue
            states[task], look = await self._look(client, cache, owner_uid, job, now, patience)
            looks += [look] if look is not None else []
        return TaskStates(states, min(looks, default=None))

    async def _look(
        self, client: Client, cache: Cache, owner_uid: str, job: Object, now: datetime, patience: int
    ) -> tuple[TaskState, float | None]:
        pods = await _pods(client, cache, job)
        seen = observe(job, pods, now, patience)
        state = seen.state
        if seen.events_of is not None:
            state = explain(state, await events.about(client, job["metadata"]["namespace"], seen.events_of))
        if state.phase == TaskPhase.SUCCEEDED:
            state = await _with_report(client, job, seen)
        if state.phase != TaskPhase.RUNNING:
            self._keep((owner_uid, state.task_hash), state)
        pod = _running(pods) if trains(job) and state.phase == TaskPhase.RUNNING else None
        if pod is not None:
            return replace(state, training=await self._trainings.newest(client, pod)), PROGRESS_SECONDS
        return state, seen.look_seconds

    def _keep(self, key: tuple[str, str], state: TaskState) -> None:
        self._final[key] = state
        self._final.move_to_end(key)
        while len(self._final) > self._kept:
            self._final.popitem(last=False)


async def _pods(client: Client, cache: Cache, job: Object) -> list[Object]:
    """A Job's pods. Once it is over they are read live: the watch of pods may lag behind that of Jobs."""
    if not finished(job):
        return cache.owned(POD, job["metadata"]["uid"])
    selector = f"batch.kubernetes.io/controller-uid={job['metadata']['uid']}"
    return list((await client.list(POD, job["metadata"]["namespace"], labels=selector)).items)


def _running(pods: Sequence[Object]) -> Object | None:
    """The pod whose log tells how far a training has come."""
    running = (pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running")
    return next((pod for pod in running if index_of(pod) == LEADER), None)


async def _with_report(client: Client, job: Object, seen: JobObservation) -> TaskState:
    """The finished task with its report; without one where the log is gone or not whole."""
    if seen.log_of is None or seen.result_sha256 is None:
        return seen.state
    try:
        log = await client.log(job["metadata"]["namespace"], seen.log_of, CONTAINER)
    except MissingError:
        return seen.state
    return replace(seen.state, report=unframe(log, seen.result_sha256))
