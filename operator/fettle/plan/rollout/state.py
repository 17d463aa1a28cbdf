"""The words in which a rollout is decided: what is observed, and what shall be."""

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
    """The Deployment of a revision and its pods. A revision without a Deployment is one of zeros.

    `ready` and `available` are pods that may get traffic: those that a person took `out` by their label are in `replicas` and `pods` only.
    """

    revision: str
    artifact: str = ""
    replicas: int = 0  # asked for so far
    ready: int = 0
    available: int = 0  # ready for a while
    pods: int = 0  # that exist, those on their way out left out
    leaving: int = 0  # on their way out
    out: int = 0  # out of the traffic by their label
    fault: PodFault | None = None

    @property
    def steady(self) -> int:
        """Pods to rely on: available, and not among those that were already told to go."""
        return min(self.available, self.replicas)

    def sparing(self, count: int) -> int:
        """Pods to ask for, so that `count` stay that get traffic.

        Of pods that are ready a Deployment takes any away: it does not see which of them are out.
        """
        return min(count + self.out, self.replicas) if 0 < count < self.replicas else count


def out_of_traffic(pods: int) -> str:
    """What is said of pods that a person took out."""
    return f"{pods} taken out of traffic by the label {TRAFFIC_LABEL}"


@dataclass(frozen=True)
class LedgerEntry:
    """A line of the ledger: once that a revision was chosen to serve. Live until `left` is written."""

    name: str
    serial: int
    revision: str
    artifact: str
    created: datetime
    entered: datetime | None = None  # its first ready pod that traffic is routed to
    left: datetime | None = None
    reason: Reason | None = None
    message: str = ""


@dataclass(frozen=True)
class Routes:
    """The routes that are there: percent of the traffic by revision.

    `settled`: whoever carries the traffic has taken them over everywhere. Until then it may still go where it went before;
    `settles_in` says in how many seconds that is over, where only time is waited for.
    """

    weights: Mapping[str, int]
    settled: bool
    settles_in: float | None = None


@dataclass(frozen=True)
class RolloutSnapshot:
    """Everything a decision may look at. `annotations` are the ModelDeployment's own: commands and the pause.

    `windows` holds what the pods said about their traffic, by revision; empty where nobody was asked. `routes` is None where the
    traffic provider has none: then every ready pod gets traffic.
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
        """Whether the ledger knows of a revision that had traffic and did not leave, and its workload is not seen.

        It may be deleted; or it lost the label by which it is watched, and its pods serve on.
        """
        serving = {entry.revision for entry in self.ledger if entry.entered is not None and entry.left is None}
        return not serving <= self.workloads.keys()

    def workload(self, revision: str) -> Workload:
        """The revision's workload, of zeros where there is none."""
        return self.workloads.get(revision) or Workload(revision)

    def routed(self, revision: str) -> bool:
        """Whether the revision's ready pods get traffic."""
        return self.routes is None or self.routes.weights.get(revision, 0) > 0


@dataclass(frozen=True)
class OpenEntry:
    """Begin a line. `adopt`: its template is what runs (or ran) already; else it is rendered from the spec, with today's defaults."""

    serial: int
    revision: str
    artifact: str
    adopt: bool


@dataclass(frozen=True)
class MarkEntered:
    """Its first pod is ready, and gets traffic."""

    name: str


@dataclass(frozen=True)
class MarkLeft:
    """It serves no more; why."""

    name: str
    reason: Reason
    message: str


@dataclass(frozen=True)
class MarkJudged:
    """Its trial is over; what the analysis saw."""

    name: str
    windows: tuple[AnalysisWindow, ...]


@dataclass(frozen=True)
class Forget:
    """Beyond the history limit."""

    name: str


LedgerMark = MarkEntered | MarkLeft | MarkJudged
LedgerWrite = OpenEntry | LedgerMark | Forget


@dataclass(frozen=True)
class RolloutDecision:
    """What shall be.

    `replicas` holds the pods of each revision that has a workload or shall get one; a revision of `remove` has no pod
    left and its workload goes. `stable` is the revision that the main Service's annotation names; None writes nothing.
    `routes` is percent of the traffic by revision, 100 in all; empty leaves the routes as they are, and there are none
    where pods are the weight.
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
        """Whether capacity or an object goes, traffic moves, or the stable revision changes: then the live state is read first.

        So it is where the workload of a revision that serves is out of sight: what is asked for may be less than there is.
        """
        fewer = any(count < snapshot.workload(revision).replicas for revision, count in self.replicas.items())
        left = any(isinstance(write, MarkLeft | Forget) for write in self.ledger)
        turns = self.stable != snapshot.stable_annotation
        in_force = snapshot.routes.weights if snapshot.routes is not None else {}
        moves = bool(self.routes) and self.routes != in_force
        return fewer or left or bool(self.remove) or turns or moves or snapshot.out_of_sight
