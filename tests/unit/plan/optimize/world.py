"""A world in which a run's tasks are answered as a test says, one look at a time. No Kubernetes, no processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.unit.plan.choose.figures import row

from fettle.api.bounds import ORIGINAL
from fettle.api.conditions import Condition, find
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.optimizedmodel_status import BaselineStatus, CandidateStatus, OptimizedModelStatus, SourceStatus
from fettle.api.reasons import Reason
from fettle.api.report import BuildEntry, BuildReport, CpuClass, MeasureReport, PrepareReport, PublishReport, Traits
from fettle.api.signature import Signature, Tensor
from fettle.api.task import (
    AnyTask,
    BuildPlan,
    BuildTask,
    BuiltCandidate,
    MeasureTask,
    PrepareTask,
    StoredData,
    StoredFile,
    StoredModel,
)
from fettle.api.vocabulary import FormatName, RuntimeName
from fettle.plan.run.decide import decide
from fettle.plan.run.state import AnyReport, RunDecision, RunSnapshot, TaskPhase, TaskRequest, TaskState

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO


def digest(text: str) -> str:
    """A sha256 of a name."""
    return hashlib.sha256(text.encode()).hexdigest()


def stored(name: str, size: int = 1000) -> StoredModel:
    """A model of one file."""
    return StoredModel(
        format="ONNX", entry="m.onnx", files=(StoredFile(path="m.onnx", sha256=digest(name), bytes=size),)
    )


def make_spec(**fields: Any) -> OptimizedModelSpec:
    """A spec with evaluation data and one target, as YAML would give it."""
    document = {
        "source": {"uri": "pvc://models/digits.onnx"},
        "data": {"evaluation": {"uri": "pvc://models/evaluation.npz"}},
        "targets": [{"name": "cpu", "threads": 2}],
        "constraints": {"accuracy": {"maxDrop": 0.02}},
        "search": {"parallelism": 5},  # every build of the default plan at once
        **fields,
    }
    return OptimizedModelSpec.model_validate(document)


def prepared(
    builds: Iterable[BuildPlan],
    *,
    items: int = 900,
    traits: Traits | None = None,
    cached: Iterable[str] = (),
    portable_runtimes: tuple[RuntimeName, ...] = (ORT, OPENVINO),
    batchable: bool = True,
    generated: bool = False,
    labelled: bool = True,
    calibration: int | None = 200,
    training: StoredData | None = None,
    loss_code: dict[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> PrepareReport:
    """The answer of a prepare task for a small convolutional net."""
    axis = 0 if batchable else None
    image = Tensor(name="image", dtype="FP32", shape=(-1, 1, 32, 32), batch_axis=axis)
    logits = Tensor(name="logits", dtype="FP32", shape=(-1, 10), batch_axis=axis)
    return PrepareReport(
        source=SourceStatus(sha256=digest("source"), format=FormatName.ONNX, bytes=1000),
        original=stored("original"),
        portable=stored("portable", 990),
        portable_runtimes=portable_runtimes,
        signature=Signature(inputs=(image,), outputs=(logits,)),
        traits=traits or Traits(opset=17, convolutions=4, p50_milliseconds=6.0),
        calibration=StoredData(sha256=digest("calibration"), items=calibration) if calibration else None,
        training=training,
        loss_code=loss_code or {},
        items=StoredData(sha256=digest("items"), items=items, labelled=labelled),
        generated=generated,
        builds=tuple(
            BuildEntry(
                name=segment.name,
                cache_key=digest(segment.name),
                built=stored(segment.name, 300) if segment.name in set(cached) else None,
            )
            for build in builds
            for segment in build.segments
        ),
        notes=notes,
    )


Speeds = dict[str, tuple[float, float]]  # candidate -> speed-up and accuracy drop; others get 1.2 and no drop


def measured(task: MeasureTask, speeds: Speeds, instead: dict[str, CandidateStatus] | None = None) -> MeasureReport:
    """The answer of a measure task; `instead` are rows told as they are. The published artifact is answered as `published`."""

    def one(candidate: BuiltCandidate) -> CandidateStatus:
        plan = candidate.plan
        if instead and plan.name in instead:
            return instead[plan.name].model_copy(update={"target": task.target})
        speed, drop = (1.0, 0.0) if plan.recipe == ORIGINAL else speeds.get(plan.name, (1.2, 0.0))
        exact = not candidate.lossy
        told = row(
            plan.name,
            (1.0, 1.0, 1.0) if plan.recipe == ORIGINAL else speed,
            None if exact else (drop, drop - 0.002, drop + 0.002),
            exact=exact,
            size=candidate.model.bytes,
            target=task.target,
            artifact=digest(f"{plan.name} {task.target}"),
            recipe=plan.recipe,
            runtime=plan.runtime,
            batch_size=task.batch_sizes[0],
        )
        return told.model_copy(update={"settings": plan.settings})

    return MeasureReport(
        measured_on=CpuClass(vendor="GenuineIntel"),
        baseline=BaselineStatus(
            target=task.target,
            runtime=task.baseline.plan.runtime,
            bytes=task.baseline.model.bytes,
            measurements=row("original", 1.0, batch_size=task.batch_sizes[0]).measurements,
        ),
        candidates=(*(one(candidate) for candidate in task.candidates), *_published(task, speeds)),
    )


def _published(task: MeasureTask, speeds: Speeds) -> list[CandidateStatus]:
    """The incumbent's row, unless a candidate is the same."""
    names = {digest(f"{candidate.plan.name} {task.target}") for candidate in task.candidates}
    if task.incumbent is None or task.incumbent in names:
        return []
    speed, drop = speeds.get("published", (1.2, 0.0))
    told = row("published", speed, (drop, drop - 0.002, drop + 0.002), target=task.target, recipe="old")
    return [told.model_copy(update={"artifact": task.incumbent})]


