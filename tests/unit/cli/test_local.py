"""The loop that runs a plan without a cluster, against a runner whose tasks end when the test says."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest
from tests.unit.plan.optimize.world import START, World, digest, failure, make_spec

from fettle.api.conditions import find
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.progress import TrainingStatus
from fettle.api.reasons import Reason
from fettle.api.task import StoredData
from fettle.cli.local import run
from fettle.cli.local.run import LocalRun, RunInput
from fettle.plan.run.state import RunDecision, TaskPhase, TaskRequest, TaskState


class Bench:
    """A runner that answers like `World`, and remembers what ran beside what."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.running: list[TaskRequest] = []
        self.together: list[list[str]] = []
        self.started: list[str] = []
        self.ended: list[str] = []
        self.begun = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()

    async def run(self, request: TaskRequest) -> TaskState:
        """The task's outcome, a turn of the loop later."""
        self.running.append(request)
        self.begun.set()
        self.started.append(request.label)
        self.together.append(sorted(task.stage for task in self.running))
        try:
            await asyncio.sleep(0)
            await self.hold.wait()
            return self._outcome(request)
        finally:
            self.running.remove(request)
            self.ended.append(request.label)

    def _outcome(self, request: TaskRequest) -> TaskState:
        told = self._world.answer(request)
        if isinstance(told, TaskState):
            return TaskState(
                request.task_hash,
                told.phase,
                request.attempt,
                reason=told.reason,
                message=told.message,
                retryable=told.retryable,
                finished_at=START,
            )
        report = told or self._world.report(request.task)
        return TaskState(request.task_hash, TaskPhase.SUCCEEDED, request.attempt, report, finished_at=START)


class Watch:
    """A clock that jumps ahead a minute with every look, so that no back-off is waited for."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


def local_run(bench: Bench, spec: OptimizedModelSpec, seen: list[RunDecision] | None = None) -> LocalRun:
    """A run on that bench."""

    def note(decision: RunDecision, running: tuple[TaskRequest, ...]) -> None:
        if seen is not None:
            seen.append(decision)

    given = RunInput("default", "digits", 1, spec, "pvc://fettle-store")
    return LocalRun(given, bench, on_change=note, clock=Watch())


def reason(status: OptimizedModelStatus) -> str:
    """Reason of Ready."""
    ready = find(status.conditions, "Ready")
    assert ready is not None
    return ready.reason


async def test_a_run_ends_published() -> None:
    bench = Bench(World(speeds={"int8-openvino": (3.0, 0.001)}))
    seen: list[RunDecision] = []
    status = await local_run(bench, make_spec(), seen).run()
    assert reason(status) == Reason.PUBLISHED
    builds = [
        "bfloat16-mixed-openvino",
        "int8-openvino",
        "int8-mixed-openvino",
        "int8-onnxruntime",
        "int8-mixed-onnxruntime",
    ]
    assert bench.started == ["prepare", *(f"build {name}" for name in builds), "measure cpu", "publish"]
    assert seen[-1].finished


async def test_a_measurement_runs_alone() -> None:
    targets = [{"name": "one", "nodeSelector": {"a": "b"}}, {"name": "two", "nodeSelector": {"a": "c"}}]
    bench = Bench(World())
    status = await local_run(bench, make_spec(targets=targets)).run()
    assert reason(status) == Reason.PUBLISHED
    assert ["measure"] in bench.together
    assert all(stages == ["measure"] for stages in bench.together if "measure" in stages)
    assert ["build", "build"] in bench.together


async def test_a_failure_that_may_pass_is_tried_again() -> None:
    bench = Bench(World())
    broken = failure(Reason.STORE_UNREACHABLE, retryable=True)
    bench._world.answer = lambda request: broken if request.stage == "prepare" and request.attempt == 0 else None
    status = await local_run(bench, make_spec()).run()
    assert reason(status) == Reason.PUBLISHED
    assert bench.started[:2] == ["prepare", "prepare"]


async def test_a_failure_ends_the_run_with_its_reason() -> None:
    bench = Bench(World(answer=lambda request: failure(Reason.SOURCE_NOT_FOUND, "no such file")))
    status = await local_run(bench, make_spec()).run()
    assert reason(status) == Reason.SOURCE_NOT_FOUND


async def test_an_interrupted_run_ends_what_it_started() -> None:
    bench = Bench(World())
    bench.hold.clear()
    work = asyncio.ensure_future(local_run(bench, make_spec()).run())
    await bench.begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert bench.running == []
    assert bench.ended == ["prepare"]


async def test_while_a_training_runs_its_figures_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PROGRESS_SECONDS", 0.001)
    data = {"evaluation": {"uri": "pvc://models/e.npz"}, "training": {"uri": "pvc://models/t.npz"}}
    spec = make_spec(data=data, recipes=[{"name": "lean", "steps": [{"prune": {}}]}])
    bench = Bench(World(prepare={"training": StoredData(sha256=digest("training"), items=800)}))
    shown: list[int] = []

    def progress(request: TaskRequest) -> TrainingStatus:
        assert request.label == "build lean-torchscript"
        epoch = len(shown) + 1
        return TrainingStatus(
            epoch=epoch, epochs=9, validation_loss=0.5, validation_score=0.9, best_epoch=1, seconds=epoch
        )

    def note(decision: RunDecision, running: tuple[TaskRequest, ...]) -> None:
        found = {row.training.epoch for row in decision.status.candidates if row.training is not None}
        shown.extend(found)
        if any(request.trains for request in running) and len(shown) < 3:
            bench.hold.clear()
        else:
            bench.hold.set()

    given = RunInput("default", "digits", 1, spec, "pvc://fettle-store")
    status = await LocalRun(given, bench, on_change=note, clock=Watch(), progress=progress).run()
    assert reason(status) == Reason.PUBLISHED
    assert shown[:3] == [1, 2, 3]


async def test_while_a_task_runs_its_last_words_stand_behind_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SAID_SECONDS", 0.001)
    bench, shown = Bench(World()), list[str]()

    def said(request: TaskRequest) -> str:
        return f"round {len(shown)}" if request.stage == "measure" else ""

    def note(decision: RunDecision, running: tuple[TaskRequest, ...]) -> None:
        shown.extend(request.label for request in running if request.stage == "measure")
        (bench.hold.clear if len(shown) == 1 else bench.hold.set)()

    given = RunInput("default", "digits", 1, make_spec(), "pvc://fettle-store")
    status = await LocalRun(given, bench, on_change=note, clock=Watch(), said=said).run()
    assert reason(status) == Reason.PUBLISHED
    assert shown[:2] == ["measure cpu: round 0", "measure cpu: round 1"]
