"""The traffic provider Replicas: a weight is the share of ready pods behind one Service. How many pods each revision gets.

Invariants, whatever is observed:
- stable + canary <= replicas + 1, except while the canary is raised to full size and while a revision goes; pods that a person took
  out of the traffic come on top (`Workload.sparing`);
- no pod is taken from one side before an available one on the other side stands for it (but from a revision that failed:
  that one goes at once when a stable pod is ready);
- within a step nobody grows or shrinks because the other side stumbled: so nothing flaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fettle.plan.rollout.providers.base import Allocation, Demand, Leaving
from fettle.plan.rollout.state import Routes, Workload


def allocate(demand: Demand) -> Allocation:
    """Pods of every revision; nothing is routed."""
    counts: dict[str, int] = {}
    if demand.stable is not None and demand.canary is not None:
        pair = sizes(
            demand.weight,
            demand.replicas,
            demand.stable,
            demand.canary,
            in_force=demand.in_force,
            keep_stable=demand.keep_stable,
            frozen=demand.frozen,
        )
        counts = {demand.stable.revision: pair.stable, demand.canary.revision: pair.canary}
    elif demand.stable is not None:
        counts = {demand.stable.revision: demand.replicas}
    return Allocation({**counts, **retire(demand.leaving, demand.replicas, demand.staying)})


def pending(demand: Demand) -> str | None:
    """The canary's pods for the weight, where they are not all available."""
    canary = demand.canary
    if canary is None or reached(demand.weight, demand.replicas, canary):
        return None
    return f"{canary.available} of {canary.replicas} canary pods are available for weight {demand.weight}"


def actual_weight(revision: str, workloads: Mapping[str, Workload], routes: Routes | None) -> int:
    """The revision's share of ready pods, in percent."""
    total = sum(workload.ready for workload in workloads.values())
    return round(100 * workloads[revision].ready / total) if total and revision in workloads else 0


@dataclass(frozen=True)
class Sizes:
    """Pods wanted."""

    stable: int
    canary: int


def canary_pods(weight: int, replicas: int) -> int:
    """The count nearest to `weight` percent of `replicas`: at least one, and one less than all below 100 (one of one: one)."""
    if weight <= 0 or replicas <= 0:
        return 0
    if weight >= 100:
        return replicas
    return min(max((2 * weight * replicas + 100) // 200, 1), max(replicas - 1, 1))


def reached(weight: int, replicas: int, canary: Workload) -> bool:
    """Whether the canary has the pods for `weight`, available. With no replicas at all only weight 0 is ever reached."""
    return weight <= 0 or (replicas > 0 and canary.steady >= canary_pods(weight, replicas))


def sizes(
    weight: int,
    replicas: int,
    stable: Workload,
    canary: Workload,
    *,
    in_force: int = 0,
    keep_stable: bool = False,
    frozen: bool = False,
) -> Sizes:
    """The next pods on the way to `weight`. `in_force` is the weight that was reached before.

    `keep_stable`: at 100 the stable pods stay until their revision is replaced. `frozen`: the canary gets no more pods than
    it has, or than the weight in force needs; scaling and healing go on.
    """
    most = max(canary.replicas, canary_pods(in_force, replicas)) if frozen else replicas
    if weight >= 100:
        grown = replicas if in_force >= 100 else _grown(replicas, canary)
        return Sizes(_rest(replicas, stable, canary, in_force, keep_stable), min(grown, most))
    target = canary_pods(weight, replicas)
    least = max(replicas - target, min(replicas, 1))
    kept = max(least, min(stable.replicas, replicas - canary.steady))
    room = replicas + 1 - kept if replicas else 0
    needed = min(canary.ready, canary.replicas, max(replicas - stable.steady, 0))  # they stand for missing stable ones
    return Sizes(kept, max(min(target, room, most), needed))


def _grown(replicas: int, canary: Workload) -> int:
    """Pod by pod up to `replicas`."""
    return min(replicas, max(canary.replicas, canary.steady + 1))


def _rest(replicas: int, stable: Workload, canary: Workload, in_force: int, keep_stable: bool) -> int:
    """Stable pods at weight 100: as many as there were, or as full size needs, until the canary has its own."""
    kept = min(stable.replicas, replicas)
    if in_force >= 100 or canary.steady >= replicas:
        return kept if keep_stable else 0
    return max(kept, replicas - canary.steady)


def retire(leaving: Iterable[Leaving], replicas: int, staying: Iterable[Workload]) -> Mapping[str, int]:
    """Pods of the revisions that go. Those that failed go at once when another pod is ready; others stand in until `staying` is full."""
    staying = tuple(staying)
    gap = max(replicas - sum(workload.steady for workload in staying), 0)
    relieved = replicas == 0 or any(workload.ready for workload in staying)
    kept: dict[str, int] = {}
    for revision in leaving:
        workload = revision.workload
        useful = min(workload.ready, workload.replicas)
        count = min(useful, gap)
        if revision.failed:
            count = 0 if relieved else useful
        kept[workload.revision] = count
        gap -= min(count, gap)
    return kept
