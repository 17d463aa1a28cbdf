"""The types in which a rollout is decided: the observed state, and the desired state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from fettle.api.base import GROUP
from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.modeldeployment_status import AnalysisWindow, ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan.events import EventDraft
from fettle.plan.rollout.revision import NotReady
from fettle.plan.rollout.window_totals import Observation

TRAFFIC_LABEL = f"{GROUP}/traffic"  # "on" in every template; set otherwise by hand it takes one pod out of the Service


@dataclass(frozen=True)
class DesiredRevision:
    """The revision the spec asks for."""

    revision: str
    artifact: str  # uri


@dataclass(frozen=True)
class PodFault:
    """Why pods do not become ready. `final`: waiting longer cannot help."""

    reason: Reason
    message: str
    final: bool = False


@dataclass(frozen=True)
class Workload:
    """The Deployment of a revision and its pods. All counts are zero for a revision without a Deployment.

    `ready` and `available` count pods that may get traffic. Pods that a person took `out` of traffic count only in `replicas` and `pods`.
    """

    revision: str
    artifact: str = ""
    replicas: int = 0  # currently requested
    ready: int = 0
    available: int = 0  # ready for a while
    pods: int = 0  # existing, without terminating ones
    leaving: int = 0  # terminating
    out: int = 0  # taken out of traffic by their label
    tls: bool = False  # whether its pods use it
    fault: PodFault | None = None

    @property
    def steady(self) -> int:
        """The number of available pods that will stay: not more than the Deployment requests."""
        return min(self.available, self.replicas)

    def sparing(self, count: int) -> int:
        """The number of pods to request so that `count` pods with traffic stay.

        A Deployment that is scaled down removes any of its ready pods: it does not know which of them are out of traffic.
        """
        return min(count + self.out, self.replicas) if 0 < count < self.replicas else count


def out_of_traffic(pods: int) -> str:
    """The text about pods that a person took out of traffic."""
    return f"{pods} taken out of traffic by the label {TRAFFIC_LABEL}"


@dataclass(frozen=True)
class LedgerEntry:
    """A line of the ledger: one period in which a revision was chosen to serve. It is live until `left` is written."""

    name: str
    serial: int
    revision: str
    artifact: str
    created: datetime
    entered: datetime | None = None  # when its first ready pod got traffic
    left: datetime | None = None
    reason: Reason | None = None
    message: str = ""


@dataclass(frozen=True)
class Routes:
    """The existing routes: percent of the traffic by revision.

    `settled`: the routes have taken effect everywhere. Until then, traffic may still follow the previous routes; `settles_in` is the
    number of seconds after which that is over, if only time has to pass.
    """

    weights: Mapping[str, int]
    settled: bool
    settles_in: float | None = None


@dataclass(frozen=True)
class RolloutSnapshot:
    """Everything that a decision depends on. `annotations` are the ModelDeployment's own: commands and the pause.

    `windows` holds the traffic that pods reported, by revision; it is empty if no pod was asked. `routes` is None if the traffic
    provider uses no routes: then every ready pod gets traffic.
    """

    namespace: str
    name: str
    generation: int
    spec: ModelDeploymentSpec
    status: ModelDeploymentStatus
    wanted: DesiredRevision | NotReady
    now: datetime
    stable_annotation: str | None = None
    ledger: tuple[LedgerEntry, ...] = ()
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    windows: Mapping[str, Observation] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    routes: Routes | None = None

    @property
    def out_of_sight(self) -> bool:
        """Whether the workload of a revision that serves, according to the ledger, cannot be seen.

        It may have been deleted, or it lost the label by which it is watched and its pods still serve.
        """
        serving = {entry.revision for entry in self.ledger if entry.entered is not None and entry.left is None}
        return not serving <= self.workloads.keys()

    def workload(self, revision: str) -> Workload:
        """The revision's workload; with zero counts if there is none."""
        return self.workloads.get(revision) or Workload(revision)

    def routed(self, revision: str) -> bool:
        """Whether the revision's ready pods get traffic."""
        return self.routes is None or self.routes.weights.get(revision, 0) > 0


@dataclass(frozen=True)
class OpenEntry:
    """Add a line. `adopt`: its template is the one that already runs (or ran). Otherwise it is rendered from the spec with current defaults.

    `replaces` is the revision whose clients must be able to use this one; None if nobody asks that.
    """

    serial: int
    revision: str
    artifact: str
    adopt: bool
    replaces: str | None = None


@dataclass(frozen=True)
class MarkEntered:
    """Record that the revision's first pod is ready and gets traffic."""

    name: str


@dataclass(frozen=True)
class MarkLeft:
    """Record that the revision no longer serves, and why."""

    name: str
    reason: Reason
    message: str


@dataclass(frozen=True)
class MarkJudged:
    """Record what the analysis measured, when the canary's rollout has ended."""

    name: str
    windows: tuple[AnalysisWindow, ...]


@dataclass(frozen=True)
class Forget:
    """Remove a line beyond the history limit."""

    name: str


LedgerMark = MarkEntered | MarkLeft | MarkJudged
LedgerWrite = OpenEntry | LedgerMark | Forget


@dataclass(frozen=True)
class RolloutDecision:
    """The desired state.

    `replicas` is the number of pods of each revision that has or should have a workload. The workloads of the revisions in `remove`
    have no pods left and are deleted. `stable` is the revision to write to the main Service's annotation; None writes nothing.
    `routes` is percent of the traffic by revision, 100 in total. Empty means that the routes stay as they are; it is always empty if
    the number of pods determines the weight.
    """

    replicas: Mapping[str, int]
    remove: tuple[str, ...]
    stable: str | None
    ledger: tuple[LedgerWrite, ...]
    status: ModelDeploymentStatus
    events: tuple[EventDraft, ...] = ()
    requeue_seconds: float | None = None
    routes: Mapping[str, int] = field(default_factory=dict)

    def takes_away(self, snapshot: RolloutSnapshot) -> bool:
        """Whether the decision removes capacity or an object, moves traffic, or changes the stable revision. Then the live state is read first.

        The same holds if the workload of a serving revision cannot be seen, because the decision may request fewer pods than exist.
        """
        fewer = any(count < snapshot.workload(revision).replicas for revision, count in self.replicas.items())
        left = any(isinstance(write, MarkLeft | Forget) for write in self.ledger)
        turns = self.stable != snapshot.stable_annotation
        in_force = snapshot.routes.weights if snapshot.routes is not None else {}
        moves = bool(self.routes) and self.routes != in_force
        return fewer or left or bool(self.remove) or turns or moves or snapshot.out_of_sight
