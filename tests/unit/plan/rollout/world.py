"""A simulated cluster with fake time: it obeys decisions as the controller does, and its pods become ready when they like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fettle.api.conditions import find
from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.modeldeployment_status import AnalysisWindow, ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan import timestamps
from fettle.plan.events import EventDraft
from fettle.plan.rollout.decide import decide
from fettle.plan.rollout.revision import NotReady
from fettle.plan.rollout.state import (
    DesiredRevision,
    Forget,
    LedgerEntry,
    LedgerMark,
    MarkEntered,
    MarkJudged,
    OpenEntry,
    PodFault,
    RolloutDecision,
    RolloutSnapshot,
    Routes,
    Workload,
)
from fettle.plan.rollout.window_totals import Comparisons, Crash, Doubt, Lost, Observation, PodSamples, Second

START = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = [{"weight": 34}, {"pause": {"seconds": 10}}, {"weight": 67}, {"pause": {"seconds": 10}}, {"weight": 100}]
PAUSES = [{"weight": 34}, {"pause": {}}, {"weight": 67}, {"pause": {}}, {"weight": 100}]
ANALYSIS = {"intervalSeconds": 5, "minRequests": 30, "failureLimit": 2, "successRate": {"min": 0.99}}
DRAIN = timedelta(seconds=3)


def at_weight(weight: int) -> Callable[[World], bool]:
    """Whether the canary is asked to take so much."""
    return lambda world: world.weight == weight


def at_least(pods: int) -> Callable[..., None]:
    """A watcher: never fewer ready pods."""

    def watch(world: World, *_: Any) -> None:
        assert world.serving() >= pods

    return watch


class Killed(Exception):
    """The operator's process ended."""


@dataclass
class Pod:
    """Ready from `ready_at` on (None: never); gone at `gone_at`; `out`: a person's label keeps it from the traffic.

    `counted_since`: it knows nothing of what it counted before. `memory_kills`: at its own limit, since it was last ready.
    """

    revision: str
    born: datetime
    ready_at: datetime | None
    gone_at: datetime | None = None
    out: bool = False
    counted_since: datetime | None = None
    memory_kills: int = 0


@dataclass
class Behaviour:
    """How pods of a revision behave, and what each answers per second."""

    start_seconds: float | None = 4  # None: never ready
    requests: int = 20  # a second and pod
    error_rate: float = 0.0
    milliseconds: float = 5.0
    silent: bool = False
    comparisons: Comparisons = field(default_factory=Comparisons)  # a second and pod
    incomparable: Doubt | None = None
    crashes: tuple[Crash, ...] = ()
    fault: PodFault | None = None


