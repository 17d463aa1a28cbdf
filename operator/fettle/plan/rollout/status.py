"""The status of a ModelDeployment, derived from a decision: the stable revision, the canary, the conditions, the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fettle.api.base import MODEL_DEPLOYMENT_LABEL
from fettle.api.conditions import (
    DEGRADED,
    PAUSED,
    PROGRESSING,
    READY,
    RECONCILING,
    STALLED,
    Condition,
    ConditionStatus,
    find,
    with_condition,
)
from fettle.api.modeldeployment_status import (
    Address,
    CanaryStatus,
    ModelDeploymentStatus,
    RevisionRecord,
    RevisionStatus,
)
from fettle.api.reasons import Reason
from fettle.plan import timestamps
from fettle.plan.commands import Command, command_line
from fettle.plan.events import EventDraft
from fettle.plan.rollout import analysis, pods
from fettle.plan.rollout import commands as rollout_commands
from fettle.plan.rollout import ledger as rollout_ledger
from fettle.plan.rollout.canary import asked_weight, steps_of
from fettle.plan.rollout.providers import provider
from fettle.plan.rollout.providers.base import Allocation
from fettle.plan.rollout.state import (
    DesiredRevision,
    Forget,
    LedgerWrite,
    MarkEntered,
    MarkLeft,
    PodFault,
    RolloutSnapshot,
    out_of_traffic,
)
from fettle.plan.rollout.transition import Transition

HTTP_PORT = 8080
MOST_RECORDS = 100
_GOES_ON = {Reason.CANARY_RUNNING, Reason.MODEL_NOT_READY}  # these waits end by themselves


@dataclass(frozen=True)
class _Said:
    """A condition to set: whether it is True, its reason and its message."""

    holds: bool
    reason: Reason
    message: str = ""


def build(
    snapshot: RolloutSnapshot,
    transition: Transition,
    commands: Mapping[Command, str],
    allocation: Allocation,
    ledger: Iterable[LedgerWrite],
) -> ModelDeploymentStatus:
    """The whole status after this decision. `commands` are the values of the commands that it handled, as they were given."""
    handled, last = rollout_commands.handled(snapshot.status, commands)
    stable = _stable(snapshot, transition, allocation.replicas)
    return ModelDeploymentStatus(
        observed_generation=snapshot.generation,
        replicas=sum(workload.pods for workload in snapshot.workloads.values()),
        ready_replicas=sum(workload.ready for workload in snapshot.workloads.values()),
        selector=f"{MODEL_DEPLOYMENT_LABEL}={snapshot.name}",
        conditions=_conditions(snapshot, transition, allocation),
        address=Address(url=_url(snapshot, stable.revision)) if stable else None,
        stable=stable,
        canary=_canary(snapshot, transition, allocation.replicas),
        revisions=_records(snapshot, ledger),
        last_command=last,
        commands=handled,
        desired_revision=snapshot.wanted.revision if isinstance(snapshot.wanted, DesiredRevision) else None,
        rollback=transition.rollback,
        failed_revision=transition.failed[0] if transition.failed else None,
    )


def _url(snapshot: RolloutSnapshot, stable: str) -> str:
    """The URL for clients inside the cluster: as the stable revision's pods answer, or will where there are none yet."""
    asked, serving = snapshot.spec.server.tls is not None, snapshot.workloads.get(stable)
    scheme = "https" if (asked if serving is None else serving.tls) else "http"
    return f"{scheme}://{snapshot.name}.{snapshot.namespace}.svc:{HTTP_PORT}"


def _stable(snapshot: RolloutSnapshot, transition: Transition, replicas: Mapping[str, int]) -> RevisionStatus | None:
    if transition.stable is None:
        return None
    entry = rollout_ledger.newest(snapshot.ledger, transition.stable)
    workload = snapshot.workload(transition.stable)
    artifact = entry.artifact if entry else getattr(snapshot.wanted, "artifact", "") or workload.artifact
    return RevisionStatus(
        revision=transition.stable, artifact=artifact, replicas=replicas.get(transition.stable, 0), ready=workload.ready
    )


def _canary(snapshot: RolloutSnapshot, transition: Transition, replicas: Mapping[str, int]) -> CanaryStatus | None:
    if transition.canary is None:
        return None
    revision = transition.canary.revision
    return transition.canary.model_copy(
        update={
            "replicas": replicas.get(revision, 0),
            "ready": snapshot.workload(revision).ready,
            "actual_weight": provider(snapshot).actual_weight(revision, snapshot.workloads, snapshot.routes),
        }
    )


