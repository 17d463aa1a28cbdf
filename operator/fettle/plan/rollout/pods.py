"""How many pods of which revision are ready: the counts and their texts."""

from __future__ import annotations

from fettle.api.text import counted, joined
from fettle.plan.rollout.providers.base import Allocation
from fettle.plan.rollout.state import RolloutSnapshot, Workload, out_of_traffic
from fettle.plan.rollout.transition import Transition


def staying(snapshot: RolloutSnapshot, allocation: Allocation) -> dict[str, int]:
    """The number of ready pods of each revision that will stay."""
    return {name: min(load.ready, allocation.replicas.get(name, 0)) for name, load in snapshot.workloads.items()}


def serving(snapshot: RolloutSnapshot, transition: Transition, allocation: Allocation) -> str:
    """'3 pods of stable revision 1f2e ready' or, if other revisions serve too, '2 stable pods and 1 canary pod ready'."""
    ready = staying(snapshot, allocation)
    stable = ready.pop(transition.stable or "", 0)
    canary = ready.pop(transition.canary.revision, 0) if transition.canary is not None else 0
    others = sum(ready.values())
    if not canary and not others:
        return f"{counted(stable, 'pod')} of stable revision {transition.stable} ready"
    kinds = ((stable, "stable pod"), (canary, "canary pod"), (others, "old pod"))
    return f"{joined(counted(count, kind) for count, kind in kinds if count)} ready"


def missing(workload: Workload, replicas: int) -> str:
    """How many of a revision's pods are ready, if they are too few."""
    out = f", {out_of_traffic(workload.out)}" if workload.out else ""
    return f"{workload.ready} of {replicas} pods of revision {workload.revision} are ready{out}"
