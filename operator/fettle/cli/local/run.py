"""A run without a cluster: the operator's own decisions, with tasks as local processes.

The loop is the operator's: decide, start the tasks, wait for a result, decide again. A measurement runs alone, because a build
at the same time would disturb it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.progress import TrainingStatus
from fettle.api.task import SECONDS_PER_CANDIDATE
from fettle.plan.run.decide import decide
from fettle.plan.run.state import RunDecision, RunSnapshot, TaskPhase, TaskRequest, TaskState

OnChange = Callable[[RunDecision, tuple[TaskRequest, ...]], None]
ProgressOf = Callable[[TaskRequest], TrainingStatus | None]
SaidBy = Callable[[TaskRequest], str]
PROGRESS_SECONDS = 2.0  # between looks at what trainings say
SAID_SECONDS = 30.0  # between looks at what other tasks say: a measurement is not to be disturbed


@dataclass(frozen=True)
class RunInput:
    """The model to optimize, and the URI of the store."""

    namespace: str
    name: str
    generation: int
    spec: OptimizedModelSpec
    store: str
    seconds_per_candidate: float = SECONDS_PER_CANDIDATE


class Runner(Protocol):
    """Runs one task to its end. If it is cancelled, it leaves no process running."""

    async def run(self, request: TaskRequest) -> TaskState:
        """The task's outcome; a failure is an outcome, not an exception."""
        ...


def _now() -> datetime:
    return datetime.now(UTC)


class LocalRun:
    """One OptimizedModel, from its spec to its final status."""

    def __init__(
        self,
        given: RunInput,
        runner: Runner,
        on_change: OnChange = lambda decision, running: None,
        clock: Callable[[], datetime] = _now,
        progress: ProgressOf = lambda request: None,
        said: SaidBy = lambda request: "",
    ) -> None:
        """`on_change` is called after every decision, with the tasks that run then, and every half a minute while they run.

        `progress` says how far a training has come, and `said` what a task said last, which stands behind its label.
        """
        self._given = given
        self._runner = runner
        self._on_change = on_change
        self._clock = clock
        self._progress = progress
        self._said = said
        self._status = OptimizedModelStatus()
        self._states: dict[str, TaskState] = {}
        self._running: dict[asyncio.Task[TaskState], TaskRequest] = {}

    async def run(self) -> OptimizedModelStatus:
        """Run to the end. If it is cancelled, it first ends the tasks that it started."""
        try:
            while True:
                decision = self._decide()
                self._start(decision)
                self._on_change(decision, tuple(map(self._told, self._running.values())))
                if decision.finished:
                    return decision.status
                await self._wait(decision.requeue_seconds)
        finally:
            await self._stop()

    def _told(self, request: TaskRequest) -> TaskRequest:
        """The task as it is shown: 'measure cpu: process start 1, round 3: baseline 1.2 ms'."""
        said = self._said(request)
        return replace(request, label=f"{request.label}: {said}") if said else request

    def _decide(self) -> RunDecision:
        given = self._given
        snapshot = RunSnapshot(
            namespace=given.namespace,
            name=given.name,
            generation=given.generation,
            spec=given.spec,
            status=self._status,
            default_store=given.store,
            tasks=self._known(),
            now=self._clock(),
            seconds_per_candidate=given.seconds_per_candidate,
        )
        decision = decide(snapshot)
        self._status = decision.status
        return decision

    def _known(self) -> dict[str, TaskState]:
        """What is known of the tasks; of trainings that run, how far they have come too."""
        states = dict(self._states)
        for request in self._running.values():
            if request.trains:
                state = states[request.task_hash]
                states[request.task_hash] = replace(state, training=self._progress(request))
        return states

    def _start(self, decision: RunDecision) -> None:
        for request in decision.requests:
            known = self._states.get(request.task_hash)
            if (known is not None and known.attempt >= request.attempt) or not self._has_room(request):
                continue
            self._states[request.task_hash] = TaskState(request.task_hash, TaskPhase.RUNNING, request.attempt)
            self._running[asyncio.create_task(self._runner.run(request), name=request.label)] = request

    def _has_room(self, request: TaskRequest) -> bool:
        """Whether the task may start now: a measurement needs the whole machine."""
        if request.stage == "measure":
            return not self._running
        return all(other.stage != "measure" for other in self._running.values())

    async def _wait(self, seconds: float | None) -> None:
        """Until a task ends, or until the decision asked to look again; while one trains, until it may have come further."""
        if not self._running:
            await asyncio.sleep(seconds if seconds is not None else 1.0)
            return
        if any(request.trains for request in self._running.values()):
            seconds = PROGRESS_SECONDS if seconds is None else min(seconds, PROGRESS_SECONDS)
        seconds = SAID_SECONDS if seconds is None else min(seconds, SAID_SECONDS)
        done, _ = await asyncio.wait(self._running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            request = self._running.pop(task)
            self._states[request.task_hash] = task.result()

    async def _stop(self) -> None:
        for task in self._running:
            task.cancel()
        for task in list(self._running):
            with suppress(asyncio.CancelledError):
                await task
        self._running.clear()
