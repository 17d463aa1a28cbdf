"""The types in which an optimization run is decided: what is known, and what should happen next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from fettle.api.conditions import READY, find
from fettle.api.optimizedmodel import OptimizedModelSpec, TargetSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.progress import TrainingStatus
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, MeasureReport, PrepareReport, PublishReport
from fettle.api.task import ENDS_VARIABLE, SECONDS_PER_CANDIDATE, AnyTask, BuildTask, MeasureTask
from fettle.plan.events import EventDraft

AnyReport = PrepareReport | BuildReport | MeasureReport | PublishReport


class TaskPhase(StrEnum):
    """The state of a task's Job (or process)."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class TaskState:
    """What is known about one task. `attempt` counts from 0. A FAILED attempt has a reason, a message, and whether another may succeed.

    RUNNING with a reason: it exists or is requested, and waits for something external (a node, a quota, a claim, an image).
    SUCCEEDED without a report: its result was lost with its log; the next attempt takes it from the store.
    """

    task_hash: str
    phase: TaskPhase
    attempt: int = 0
    report: AnyReport | None = None
    reason: Reason | None = None
    message: str = ""
    retryable: bool = False
    finished_at: datetime | None = None
    training: TrainingStatus | None = None  # of a RUNNING one that trains, as soon as it has told


# Labels of NVIDIA's GPU feature discovery.
PRODUCT, MEMORY = "nvidia.com/gpu.product", "nvidia.com/gpu.memory"
MAJOR, MINOR = "nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"


@dataclass(frozen=True)
class Taint:
    """A taint of a node, which keeps away pods that do not tolerate it."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True)
class NodeOffer:
    """What a node offers to pods that need a GPU. `resources`: the allocatable resources of NVIDIA's device plugin."""

    name: str
    resources: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    schedulable: bool = True

    @property
    def architecture(self) -> str | None:
        """Compute capability of its GPUs; None if it has no such label, or one that is no compute capability."""
        major, minor = self.labels.get(MAJOR, ""), self.labels.get(MINOR, "")
        told = re.fullmatch("[0-9]{1,2} [0-9]", f"{major} {minor}")
        return f"sm{major}{minor}" if told is not None else None

    @property
    def product(self) -> str:
        """Name of its GPUs."""
        return self.labels.get(PRODUCT, "a GPU without labels")

    def memory(self, resources: Iterable[str] = ()) -> tuple[str, int]:
        """The label with the memory of one of its GPUs, or of the part of one that `resources` name, and its MiB; 0 if no label tells it."""
        for label in (*(f"{name}.memory" for name in resources), MEMORY):
            if re.fullmatch("[0-9]{1,9}", text := self.labels.get(label, "")):
                return label, int(text)
        return MEMORY, 0

    @property
    def offer(self) -> str:
        """'nvidia.com/gpu: 4 (Tesla-T4, sm75)'."""
        resources = ", ".join(f"{name}: {count}" for name, count in sorted(self.resources.items()))
        return f"{resources} ({', '.join(filter(None, (self.product, self.architecture)))})"


@dataclass(frozen=True)
class RunSnapshot:
    """Everything that a decision depends on. `tasks`: task hash -> newest attempt. `nodes`: None if the operator may not read nodes, or did not."""

    namespace: str
    name: str
    generation: int
    spec: OptimizedModelSpec
    status: OptimizedModelStatus
    default_store: str
    tasks: Mapping[str, TaskState]
    now: datetime
    retry: str = ""  # the annotation fettle.dev/retry
    seconds_per_candidate: float = SECONDS_PER_CANDIDATE
    nodes: tuple[NodeOffer, ...] | None = None
    store_secret: str | None = None  # name of the Secret with the credentials for this run's store

    @property
    def goes_on(self) -> bool:
        """Whether a run of this generation wrote the status. There was no run for a spec that could not be read."""
        ready = find(self.status.conditions, READY)
        readable = ready is None or ready.reason != Reason.INVALID_SPEC
        return readable and self.status.observed_generation == self.generation


@dataclass(frozen=True)
class TaskRequest:
    """A task that should be running or done. `target` is set if it must run on that target's nodes. `ends`: the run's deadline."""

    task: AnyTask
    task_hash: str
    attempt: int
    stage: str  # prepare, build, measure, publish
    label: str  # for a person: "measure cpu", "build int8-static openvino"
    deadline_seconds: int
    target: TargetSpec | None = None
    ends: datetime | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What its process is told beside the task, whose hash does not depend on it: when an exhaustive search has to come to an end."""
        if self.ends is None or not isinstance(self.task, MeasureTask) or not self.task.exhaustive:
            return {}
        return {ENDS_VARIABLE: str(int(self.ends.timestamp()))}

    @property
    def trains(self) -> bool:
        """Whether it is a training."""
        return isinstance(self.task, BuildTask) and self.task.plan.trains

    @property
    def nodes(self) -> int:
        """How many pods do it together."""
        return self.task.nodes if isinstance(self.task, BuildTask) else 1


@dataclass(frozen=True)
class Stage:
    """The stage of the run: the Ready condition's reason and message. `finished`: nothing more happens by itself."""

    reason: Reason
    message: str
    finished: bool = False


@dataclass(frozen=True)
class RetryOrder:
    """What the annotation fettle.dev/retry means for a decision.

    `handled`: the last value that was handled; `retries`: the number of retries, including this one; `acts`: whether this decision starts
    a retry, so that the run begins again.
    """

    handled: str | None
    retries: int
    acts: bool = False
    events: tuple[EventDraft, ...] = ()


@dataclass(frozen=True)
class RunDecision:
    """The desired state. `requests`: all tasks that should exist now, including running ones; `events` are written with the status."""

    requests: tuple[TaskRequest, ...]
    status: OptimizedModelStatus
    events: tuple[EventDraft, ...] = ()
    requeue_seconds: float | None = None
    finished: bool = False