def _records(snapshot: RolloutSnapshot, ledger: Iterable[LedgerWrite]) -> tuple[RevisionRecord, ...]:
    """The ledger after this decision: revisions that have served, and those that were removed without ever serving."""
    now = snapshot.now
    entered = {write.name: now for write in ledger if isinstance(write, MarkEntered)}
    left = {write.name: write for write in ledger if isinstance(write, MarkLeft)}
    forgotten = {write.name for write in ledger if isinstance(write, Forget)}
    records = []
    for entry in sorted(snapshot.ledger, key=lambda entry: entry.serial):
        since = entry.entered or entered.get(entry.name)
        leaves = left.get(entry.name)
        until = entry.left or (now if leaves else None)
        reason = entry.reason or (leaves.reason if leaves else None)
        if entry.name in forgotten or (since is None and until is None):
            continue
        records.append(
            RevisionRecord(
                revision=entry.revision,
                artifact=entry.artifact,
                entered=timestamps.write(since) if since else None,
                left=timestamps.write(until) if until else None,
                reason=reason,
            )
        )
    return tuple(records[-MOST_RECORDS:])


# ------------------------------------------------------------------------------------------------------------ conditions


def _conditions(snapshot: RolloutSnapshot, transition: Transition, allocation: Allocation) -> tuple[Condition, ...]:
    stuck = _stuck(snapshot, transition, allocation)
    said = {
        READY: _ready(snapshot, transition, allocation, stuck),
        PROGRESSING: _progressing(snapshot, transition, allocation, stuck),
        DEGRADED: _degraded(transition, stuck),
        PAUSED: _paused(transition),
    }
    said[STALLED] = _stalled(transition, stuck)
    said[RECONCILING] = _reconciling(snapshot, transition, said)
    conditions = snapshot.status.conditions
    for kind, condition in said.items():
        conditions = with_condition(
            conditions,
            kind,
            condition.holds,
            condition.reason,
            condition.message,
            generation=snapshot.generation,
            now=timestamps.write(snapshot.now),
        )
    return conditions


def _stuck(snapshot: RolloutSnapshot, transition: Transition, allocation: Allocation) -> _Said | None:
    """Why the stable revision does not start to serve: a permanent fault, or no ready pod or no route within the deadline; None if it does."""
    if transition.stable is None:
        return None
    workload = snapshot.workload(transition.stable)
    unrouted = _unrouted(snapshot, allocation) if workload.ready >= snapshot.spec.replicas else None
    if workload.ready >= snapshot.spec.replicas and unrouted is None:
        return None
    fault = workload.fault
    if fault is not None and fault.final:
        return _Said(True, fault.reason, fault.message)
    ends = first_deadline(snapshot, transition)
    if ends is None or snapshot.now < ends:
        return None
    seconds = snapshot.spec.rollout.progress_deadline_seconds
    if unrouted is not None:
        return _Said(True, Reason.PROGRESS_DEADLINE_EXCEEDED, f"{unrouted} after {seconds} s")
    text = f"{workload.ready} of {snapshot.spec.replicas} pods became ready in {seconds} s"
    return _Said(
        True,
        fault.reason if fault else Reason.PROGRESS_DEADLINE_EXCEEDED,
        f"{text}: {fault.message}" if fault else text,
    )


def first_deadline(snapshot: RolloutSnapshot, transition: Transition) -> datetime | None:
    """The deadline of a first deployment; None if the stable revision has already served."""
    entry = rollout_ledger.newest(snapshot.ledger, transition.stable) if transition.stable else None
    if entry is None or entry.entered is not None:
        return None
    return entry.created + timedelta(seconds=snapshot.spec.rollout.progress_deadline_seconds)


