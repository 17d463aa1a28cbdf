"""The traffic provider Replicas: the weight is the share of ready pods behind one Service. It decides how many pods each revision gets.

Invariants, whatever is observed:
- stable + canary <= replicas + 1, except while the canary is scaled to full size and while a revision is removed. Pods that a person took
  out of traffic are additional (`Workload.sparing`).
- No pod is removed from one side before an available pod of the other side replaces it. The exception is a revision that failed: it is
  removed as soon as a stable pod is ready.
- Within a step, neither side grows or shrinks because the other side lost a pod, so nothing flaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fettle.plan.rollout.providers.base import Allocation, Demand, Leaving
from fettle.plan.rollout.state import Routes, Workload


def allocate(demand: Demand) -> Allocation:
    """The number of pods of every revision; there are no routes."""
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
    """How many of the canary's pods are available, if they are too few for the weight; otherwise None."""
    canary = demand.canary
    if canary is None or reached(demand.weight, demand.replicas, canary):
        return None
    return f"{canary.available} of {canary.replicas} canary pods are available"


def actual_weight(revision: str, workloads: Mapping[str, Workload], routes: Routes | None) -> int:
    """The revision's share of ready pods, in percent."""
    total = sum(workload.ready for workload in workloads.values())
    return round(100 * workloads[revision].ready / total) if total and revision in workloads else 0


@dataclass(frozen=True)
class Sizes:
    """The desired number of pods."""

    stable: int
    canary: int


def canary_pods(weight: int, replicas: int) -> int:
    """The number nearest to `weight` percent of `replicas`: at least one, and below weight 100 at most `replicas` - 1 (of a single replica: one)."""
    if weight <= 0 or replicas <= 0:
        return 0
    if weight >= 100:
        return replicas
    return min(max((2 * weight * replicas + 100) // 200, 1), max(replicas - 1, 1))


def reached(weight: int, replicas: int, canary: Workload) -> bool:
    """Whether the canary has enough available pods for `weight`. With zero replicas, only weight 0 is ever reached."""
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
    """The next number of pods of each side on the way to `weight`. `in_force` is the last weight that was reached.

    `keep_stable`: at weight 100, the stable pods stay until their revision is replaced. `frozen`: the canary gets no more pods than it
    has, or than the weight in force needs. Scaling and the replacement of lost pods continue.
    """
    most = max(canary.replicas, canary_pods(in_force, replicas)) if frozen else replicas
    if weight >= 100:
        grown = replicas if in_force >= 100 else _grown(replicas, canary)
        return Sizes(_rest(replicas, stable, canary, in_force, keep_stable), min(grown, most))
    target = canary_pods(weight, replicas)
    least = max(replicas - target, min(replicas, 1))
    kept = max(least, min(stable.replicas, replicas - canary.steady))
    room = replicas + 1 - kept if replicas else 0
    needed = min(canary.ready, canary.replicas, max(replicas - stable.steady, 0))  # they replace missing stable pods
    return Sizes(kept, max(min(target, room, most), needed))


def _grown(replicas: int, canary: Workload) -> int:
    """The canary's next size, one pod at a time up to `replicas`."""
    return min(replicas, max(canary.replicas, canary.steady + 1))


def _rest(replicas: int, stable: Workload, canary: Workload, in_force: int, keep_stable: bool) -> int:
    """The number of stable pods at weight 100: those that exist, or as many as full size needs, until the canary has all of its own."""
    kept = min(stable.replicas, replicas)
    if in_force >= 100 or canary.steady >= replicas:
        return kept if keep_stable else 0
    return max(kept, replicas - canary.steady)


def retire(leaving: Iterable[Leaving], replicas: int, staying: Iterable[Workload]) -> Mapping[str, int]:
    """The pods of revisions that are being removed: zero for failed ones as soon as another pod is ready; the others serve until `staying` is at
    full size."""
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
