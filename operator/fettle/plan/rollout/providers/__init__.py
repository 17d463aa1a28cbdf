"""Traffic providers: one module for each, which implements `base.py: Provider`, and one line here that registers it."""

from __future__ import annotations

from collections.abc import Mapping

from fettle.api.modeldeployment import TrafficProvider
from fettle.errors import FettleError
from fettle.plan.rollout.providers import replicas
from fettle.plan.rollout.providers.base import Allocation, Demand, Provider
from fettle.plan.rollout.state import RolloutSnapshot, Workload

PROVIDERS: Mapping[TrafficProvider, Provider] = {
    TrafficProvider.REPLICAS: replicas,
}


def provider(snapshot: RolloutSnapshot) -> Provider:
    """The provider that the spec asks for."""
    return PROVIDERS[snapshot.spec.traffic.provider]


def demand(snapshot: RolloutSnapshot, stable: str | None) -> Demand:
    """The demand while there is no canary: everything for `stable`."""
    workload = snapshot.workload(stable) if stable is not None else None
    return Demand(snapshot.spec.replicas, workload, routes=snapshot.routes)


def allocate(snapshot: RolloutSnapshot, asked: Demand) -> Allocation:
    """The provider's allocation. Raises FettleError if it breaks the contract of a provider; nothing is changed then."""
    allocation = provider(snapshot).allocate(asked)
    broken = _broken_pods(asked, allocation) or _broken_routes(asked, allocation)
    if broken is not None:
        name = snapshot.spec.traffic.provider
        raise FettleError(
            f"the traffic provider {name} violated its contract: {broken}; nothing was changed, please report it"
        )
    return allocation


def _broken_pods(asked: Demand, allocation: Allocation) -> str | None:
    workloads = {workload.revision: workload for workload in _everybody(asked)}
    if allocation.replicas.keys() != workloads.keys():
        return f"expected pods for {sorted(workloads)}, found {sorted(allocation.replicas)}"
    negative = [revision for revision, count in allocation.replicas.items() if count < 0]
    if negative:
        return f"a negative number of pods for {negative[0]}"
    in_force = asked.routes.weights if asked.routes is not None else {}
    for revision, percent in in_force.items():
        workload = workloads.get(revision)
        if percent and workload is not None and workload.ready and asked.replicas and not allocation.replicas[revision]:
            return f"no pods are left for {revision}, which gets {percent} % of the traffic"
    return None


def _broken_routes(asked: Demand, allocation: Allocation) -> str | None:
    routes = allocation.routes
    if not routes:
        return None
    if asked.routes is None:
        return f"expected no routes, because none are observed, found {dict(routes)}"
    if any(percent <= 0 for percent in routes.values()) or sum(routes.values()) != 100:
        return f"expected percentages above 0 that sum to 100, found {dict(routes)}"
    if not routes.keys() <= allocation.replicas.keys():
        return f"{sorted(routes)} get traffic, but only {sorted(allocation.replicas)} exist"
    ready = {workload.revision for workload in _everybody(asked) if workload.ready}
    if ready and not routes.keys() <= ready:
        return f"{sorted(routes.keys() - ready)} get traffic without a ready pod, although {sorted(ready)} have one"
    return _too_much(asked, routes)


def _too_much(asked: Demand, routes: Mapping[str, int]) -> str | None:
    """Traffic beyond the requested weight, although another revision could take it; None if there is none."""
    if asked.stable is None or not asked.stable.ready:
        return None
    failed = [
        leaving.workload.revision for leaving in asked.leaving if leaving.failed and leaving.workload.revision in routes
    ]
    if failed:
        return f"{failed[0]} failed and gets {routes[failed[0]]} % of the traffic"
    if asked.canary is None or asked.routes is None:
        return None
    canary, given = asked.canary.revision, routes.get(asked.canary.revision, 0)
    weight = asked.in_force if asked.frozen else asked.weight
    if given <= max(weight, asked.routes.weights.get(canary, 0)):
        return None
    return f"{canary} gets {given} % of the traffic, expected at most {weight} %"


def _everybody(asked: Demand) -> tuple[Workload, ...]:
    return (*asked.staying, *(leaving.workload for leaving in asked.leaving))