def _ready(snapshot: RolloutSnapshot, transition: Transition, allocation: Allocation, stuck: _Said | None) -> _Said:
    """Whether the requested number of pods is ready and will stay. After a rollback, the stable revision has time to return to full size."""
    asked = snapshot.spec.replicas
    ready = sum(pods.staying(snapshot, allocation).values())
    if transition.stable is None:
        held = transition.held
        return _Said(
            False, held.reason if held else Reason.DEPLOYING, held.message if held else "no revision is serving yet"
        )
    if ready >= asked and (unrouted := _unrouted(snapshot, allocation)) is not None:
        return replace(stuck, holds=False) if stuck is not None else _Said(False, Reason.DEPLOYING, unrouted)
    if ready >= asked:
        text = pods.serving(snapshot, transition, allocation) if asked else "scaled to 0"
        return _Said(True, Reason.SERVING, text)
    if stuck is not None:
        return _Said(False, stuck.reason, stuck.message)
    fault, out = (
        snapshot.workload(transition.stable).fault,
        sum(workload.out for workload in snapshot.workloads.values()),
    )
    text = f"{ready} of {asked} pods are ready" + (f", {out_of_traffic(out)}" if out else "")
    text += f": {fault.message}" if fault else ""
    ends = regrown_by(snapshot, transition)
    if ends is not None and snapshot.now < ends:
        return _Said(True, Reason.DEPLOYING, f"{text}; revision {transition.stable} is being scaled back up")
    return _Said(False, Reason.DEPLOYING, text)


def _unrouted(snapshot: RolloutSnapshot, allocation: Allocation) -> str | None:
    """Why ready pods do not get all of the traffic, if the provider uses routes; None if they get all of it."""
    if not allocation.routes:
        return None
    in_force = snapshot.routes.weights if snapshot.routes is not None else {}
    served = sum(percent for revision, percent in in_force.items() if snapshot.workload(revision).ready)
    return f"{served} % of the traffic is routed to ready pods" if served < 100 else None


def regrown_by(snapshot: RolloutSnapshot, transition: Transition) -> datetime | None:
    """Until when missing pods are acceptable, because a canary was removed and the stable revision is scaled back up; otherwise None.

    The previous Ready condition shows whether this is still going on: after full size was reached, a lost pod counts as missing again.
    """
    before = find(snapshot.status.conditions, READY)
    serves = transition.stable is not None and snapshot.workload(transition.stable).ready > 0
    if before is None or before.status is not ConditionStatus.TRUE or not serves:
        return None
    canary = snapshot.status.canary
    staying = {transition.stable, transition.canary.revision if transition.canary else None}
    begins = canary is not None and canary.revision not in staying
    if not begins and before.reason != Reason.DEPLOYING:
        return None
    left = max((entry.left for entry in snapshot.ledger if entry.left is not None), default=snapshot.now)
    since = snapshot.now if transition.exits else left
    return since + timedelta(seconds=snapshot.spec.rollout.progress_deadline_seconds)


def _progressing(
    snapshot: RolloutSnapshot, transition: Transition, allocation: Allocation, stuck: _Said | None
) -> _Said:
    if transition.decision is not None and transition.decision.wait is not None:
        wait, canary = transition.decision.wait, transition.decision.canary
        asked = asked_weight(steps_of(snapshot), canary.step)
        reason = wait.reason
        if reason is Reason.CANARY_RUNNING and asked >= 100:
            reason = Reason.PROMOTING
        return _Said(True, reason, f"canary {canary.revision}: {wait.message}")
    if transition.held is not None:
        return _Said(False, transition.held.reason, transition.held.message)
    if transition.failed is not None:
        revision, failure = transition.failed
        retry = command_line(Command.RETRY, snapshot.namespace, snapshot.name)
        return _Said(
            False,
            failure.reason,
            f"revision {revision} is not tried again until the spec changes or you run {retry}: {failure.message}",
        )
    if stuck is not None:
        return _Said(False, stuck.reason, stuck.message)
    if transition.stable is not None and snapshot.workload(transition.stable).ready < snapshot.spec.replicas:
        return _Said(True, Reason.DEPLOYING, pods.missing(snapshot.workload(transition.stable), snapshot.spec.replicas))
    if (unrouted := _unrouted(snapshot, allocation)) is not None:
        return _Said(True, Reason.DEPLOYING, unrouted)
    if transition.rollback is not None:
        back = transition.rollback
        text = f"rolled back from revision {back.desired} to {back.target} by rollback-to, until the spec asks for another revision"
        return _Said(False, Reason.ROLLED_BACK, text)
    return _Said(False, Reason.SERVING)


def _degraded(transition: Transition, stuck: _Said | None) -> _Said:
    if transition.failed is not None:
        revision, failure = transition.failed
        return _Said(True, failure.reason, f"revision {revision}: {failure.message}")
    return stuck or _Said(False, Reason.SERVING if transition.stable else Reason.DEPLOYING)


def _paused(transition: Transition) -> _Said:
    """Whether the rollout needs a person or a new spec to continue. A rollout that waits for its model continues by itself."""
    wait = transition.decision.wait if transition.decision is not None else transition.held
    if wait is not None and wait.hold and wait.reason not in _GOES_ON:
        return _Said(True, wait.reason, wait.message)
    return _Said(False, Reason.SERVING if transition.stable else Reason.DEPLOYING)