Answer = Callable[[TaskRequest], AnyReport | TaskState | None]


@dataclass
class World:
    """One object and its Jobs. `answer` may override what a task answers; None leaves it to the defaults.

    `look` decides once and applies the decision as the operator would: what is wanted starts, what is not wanted and not over goes.
    """

    spec: OptimizedModelSpec = field(default_factory=make_spec)
    speeds: Speeds = field(default_factory=dict)
    rows_instead: dict[str, CandidateStatus] = field(default_factory=dict)
    prepare: dict[str, Any] = field(default_factory=dict)
    answer: Answer = lambda request: None
    generation: int = 1
    status: OptimizedModelStatus = field(default_factory=OptimizedModelStatus)
    tasks: dict[str, TaskState] = field(default_factory=dict)
    now: datetime = START
    retry: str = ""
    store_secret: str | None = None
    started: list[TaskRequest] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)

    @property
    def snapshot(self) -> RunSnapshot:
        """What `decide` is shown."""
        return RunSnapshot(
            namespace="team",
            name="digits",
            generation=self.generation,
            spec=self.spec,
            status=self.status,
            default_store="pvc://fettle-store",
            tasks=dict(self.tasks),
            now=self.now,
            retry=self.retry,
            store_secret=self.store_secret,
        )

    def look(self) -> RunDecision:
        """Decide, write the status, start what is new, delete what is not wanted any more."""
        decision = decide(self.snapshot)
        self.status = decision.status
        self.events.extend((event.type, event.reason) for event in decision.events)
        requested = {task.task_hash for task in decision.requests}
        over = {name for name, state in self.tasks.items() if state.phase != TaskPhase.RUNNING}
        self.tasks = {name: state for name, state in self.tasks.items() if name in requested | over}
        for task in decision.requests:
            known = self.tasks.get(task.task_hash)
            if known is None or known.attempt < task.attempt:
                self.started.append(task)
                self.tasks[task.task_hash] = TaskState(task.task_hash, TaskPhase.RUNNING, task.attempt)
        return decision

    def finish(self, stage: str | None = None) -> None:
        """Everything that runs (of one stage, or of all) answers."""
        for task in self.started:
            state = self.tasks.get(task.task_hash)
            running = state is not None and state.phase == TaskPhase.RUNNING and state.attempt == task.attempt
            if running and stage in (None, task.stage):
                self.tasks[task.task_hash] = self._outcome(task)

    def _outcome(self, request: TaskRequest) -> TaskState:
        told = self.answer(request)
        if isinstance(told, TaskState):
            return replace(told, task_hash=request.task_hash, attempt=request.attempt, finished_at=self.now)
        report = told if told is not None else self.report(request.task)
        return TaskState(request.task_hash, TaskPhase.SUCCEEDED, request.attempt, report, finished_at=self.now)

    def report(self, task: AnyTask) -> AnyReport:
        """What a task answers when all goes well."""
        if isinstance(task, PrepareTask):
            return prepared(task.builds, **self.prepare)
        if isinstance(task, BuildTask):
            return BuildReport(name=task.plan.name, cache_key=task.cache_key, built=stored(task.plan.name, 300))
        if isinstance(task, MeasureTask):
            return measured(task, self.speeds, self.rows_instead)
        uri = f"{task.store}/reports/{task.namespace}/{task.name}/{task.generation}.html"
        return PublishReport(report_uri=uri)

    def settle(self, looks: int = 60) -> RunDecision:
        """Look and let everything answer until the run is over; time passes where the decision asks for it."""
        for _ in range(looks):
            decision = self.look()
            if decision.finished:
                return decision
            if not any(state.phase == TaskPhase.RUNNING for state in self.tasks.values()):
                self.now += timedelta(seconds=decision.requeue_seconds or 1)
            self.finish()
        raise AssertionError(f"did not settle in {looks} looks: {self.ready}")

    @property
    def ready(self) -> Condition:
        """The Ready condition."""
        condition = find(self.status.conditions, "Ready")
        assert condition is not None
        return condition

    def condition(self, kind: str) -> Condition:
        """Another condition."""
        condition = find(self.status.conditions, kind)
        assert condition is not None
        return condition

    def rows(self, target: str = "cpu") -> dict[str, CandidateStatus]:
        """Rows of a target by name."""
        return {row.name: row for row in self.status.candidates if row.target == target}

    def labels(self, stage: str) -> list[str]:
        """Labels of the tasks that were started in a stage, in order."""
        return [task.label for task in self.started if task.stage == stage]


def failure(reason: Reason, message: str = "it broke", *, retryable: bool = False) -> TaskState:
    """A failed attempt."""
    return TaskState("", TaskPhase.FAILED, reason=reason, message=message, retryable=retryable)


def fails(stage: str, outcome: TaskState, label: str | None = None, until_attempt: int = 99) -> Answer:
    """An `answer` in which a stage (or one label of it) fails on its first attempts."""

    def answer(request: TaskRequest) -> TaskState | None:
        hit = request.stage == stage and label in (None, request.label) and request.attempt < until_attempt
        return outcome if hit else None

    return answer


def remembered(draw: Callable[[], TaskState | None]) -> Answer:
    """An `answer` that is drawn once for each attempt, however often it is asked for."""
    told: dict[tuple[str, int], TaskState | None] = {}

    def answer(request: TaskRequest) -> TaskState | None:
        key = (request.task_hash, request.attempt)
        if key not in told:
            told[key] = draw()
        return told[key]

    return answer