@dataclass
class World:
    """One ModelDeployment and everything around it."""

    spec: dict[str, Any]
    now: datetime = START
    skew: timedelta = timedelta()  # the operator's clock against everybody else's
    min_ready: timedelta = timedelta()  # a pod that is ready this long is available
    generation: int = 1
    wanted: str | NotReady = "a"
    status: ModelDeploymentStatus = field(default_factory=ModelDeploymentStatus)
    annotation: str | None = None
    ledger: list[LedgerEntry] = field(default_factory=list)
    replicas: dict[str, int] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    behaviour: dict[str, Behaviour] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    events: list[EventDraft] = field(default_factory=list)
    started: dict[str, int] = field(default_factory=dict)  # pods ever made, by revision
    rendered: list[str] = field(default_factory=list)  # templates rendered from the spec
    replaces: dict[str, str | None] = field(
        default_factory=dict
    )  # whose clients the pods of a revision must be able to serve
    artifacts: dict[str, str] = field(default_factory=dict)  # by revision, where it is not one of its own
    unfit: set[tuple[str, str]] = field(default_factory=set)  # clients of the first cannot use the second
    judged: dict[str, tuple[AnalysisWindow, ...]] = field(default_factory=dict)  # by ledger line
    writes: int = 0
    kill_after: int | None = None
    watchers: list[Callable[[World, RolloutSnapshot, RolloutDecision], None]] = field(default_factory=list)
    lost: dict[str, tuple[datetime, str]] = field(
        default_factory=dict
    )  # by revision: until when nobody can tell, and why
    crashes: dict[str, list[Crash]] = field(default_factory=dict)  # by revision
    routed: bool = False  # by routes; else every ready pod gets traffic
    propagation: timedelta = timedelta(seconds=2)  # until a route is in force everywhere
    routes: list[tuple[datetime, dict[str, int]]] = field(default_factory=list)  # each, and since when
    _spec: tuple[dict[str, Any], ModelDeploymentSpec] | None = None
    _seconds: dict[str, tuple[Behaviour, dict[int, Second]]] = field(default_factory=dict)  # by revision

    # ------------------------------------------------------------------------------------------------ what a user does

    def ask(self, revision: str | NotReady) -> None:
        """Change the spec so that it asks for `revision`."""
        self.wanted = revision
        self.generation += 1

    def edit(self, **spec: Any) -> None:
        """Change fields of the spec that are no part of the revision."""
        self.spec = {**self.spec, **spec}
        self.generation += 1

    def rollout(self, **fields: Any) -> None:
        """Change fields of spec.rollout."""
        self.edit(rollout={**self.spec.get("rollout", {}), **fields})

    @property
    def weight(self) -> int:
        """Of the canary; 0 without one."""
        return self.status.canary.weight if self.status.canary is not None else 0

    @property
    def waits(self) -> bool:
        """Whether it is for a person to promote."""
        return self.condition("Paused") == ("True", Reason.WAITING_FOR_PROMOTE)

    def order(self, command: str, revision: str, token: str) -> None:
        """Annotate a command."""
        self.annotations[f"fettle.dev/{command}"] = f"{revision}/{token}"

    def behaves(self, revision: str, **how: Any) -> None:
        """Set how pods of `revision` behave from now on (those that exist included)."""
        self.behaviour[revision] = replace(self.behaviour.get(revision, Behaviour()), **how)

    # -------------------------------------------------------------------------------------------- what the cluster does

    def alive(self, revision: str) -> list[Pod]:
        """Pods that are not on their way out."""
        return [pod for pod in self.pods if pod.revision == revision and pod.gone_at is None]

    def ready(self, revision: str) -> int:
        """Ready pods: those that get traffic."""
        how = self.behaviour.get(revision, Behaviour())
        if how.start_seconds is None:
            return 0
        return sum(bool(pod.ready_at and pod.ready_at <= self.now) for pod in self.alive(revision) if not pod.out)

    def available(self, revision: str) -> int:
        """Pods that were ready for a while."""
        since = self.now - self.min_ready
        found = sum(bool(pod.ready_at and pod.ready_at <= since) for pod in self.alive(revision) if not pod.out)
        return min(found, self.ready(revision))

    def serving(self) -> int:
        """Ready pods of all revisions."""
        return sum(self.ready(revision) for revision in self.replicas)

    def lose_pods(self, revision: str) -> None:
        """All its pods are deleted by somebody; their Deployment makes new ones."""
        for pod in self.alive(revision):
            pod.gone_at = self.now + DRAIN
        self._reconcile_pods()

    def lose_pod(self, revision: str) -> None:
        """One of its pods dies at once."""
        for pod in self.alive(revision)[:1]:
            self.pods.remove(pod)
        self._reconcile_pods()

    def unready(self, revision: str, seconds: float) -> None:
        """One of its ready pods is not ready for a while."""
        for pod in [pod for pod in self.alive(revision) if pod.ready_at and pod.ready_at <= self.now][:1]:
            pod.ready_at = self.now + timedelta(seconds=seconds)

    def restart(self, revision: str, *, crashed: bool = False, memory: bool = False) -> None:
        """The container of one of its ready pods is started again, and what it counted is lost.

        `crashed`: by its own fault; `memory`: it was killed at its own memory limit, which is its fault too.
        """
        for pod in self._ready_pods(revision)[:1]:
            seconds = self.behaviour.get(revision, Behaviour()).start_seconds
            pod.ready_at = None if seconds is None else self.now + timedelta(seconds=seconds)
            pod.memory_kills += memory
            self._lose_windows(pod, "its counts from before its container was restarted are lost")
            if crashed or memory:
                text = "killed by the kernel at its memory limit" if memory else "exit code 1"
                self.crashes.setdefault(revision, []).append(Crash(f"{revision}-0", self.now, text))

    def lose_windows(self, revision: str) -> None:
        """One of its ready pods loses its earlier counts."""
        for pod in self._ready_pods(revision)[:1]:
            self._lose_windows(pod, "it no longer has its earlier counts")

    def _ready_pods(self, revision: str) -> list[Pod]:
        return [pod for pod in self.alive(revision) if not pod.out and pod.ready_at and pod.ready_at <= self.now]

    def _lose_windows(self, pod: Pod, why: str) -> None:
        pod.counted_since = self.now
        self.lost[pod.revision] = (self.now, why)

    def take_out(self, revision: str, pods: int = 1) -> None:
        """A person labels so many of its pods that are ready."""
        serving = [pod for pod in self.alive(revision) if not pod.out and pod.ready_at and pod.ready_at <= self.now]
        for pod in serving[:pods]:
            pod.out = True

    def put_back(self) -> None:
        """The labels are taken away again."""
        for pod in self.pods:
            pod.out = False

    def _reconcile_pods(self) -> None:
        self.pods = [pod for pod in self.pods if pod.gone_at is None or pod.gone_at > self.now]
        for revision, count in self.replicas.items():
            # Those that are out are ready like the others: the worst case is that they are the ones that stay.
            alive = sorted(self.alive(revision), key=lambda pod: (pod.ready_at is None, not pod.out, pod.born))
            for pod in alive[count:]:
                pod.gone_at = self.now + DRAIN
            for _ in range(count - len(alive)):
                seconds = self.behaviour.get(revision, Behaviour()).start_seconds
                never = seconds is None or self._refuses(revision)
                self.pods.append(Pod(revision, self.now, None if never else self.now + timedelta(seconds=seconds or 0)))
                self.started[revision] = self.started.get(revision, 0) + 1

    def observation(self, revision: str) -> Observation:
        """What the pods' windows say: every ready pod counted the same each second since it was ready."""
        how = self.behaviour.setdefault(revision, Behaviour())
        made = self._made(revision, how)
        samples, silent = [], []
        for index, pod in enumerate(self.alive(revision)):
            if pod.ready_at is None or pod.ready_at > self.now or pod.out:
                continue
            if how.silent:
                silent.append(f"{revision}-{index}")
                continue
            now = self.now + self.skew  # the figures are told by age, and so on the operator's clock
            ready = pod.ready_at + self.skew
            known = (pod.counted_since or pod.ready_at) + self.skew
            first = max(int(ready.timestamp()), int(known.timestamp()), int(self._window_start().timestamp()))
            counted = (self._second(revision, how, at, made) for at in range(first, int(now.timestamp())))
            seconds = tuple(second for second in counted if second.requests)
            samples.append(PodSamples(f"{revision}-{index}", seconds, 1.0, 1.01, how.incomparable))
        crashes = [replace(crash, at=crash.at + self.skew) for crash in self.crashes.get(revision, ())]
        lost = (
            [Lost((at + self.skew).timestamp(), why) for at, why in [self.lost[revision]]]
            if revision in self.lost
            else []
        )
        return Observation(tuple(samples), tuple(silent), (*how.crashes, *crashes), tuple(lost))

    def _made(self, revision: str, how: Behaviour) -> dict[int, Second]:
        """The seconds that were made before: while a revision behaves as it did, and nothing routes its traffic, they are the same."""
        if self.routed or revision not in self._seconds or self._seconds[revision][0] is not how:
            self._seconds[revision] = how, {}
        return self._seconds[revision][1]

    def _second(self, revision: str, how: Behaviour, at: int, made: dict[int, Second]) -> Second:
        """What each of its pods counted in that second."""
        if at not in made:
            requests = self._requests(revision, how, at)
            bucket = 0 if how.milliseconds <= 1 else 1 + int(how.milliseconds)
            made[at] = Second(at, requests, round(requests * how.error_rate), {bucket: requests}, how.comparisons)
        return made[at]

    def _requests(self, revision: str, how: Behaviour, at: int) -> int:
        """What one of its pods is asked in that second. Where traffic is routed, all the requests are spread by the routes of then."""
        if not self.routed:
            return how.requests
        then = datetime.fromtimestamp(at, UTC) - self.skew
        percent = next((weights for since, weights in reversed(self.routes) if since <= then), {}).get(revision, 0)
        return round(how.requests * self.spec["replicas"] * percent / 100 / max(self.ready(revision), 1))

    def _window_start(self) -> datetime:
        """Since when the operator asks: pods answer with nothing older."""
        canary = self.status.canary
        start = timestamps.read(canary.analysis.window_start) if canary is not None and canary.analysis else None
        return max(start or self.now, self.now + self.skew - timedelta(seconds=60))

    def workload(self, revision: str) -> Workload:
        """As its Deployment's status tells."""
        ready = self.ready(revision)
        return Workload(
            revision,
            self._artifact(revision),
            replicas=self.replicas[revision],
            ready=ready,
            available=self.available(revision),
            pods=len(self.alive(revision)),
            leaving=sum(pod.revision == revision and pod.gone_at is not None for pod in self.pods),
            out=sum(pod.out for pod in self.alive(revision)),
            fault=self.behaviour.get(revision, Behaviour()).fault or self._own_fault(revision),
        )

    def _artifact(self, revision: str) -> str:
        return self.artifacts.get(revision, f"pvc://store/artifacts/{revision}")

    def _refuses(self, revision: str) -> bool:
        """Whether its pods do not start, because clients of the revision that it replaces could not use it."""
        return (self.replaces.get(revision), revision) in self.unfit

    def _own_fault(self, revision: str) -> PodFault | None:
        if self._refuses(revision) and self.alive(revision):
            return PodFault(Reason.SIGNATURE_INCOMPATIBLE, "input x is new", final=True)
        return self._memory_fault(revision)

    def _memory_fault(self, revision: str) -> PodFault | None:
        waiting = [pod.memory_kills for pod in self.alive(revision) if not pod.ready_at or pod.ready_at > self.now]
        kills = max(waiting, default=0)
        return PodFault(Reason.OUT_OF_MEMORY, "killed at its memory limit", final=kills >= 3) if kills else None

    def observed_routes(self) -> Routes | None:
        """As whoever carries the traffic tells."""
        if not self.routed:
            return None
        since, weights = self.routes[-1] if self.routes else (self.now, {})
        left = (since + self.propagation - self.now).total_seconds()
        return Routes(weights, settled=left <= 0, settles_in=left if left > 0 else None)

    def in_force(self) -> list[dict[str, int]]:
        """The routes by which traffic comes now: while one is taken over, the one before it too."""
        taken_over = [index for index, (since, _) in enumerate(self.routes) if since + self.propagation <= self.now]
        return [weights for _, weights in self.routes[max(taken_over, default=0) :]]

    # ------------------------------------------------------------------------------------------- what the operator does

    def _parsed(self) -> ModelDeploymentSpec:
        """The spec, parsed once a change: histories of many passes are quick."""
        if self._spec is None or self._spec[0] is not self.spec:
            whole = {"model": {"ref": {"name": "m", "target": "cpu"}}, **self.spec}
            self._spec = (self.spec, ModelDeploymentSpec.model_validate(whole))
        return self._spec[1]

    def snapshot(self) -> RolloutSnapshot:
        """What a pass sees."""
        wanted = self.wanted
        return RolloutSnapshot(
            namespace="default",
            name="digits",
            generation=self.generation,
            spec=self._parsed(),
            status=self.status,
            wanted=wanted if isinstance(wanted, NotReady) else DesiredRevision(wanted, self._artifact(wanted)),
            now=self.now + self.skew,
            stable_annotation=self.annotation,
            ledger=tuple(self.ledger),
            workloads={revision: self.workload(revision) for revision in self.replicas},
            windows={revision: self.observation(revision) for revision in self.replicas},
            annotations=dict(self.annotations),
            routes=self.observed_routes(),
        )

    def reconcile(self) -> RolloutDecision:
        """One pass. Raises Killed after `kill_after` writes."""
        self._reconcile_pods()
        snapshot = self.snapshot()
        decision = decide(snapshot)
        for watcher in self.watchers:
            watcher(self, snapshot, decision)
        for write in self._writes(snapshot, decision):
            if self.kill_after is not None and self.writes >= self.kill_after:
                self.kill_after = None
                raise Killed
            self.writes += 1
            write()
        self.events += decision.events
        self._reconcile_pods()
        return decision

    def _writes(self, snapshot: RolloutSnapshot, decision: RolloutDecision) -> Iterator[Callable[[], None]]:
        """The API writes of a decision, in the controller's order."""
        for write in decision.ledger:
            if isinstance(write, OpenEntry):
                yield lambda write=write: self._open(write)
        if decision.stable is not None and decision.stable != self.annotation:
            yield lambda: setattr(self, "annotation", decision.stable)
        for write in decision.ledger:
            if not isinstance(write, OpenEntry | Forget):
                yield lambda write=write: self._mark(write)
        yield from self._route(decision.routes)
        changes = [(revision, n) for revision, n in decision.replicas.items() if n != self.replicas.get(revision)]
        for revision, count in sorted(changes, key=lambda one: one[1] < self.replicas.get(one[0], 0)):
            if count or revision in self.replicas or revision in (decision.stable, self._canary(decision)):
                yield lambda revision=revision, count=count: self.replicas.__setitem__(revision, count)
        for revision in decision.remove:
            yield lambda revision=revision: self.replicas.__delitem__(revision)
        for write in decision.ledger:
            if isinstance(write, Forget):
                yield lambda write=write: self.ledger.remove(next(e for e in self.ledger if e.name == write.name))
        if decision.status != snapshot.status:
            yield lambda: setattr(self, "status", decision.status)

    def _route(self, weights: Mapping[str, int]) -> Iterator[Callable[[], None]]:
        if weights and (not self.routes or self.routes[-1][1] != weights):
            yield lambda: self.routes.append((self.now, dict(weights)))

    @staticmethod
    def _canary(decision: RolloutDecision) -> str | None:
        return decision.status.canary.revision if decision.status.canary else None

    def _open(self, write: OpenEntry) -> None:
        name = f"digits-{write.revision}-{write.serial}"
        assert all(entry.name != name for entry in self.ledger)
        if not write.adopt:
            self.rendered.append(write.revision)
            self.replaces[write.revision] = write.replaces
            for pod in self.alive(write.revision):  # its Deployment replaces pods of another template
                pod.gone_at = self.now + DRAIN
        self.ledger.append(LedgerEntry(name, write.serial, write.revision, write.artifact, created=self.now))

    def _mark(self, write: LedgerMark) -> None:
        index = next(index for index, entry in enumerate(self.ledger) if entry.name == write.name)
        if isinstance(write, MarkEntered):
            self.ledger[index] = replace(self.ledger[index], entered=self.now)
        elif isinstance(write, MarkJudged):
            self.judged[write.name] = write.windows
        else:
            self.ledger[index] = replace(self.ledger[index], left=self.now, reason=write.reason, message=write.message)

    def run(self, seconds: float, tick: float = 1.0) -> World:
        """Let time pass, with a pass each `tick`."""
        end = self.now + timedelta(seconds=seconds)
        while self.now < end:
            self.reconcile()
            self.now += timedelta(seconds=tick)
        self.reconcile()
        return self

    def until(self, condition: Callable[[World], bool], limit: float = 300) -> World:
        """Let time pass until `condition` holds."""
        end = self.now + timedelta(seconds=limit)
        self.reconcile()
        while not condition(self):
            assert self.now < end, f"never came: {self.status}"
            self.now += timedelta(seconds=1)
            self.reconcile()
        return self

    # --------------------------------------------------------------------------------------------------- what one reads

    @property
    def stable(self) -> str | None:
        """The stable revision by the annotation."""
        return self.annotation

    @property
    def canary(self) -> str | None:
        """The revision on trial by status."""
        return self.status.canary.revision if self.status.canary else None

    def condition(self, kind: str) -> tuple[str, str]:
        """(status, reason) of a condition."""
        found = find(self.status.conditions, kind)
        assert found is not None
        return found.status.value, found.reason

    def message(self, kind: str) -> str:
        """Message of a condition."""
        found = find(self.status.conditions, kind)
        assert found is not None
        return found.message

    def settled(self) -> bool:
        """Whether no rollout is under way."""
        return self.canary is None and self.condition("Progressing")[0] == "False"

    def exits(self) -> list[tuple[str, Reason | None]]:
        """(revision, reason) of every closed line of the ledger, oldest first."""
        return [(entry.revision, entry.reason) for entry in self.ledger if entry.left is not None]