def _stalled(transition: Transition, stuck: _Said | None) -> _Said:
    """Whether nothing improves until somebody acts. A running canary may be what repairs a stable revision that does not start."""
    held = transition.held
    if transition.decision is not None and (wait := transition.decision.wait) is not None:
        failed = wait.hold and wait.reason is Reason.ANALYSIS_FAILED  # onFailure: Pause
        return _Said(failed, wait.reason, wait.message if failed else "")
    if transition.failed is None and held is not None and held.reason is Reason.INVALID_SPEC:
        return _Said(True, held.reason, held.message)
    return _degraded(transition, stuck)


def _reconciling(snapshot: RolloutSnapshot, transition: Transition, said: Mapping[str, _Said]) -> _Said:
    """Whether something is in progress or waiting: pods that start, a canary on its steps, a pause, a model that is not ready yet."""
    ready, progressing, held = said[READY], said[PROGRESSING], transition.held
    if said[STALLED].holds:
        return _Said(False, said[STALLED].reason)
    if progressing.reason is Reason.DEPLOYING and (fault := _kept_out(snapshot, transition)) is not None:
        return _Said(True, fault.reason, f"{progressing.message}: {fault.message}")
    if progressing.holds or not ready.holds:
        return replace(progressing if progressing.holds else ready, holds=True)
    if held is not None and transition.stable != _target(snapshot, transition):
        return _Said(True, held.reason, held.message)
    return _Said(False, ready.reason)


def _kept_out(snapshot: RolloutSnapshot, transition: Transition) -> PodFault | None:
    """Why pods of the stable revision are missing, such as a quota; None if they are only starting, or none is missing."""
    workload = snapshot.workload(transition.stable or "")
    return workload.fault if workload.ready < snapshot.spec.replicas else None


def _target(snapshot: RolloutSnapshot, transition: Transition) -> str | None:
    """The revision that should finally serve; None if that is not known yet."""
    if not isinstance(snapshot.wanted, DesiredRevision):
        return None
    return transition.rollback.target if transition.rollback is not None else snapshot.wanted.revision


def transitions(before: ModelDeploymentStatus, after: ModelDeploymentStatus) -> tuple[EventDraft, ...]:
    """Events for conditions whose status or reason changed."""
    events = []
    for kind, tells in ((PAUSED, True), (READY, True), (READY, False)):
        old, new = find(before.conditions, kind), find(after.conditions, kind)
        status = ConditionStatus.TRUE if tells else ConditionStatus.FALSE
        if new is None or new.status is not status:
            continue
        if old is not None and (old.status, old.reason) == (new.status, new.reason):
            continue
        if old is None and new.reason == Reason.DEPLOYING:  # the ledger's line said so already
            continue
        calm = new.reason in (Reason.SERVING, Reason.DEPLOYING, Reason.WAITING_FOR_PROMOTE, Reason.PAUSED_BY_USER)
        type_ = "Normal" if calm else "Warning"
        events.append(EventDraft(type_, Reason(new.reason), new.message, f"{kind} {new.last_transition_time}"))
    return tuple(events)


def next_look(snapshot: RolloutSnapshot, transition: Transition, status: ModelDeploymentStatus) -> float | None:
    """Seconds until the passing of time may change the decision; None if only an event can change it."""
    times: list[datetime] = []
    wait = transition.decision.wait if transition.decision is not None else None
    if wait is not None and wait.until is not None:
        times.append(wait.until)
    spec = snapshot.spec.rollout.analysis
    if spec is not None and status.canary is not None and status.canary.analysis is not None:
        times.append(analysis.next_look(spec, status.canary.analysis, snapshot.now))
    ends = first_deadline(snapshot, transition)
    stable = transition.stable or ""
    if ends is not None and (snapshot.workload(stable).ready < snapshot.spec.replicas or not snapshot.routed(stable)):
        times.append(ends)
    regrown = regrown_by(replace(snapshot, status=status), transition)
    if regrown is not None:
        times.append(regrown)
    if snapshot.routes is not None and snapshot.routes.settles_in is not None:
        times.append(snapshot.now + timedelta(seconds=snapshot.routes.settles_in))
    ahead = [seconds for at in times if (seconds := (at - snapshot.now).total_seconds()) > 0]
    return max(min(ahead), 0.2) if ahead else None
