"""Toy traffic providers with routes. Stable stays at full size until it is replaced; the canary has the pods that its weight needs.

`provider` splits by percent, and a canary of weight 0 has one pod, as a preview. `switch` does not split: nothing below 100, then all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fettle.plan.rollout.providers.base import Allocation, Demand, Leaving
from fettle.plan.rollout.state import Routes, Workload


def by_percent(weight: int) -> int:
    return weight


def all_or_nothing(weight: int) -> int:
    return 100 if weight >= 100 else 0


@dataclass(frozen=True)
class Weighted:
    """`split`: the percent that is routed for a weight that is asked for."""

    split: Callable[[int], int] = by_percent

    def allocate(self, demand: Demand) -> Allocation:
        routes = self._routes(demand)
        pods = {one.workload.revision: self._stays(demand, one, routes) for one in demand.leaving}
        if demand.stable is not None:
            pods[demand.stable.revision] = demand.replicas
        if demand.canary is not None:
            pods[demand.canary.revision] = self._canary_pods(demand, demand.canary)
        return Allocation(pods, routes)

    def pending(self, demand: Demand) -> str | None:
        canary, routes = demand.canary, demand.routes
        if canary is None or not demand.replicas:
            return None if not demand.weight else "no replicas"
        needed = pods_for(demand.weight, demand.replicas)
        if canary.steady < needed:
            return f"{canary.available} of {needed} canary pods are available"
        percent, asked = share(routes, canary), self.split(demand.weight)
        if percent != asked:
            return f"{percent} % of the traffic is routed to the canary, expected {asked} %"
        return None if routes is not None and routes.settled else "the route is not in force everywhere"

    def actual_weight(self, revision: str, workloads: Mapping[str, Workload], routes: Routes | None) -> int:
        return routes.weights.get(revision, 0) if routes is not None else 0

    def _canary_pods(self, demand: Demand, canary: Workload) -> int:
        needed = pods_for(max(demand.weight, share(demand.routes, canary)), demand.replicas)
        if demand.frozen:
            needed = min(needed, max(canary.replicas, pods_for(demand.in_force, demand.replicas)))
        return max(needed, min(canary.ready, canary.replicas, _gap(demand)))

    def _stays(self, demand: Demand, leaving: Leaving, routes: Mapping[str, int]) -> int:
        """Its pods stay until no traffic can come to them any more."""
        workload, in_force = leaving.workload, demand.routes
        useful = min(workload.ready, workload.replicas)
        quiet = in_force is not None and in_force.settled and not share(in_force, workload)
        if demand.replicas == 0 or (quiet and workload.revision not in routes):
            return 0 if leaving.failed else min(useful, _gap(demand))
        return useful

    def _routes(self, demand: Demand) -> Mapping[str, int]:
        """Stable gets what no other side has. Whoever has no ready pod gets nothing."""
        stable, canary = demand.stable, demand.canary
        given: dict[str, int] = {}
        if stable is None or not stable.ready:
            return self._without_stable(demand)
        if _gap(demand):  # who leaves without fault stands in
            given = {one.revision: share(demand.routes, one) for one in _well(demand) if one.ready}
        if canary is not None and canary.ready:
            given[canary.revision] = min(self._canary_share(demand, canary), 100 - sum(given.values()))
        given[stable.revision] = 100 - sum(given.values())
        return {revision: percent for revision, percent in given.items() if percent}

    def _without_stable(self, demand: Demand) -> Mapping[str, int]:
        """Whoever serves well keeps what it has; the first that is ready gets what nobody has."""
        serving = [one for one in (demand.canary, *_well(demand)) if one is not None and one.ready]
        given = {one.revision: percent for one in serving if (percent := share(demand.routes, one))}
        heir = next(iter([*serving, *(one for one in _failed(demand) if one.ready)]), None)
        if heir is None:
            return {}
        missing = 100 - sum(given.values())
        return given if not missing else {**given, heir.revision: given.get(heir.revision, 0) + missing}

    def _canary_share(self, demand: Demand, canary: Workload) -> int:
        now, asked = share(demand.routes, canary), self.split(demand.weight)
        enough = canary.steady >= pods_for(demand.weight, demand.replicas) and demand.replicas > 0
        if asked > now and (not enough or (demand.frozen and demand.weight > demand.in_force)):
            return now
        return asked if asked > now or not _gap(demand) else now


def pods_for(weight: int, replicas: int) -> int:
    """Enough for the weight, and at least one."""
    return max(-(-weight * replicas // 100), min(replicas, 1))


def share(routes: Routes | None, workload: Workload) -> int:
    """What is routed to it now."""
    return routes.weights.get(workload.revision, 0) if routes is not None else 0


def _gap(demand: Demand) -> int:
    """Pods that stable lacks."""
    return max(demand.replicas - (demand.stable.steady if demand.stable is not None else 0), 0)


def _well(demand: Demand) -> list[Workload]:
    return [one.workload for one in demand.leaving if not one.failed]


def _failed(demand: Demand) -> list[Workload]:
    return [one.workload for one in demand.leaving if one.failed]


provider = Weighted()
switch = Weighted(all_or_nothing)
