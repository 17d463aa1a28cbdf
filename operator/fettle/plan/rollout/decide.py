"""The decision of a rollout: a pure state machine from the observed state to the desired state; docs/design/rollout.md gives the reasons.

It is called after every change and after every restart, at any point. Whatever was written before, the next decision leads to the
same end. Two facts are durable: the annotation that names the stable revision, and the ledger. The status is rebuilt from them,
except for the canary's step and its times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fettle.api.conditions import PAUSED, ConditionStatus, find
from fettle.api.modeldeployment_status import CanaryStatus
from fettle.api.reasons import Reason
from fettle.plan import timestamps
from fettle.plan.commands import Command
from fettle.plan.events import EventDraft
from fettle.plan.rollout import commands, providers
from fettle.plan.rollout import ledger as rollout_ledger
from fettle.plan.rollout import rollback as rollout_rollback
from fettle.plan.rollout import status as rollout_status
from fettle.plan.rollout.canary import asked_weight, late, look, promoting, resume, steps_of
from fettle.plan.rollout.commands import Orders
from fettle.plan.rollout.ledger import Exit
from fettle.plan.rollout.providers.base import Allocation, Demand, Leaving
from fettle.plan.rollout.revision import NotReady
from fettle.plan.rollout.rollback import Rollback
from fettle.plan.rollout.state import DesiredRevision, MarkLeft, OpenEntry, RolloutDecision, RolloutSnapshot
from fettle.plan.rollout.transition import CanaryDecision, Transition, Wait


@dataclass(frozen=True)
class _Ground:
    """The role of each revision, and the commands, before anything is decided."""

    snapshot: RolloutSnapshot
    stable: str | None
    current: str | None  # the canary so far
    desired: str | None  # what the spec asks for
    target: str | None  # the same, or what it was rolled back to
    held: Wait | None
    failed: Exit | None  # why `target` is not tried; None if a retry was requested in this pass
    failed_before: str | None
    orders: Orders
    rollback: Rollback


def decide(snapshot: RolloutSnapshot) -> RolloutDecision:
    """The desired state at this moment: pods, routes, ledger, status and Events."""
    ground = _survey(snapshot)
    transition = _transition(ground)
    serving = {revision: _artifact(snapshot, revision) for revision in _serving(transition)}
    allocation = _allocation(snapshot, transition)
    kept = ground.rollback.holds.target if ground.rollback.holds else None
    ledger = rollout_ledger.writes(
        snapshot,
        serving,
        transition.exits,
        rendered=ground.desired,
        kept=kept,
        replaced=_replaced_by_canary(ground, transition),
    )
    ledger = (*ledger, *rollout_ledger.judged(snapshot, transition.over))
    values = {**ground.orders.values, **ground.rollback.values}
    status = rollout_status.build(snapshot, transition, values, allocation, ledger)
    opened = tuple(_opened(transition, write) for write in ledger if isinstance(write, OpenEntry))
    exits = tuple(_exit_event(snapshot, write) for write in ledger if isinstance(write, MarkLeft))
    return RolloutDecision(
        replicas=allocation.replicas,
        remove=_empty(snapshot, allocation.replicas, serving),
        stable=transition.stable,
        ledger=ledger,
        status=status,
        events=(
            *_orders(ground),
            *opened,
            *transition.events,
            *exits,
            *rollout_status.transitions(snapshot.status, status),
        ),
        requeue_seconds=rollout_status.next_look(snapshot, transition, status),
        routes=allocation.routes,
    )


def _survey(snapshot: RolloutSnapshot) -> _Ground:
    stable = rollout_ledger.find_stable(snapshot)
    forgotten = snapshot.status.observed_generation is None and stable is not None
    current = rollout_ledger.on_trial(snapshot, stable)
    desired = snapshot.wanted.revision if isinstance(snapshot.wanted, DesiredRevision) else None
    rollback = rollout_rollback.read(snapshot, stable, current, forgotten=forgotten)
    target = rollback.holds.target if rollback.holds is not None and desired is not None else desired
    subjects = {revision for revision in (desired, target, current) if revision is not None}
    orders = commands.read(snapshot.annotations, snapshot.status, subjects, forgotten=forgotten)
    held = _held(snapshot)
    failed = rollout_ledger.failure(snapshot, target, forgotten=forgotten) if target else None
    failed_before = target if failed is not None else None
    if target and orders.has(Command.RETRY, target):
        failed = None
    return _Ground(snapshot, stable, current, desired, target, held, failed, failed_before, orders, rollback)


def _orders(ground: _Ground) -> tuple[EventDraft, ...]:
    """The Events that answer each new command."""
    canary = None if _never_served(ground) else _canary(ground)
    measure = commands.Ground(canary, ground.failed_before, paused=ground.held is not None)
    return (*ground.rollback.events, *commands.events(ground.orders, measure))


def _held(snapshot: RolloutSnapshot) -> Wait | None:
    """Why no rollout may advance; None if it may."""
    if snapshot.spec.paused or commands.paused(snapshot.annotations):
        return Wait(Reason.PAUSED_BY_USER, "paused: the rollout does not advance", hold=True)
    if isinstance(snapshot.wanted, NotReady):
        return Wait(snapshot.wanted.reason, snapshot.wanted.message, hold=True)
    return None


def _transition(ground: _Ground) -> Transition:
    snapshot = ground.snapshot
    if ground.target and ground.target != ground.stable and not ground.held and _never_served(ground):
        return Transition(ground.target, rollback=ground.rollback.holds)
    failed = (ground.target, ground.failed) if ground.target and ground.failed else None
    if ground.target is None and snapshot.status.failed_revision:
        failure = rollout_ledger.failure(snapshot, snapshot.status.failed_revision, forgotten=False)
        failed = (snapshot.status.failed_revision, failure) if failure else None
    canary = _canary(ground)
    if ground.stable is None or canary is None:
        return Transition(
            ground.stable, exits=_exits(ground, None), failed=failed, held=ground.held, rollback=ground.rollback.holds
        )
    return _try(ground, ground.stable, canary)


def _never_served(ground: _Ground) -> bool:
    """Whether no revision has ever been ready. Then there is nothing to compare with, and the steps are skipped."""
    if ground.stable is None:
        return True
    entry = rollout_ledger.live(ground.snapshot).get(ground.stable)
    return entry is not None and entry.entered is None and not ground.snapshot.workload(ground.stable).ready


def _canary(ground: _Ground) -> str | None:
    """The revision that should be the canary; None if there should be none."""
    if ground.held is not None:
        return ground.current
    if ground.target == ground.stable or ground.failed is not None:
        return None
    return ground.target


def _try(ground: _Ground, stable: str, revision: str) -> Transition:
    """The rollout of the canary `revision`, advanced as far as possible in this pass."""
    snapshot = ground.snapshot
    exits = dict(_exits(ground, revision))
    previous = resume(snapshot, revision, _artifact(snapshot, revision))
    blocked = _blocked(snapshot, stable, revision)
    decision = look(snapshot, previous, ground.orders, stable=stable, held=ground.held, blocked=blocked)
    demand = _demand(snapshot, decision, stable, blocked) if decision.wait is not None else None
    if demand is not None:
        progressed = _progressed(snapshot, previous, decision, providers.allocate(snapshot, demand))
        decision = late(decision, snapshot, progressed=progressed)
        if progressed:
            at = {"progressed_at": timestamps.write(snapshot.now)}
            decision = replace(decision, canary=decision.canary.model_copy(update=at))
    if decision.exit is not None:
        exits[revision] = decision.exit
        failed = (revision, decision.exit)
        return Transition(
            stable, exits=exits, failed=failed, held=ground.held, rollback=ground.rollback.holds, over=decision.canary
        )
    if decision.promoted:
        exits[stable] = _replaced(ground, revision)
        said = EventDraft(
            "Normal", Reason.SERVING, f"canary {revision} was promoted and is now stable", previous.started_at
        )
        events = (*decision.events, said)
        return Transition(revision, exits=exits, events=events, rollback=ground.rollback.holds, over=decision.canary)
    return Transition(
        stable, decision, demand, exits, held=ground.held, events=decision.events, rollback=ground.rollback.holds
    )


def _replaced_by_canary(ground: _Ground, transition: Transition) -> str | None:
    """The revision whose clients the canary must be able to serve: stable.

    None without a canary, if both serve the same artifact, if the canary has served before, so that nothing keeps people from going back,
    and if it was refused for its inputs and outputs and a person then ordered to try it again.
    """
    canary, stable, snapshot = transition.canary, transition.stable, ground.snapshot
    if canary is None or stable is None or canary.artifact == _artifact(snapshot, stable):
        return None
    served = any(entry.entered for entry in snapshot.ledger if entry.revision == canary.revision)
    ordered = commands.latest(ground.orders, snapshot.status, Command.RETRY) == canary.revision
    insisted = ordered and rollout_ledger.refused(snapshot, canary.revision)
    return None if served or insisted else stable


def _demand(snapshot: RolloutSnapshot, decision: CanaryDecision, stable: str, blocked: bool) -> Demand:
    """What the canary needs from the traffic provider at its current step."""
    canary, steps = decision.canary, steps_of(snapshot)
    return replace(
        providers.demand(snapshot, stable),
        canary=snapshot.workload(canary.revision),
        weight=0 if blocked else asked_weight(steps, canary.step),
        in_force=canary.weight,
        keep_stable=promoting(steps, canary.step),
        frozen=decision.wait is not None and decision.wait.hold,
    )


def _progressed(
    snapshot: RolloutSnapshot, before: CanaryStatus, decision: CanaryDecision, allocation: Allocation
) -> bool:
    """Whether the rollout made progress in this pass. The end of a pause counts as progress: paused time does not count against the deadline."""
    after = decision.canary
    moved = (after.step, after.step_started_at) != (before.step, before.step_started_at)
    paused = find(snapshot.status.conditions, PAUSED)
    was_held = paused is not None and paused.status is ConditionStatus.TRUE
    resumed = was_held and not (decision.wait is not None and decision.wait.hold)
    grown = allocation.replicas[after.revision] > before.replicas
    return moved or grown or resumed


def _exits(ground: _Ground, canary: str | None) -> Mapping[str, Exit]:
    """Why each revision that is neither stable nor the canary is removed."""
    entries = rollout_ledger.live(ground.snapshot)
    stable = entries.get(ground.stable or "")
    exits: dict[str, Exit] = {}
    for revision, entry in entries.items():
        if revision in (ground.stable, canary):
            continue
        if stable is not None and entry.serial < stable.serial:  # a promotion that was cut short
            exits[revision] = _replaced(ground, stable.revision)
        elif ground.target == ground.stable:
            exits[revision] = _gone_back(ground, stable.revision if stable else "")
        else:
            exits[revision] = Exit(Reason.SUPERSEDED, f"the spec asks for revision {canary or ground.target}")
    return exits


def _replaced(ground: _Ground, revision: str) -> Exit:
    """Why the stable revision is removed when `revision` is promoted."""
    if ground.rollback.holds is not None and ground.rollback.holds.target == revision:
        return _gone_back(ground, revision)
    return Exit(Reason.SUPERSEDED, f"revision {revision} was promoted")


def _gone_back(ground: _Ground, revision: str) -> Exit:
    holds = ground.rollback.holds
    text = f"{'the command rollback-to' if holds else 'the spec'} went back to revision {revision}"
    return Exit(Reason.ROLLED_BACK, text)


def _serving(transition: Transition) -> list[str]:
    canary = transition.canary.revision if transition.canary is not None else None
    return [revision for revision in (transition.stable, canary) if revision is not None]


def _blocked(snapshot: RolloutSnapshot, stable: str, canary: str) -> bool:
    """Whether the pods of a previous canary are still needed, because stable pods are not ready yet."""
    leaving = tuple(other for other in _leaving(snapshot, {stable, canary}, {}) if not other.failed)
    if not leaving or not snapshot.workload(stable).ready:
        return False
    kept = providers.allocate(snapshot, replace(providers.demand(snapshot, stable), leaving=leaving)).replicas
    return any(kept[other.workload.revision] for other in leaving)


def _leaving(snapshot: RolloutSnapshot, serving: set[str], exits: Mapping[str, Exit]) -> list[Leaving]:
    """Workloads of revisions that no longer serve, newest first."""

    def why(revision: str) -> Exit | None:
        entry = rollout_ledger.newest(snapshot.ledger, revision)
        closed = entry is not None and entry.left is not None and entry.reason is not None
        return exits.get(revision) or (Exit(entry.reason, "") if closed and entry and entry.reason else None)

    def age(revision: str) -> int:
        entry = rollout_ledger.newest(snapshot.ledger, revision)
        return entry.serial if entry is not None else 0

    gone = sorted(snapshot.workloads.keys() - serving, key=age, reverse=True)
    return [Leaving(snapshot.workloads[old], failed=bool((left := why(old)) and left.failed)) for old in gone]


def _allocation(snapshot: RolloutSnapshot, transition: Transition) -> Allocation:
    """The number of pods of every revision that has or should have a workload, and the routes."""
    demand = transition.demand or providers.demand(snapshot, transition.stable)
    staying = {workload.revision for workload in demand.staying}
    leaving = tuple(_leaving(snapshot, staying, transition.exits))
    allocation = providers.allocate(snapshot, replace(demand, leaving=leaving))
    pods = {revision: snapshot.workload(revision).sparing(count) for revision, count in allocation.replicas.items()}
    return replace(allocation, replicas=pods)


def _empty(snapshot: RolloutSnapshot, replicas: Mapping[str, int], serving: Mapping[str, str]) -> tuple[str, ...]:
    """Revisions whose workloads should have no pods, and have none: they can be deleted."""
    return tuple(
        revision
        for revision, workload in sorted(snapshot.workloads.items())
        if revision not in serving
        and not any((replicas.get(revision), workload.replicas, workload.pods, workload.leaving))
    )


def _artifact(snapshot: RolloutSnapshot, revision: str) -> str:
    wanted = snapshot.wanted
    if isinstance(wanted, DesiredRevision) and wanted.revision == revision:
        return wanted.artifact
    entry = rollout_ledger.newest(snapshot.ledger, revision)
    return entry.artifact if entry is not None else snapshot.workload(revision).artifact


def _opened(transition: Transition, write: OpenEntry) -> EventDraft:
    first = write.revision == transition.stable
    reason = Reason.DEPLOYING if first else Reason.CANARY_RUNNING
    role = "is deployed" if first else "is the new canary"
    stays = "" if first else f"; revision {transition.stable} stays stable"
    text = f"revision {write.revision} (artifact {write.artifact}) {role}{stays}"
    return EventDraft("Normal", reason, text, str(write.serial))


def _exit_event(snapshot: RolloutSnapshot, write: MarkLeft) -> EventDraft:
    entry = next(entry for entry in snapshot.ledger if entry.name == write.name)
    kind = "Warning" if Exit(write.reason, write.message).failed else "Normal"
    return EventDraft(kind, write.reason, f"revision {entry.revision} was removed: {write.message}", str(entry.serial))
