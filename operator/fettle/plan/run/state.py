"""The words in which an optimization run is decided: what is known, and what is wanted next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from fettle.api.conditions import find
from fettle.api.optimizedmodel import OptimizedModelSpec, TargetSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.progress import TrainingStatus
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, MeasureReport, PrepareReport, PublishReport
from fettle.api.task import SECONDS_PER_CANDIDATE, AnyTask, BuildTask
from fettle.plan.events import EventDraft

AnyReport = PrepareReport | BuildReport | MeasureReport | PublishReport


class TaskPhase(StrEnum):
    """Where a task stands: its Job's (or process's) state."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class TaskState:
    """What is known of one task. `attempt` counts from 0; a FAILED attempt carries reason, message and whether another may succeed.

    RUNNING with a reason: it exists or is wanted, and waits for something outside (a node, a quota, a claim, an image).
    SUCCEEDED without a report: its answer went with its log; the next attempt answers from the store.
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
    """What keeps pods off a node that do not tolerate it."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


@dataclass(frozen=True)
class NodeOffer:
    """What a node offers to pods that want a GPU. `resources`: those of NVIDIA's device plugin that it can allocate."""

    name: str
    resources: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    schedulable: bool = True

    @property
    def architecture(self) -> str | None:
        """Compute capability of its GPUs; None where no label says it."""
        major, minor = self.labels.get(MAJOR, ""), self.labels.get(MINOR, "")
        return f"sm{major}{minor}" if major.isdigit() and minor.isdigit() else None

    @property
    def product(self) -> str:
        """Name of its GPUs."""
        return self.labels.get(PRODUCT, "a GPU without labels")

    @property
    def memory(self) -> int:
        """Memory of one of its GPUs, in MiB; 0 where no label says it."""
        text = self.labels.get(MEMORY, "")
        return int(text) if text.isdigit() else 0

    @property
    def offer(self) -> str:
        """'nvidia.com/gpu: 4 (Tesla-T4, sm75)'."""
        resources = ", ".join(f"{name}: {count}" for name, count in sorted(self.resources.items()))
        return f"{resources} ({', '.join(filter(None, (self.product, self.architecture)))})"


@dataclass(frozen=True)
class RunSnapshot:
    """Everything a decision may look at. `tasks` maps task hash -> newest attempt. `nodes` are those that may be read, None where none may be
    or nobody asked."""

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
        """Whether a run of this generation wrote the status. Of a spec that could not be read there was no run."""
        ready = find(self.status.conditions, "Ready")
        readable = ready is None or ready.reason != Reason.INVALID_SPEC
        return readable and self.status.observed_generation == self.generation


@dataclass(frozen=True)
class TaskRequest:
    """A task that shall be running or done. `target` is set for those that must run on that target's nodes."""

    task: AnyTask
    task_hash: str
    attempt: int
    stage: str  # prepare, build, measure, publish
    label: str  # for a person: "measure cpu", "build int8-static openvino"
    deadline_seconds: int
    target: TargetSpec | None = None

    @property
    def trains(self) -> bool:
        """Whether it is a training."""
        return isinstance(self.task, BuildTask) and self.task.plan.trains


@dataclass(frozen=True)
class Stage:
    """Where the run stands: the Ready condition's reason and message. `finished`: nothing more will happen by itself."""

    reason: Reason
    message: str
    finished: bool = False


@dataclass(frozen=True)
class RetryOrder:
    """What the annotation fettle.dev/retry means for a decision.

    `handled`: the newest value that needs no more thought; `retries`: how often something was tried again, this time
    included; `acts`: whether this decision does it, so that the run begins anew.
    """

    handled: str | None
    retries: int
    acts: bool = False
    events: tuple[EventDraft, ...] = ()


@dataclass(frozen=True)
class RunDecision:
    """What shall be. `requests` are all tasks that shall exist now (running ones included); `events` go with the status write."""

    requests: tuple[TaskRequest, ...]
    status: OptimizedModelStatus
    events: tuple[EventDraft, ...] = ()
    requeue_seconds: float | None = None
    finished: bool = False
