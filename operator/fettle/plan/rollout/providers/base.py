"""The interface of a traffic provider: how many pods each revision gets, and the routes. Pure.

The state machine only knows weights. A provider decides how its kind of traffic implements them. Three kinds are possible:
- The pods determine the weight (Replicas): there are no routes, and every ready pod gets an equal share.
- The routes determine the weight: the pods are started first, then the route is changed. A weight is reached when that route is in force.
- No split: the canary is scaled up beside the stable revision without traffic, and gets all of it at weight 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fettle.plan.rollout.state import Routes, Workload


@dataclass(frozen=True)
class Leaving:
    """A revision that is being removed. `failed`: its pods do harm."""

    workload: Workload
    failed: bool


@dataclass(frozen=True)
class Demand:
    """The requested weight, and the observed state.

    `in_force` is the last weight that was reached. `keep_stable`: at weight 100, the stable pods stay until their revision is replaced.
    `frozen`: the canary gets no more pods and no more traffic than it has, or than the weight in force needs. Scaling and the replacement
    of lost pods continue.
    """

    replicas: int  # full size
    stable: Workload | None
    canary: Workload | None = None
    weight: int = 0  # percent, of the canary
    in_force: int = 0
    keep_stable: bool = False
    frozen: bool = False
    leaving: tuple[Leaving, ...] = ()  # newest first
    routes: Routes | None = None  # as observed; None if the provider uses no routes

    @property
    def staying(self) -> tuple[Workload, ...]:
        """The workloads that continue to serve: stable and the canary."""
        return tuple(workload for workload in (self.stable, self.canary) if workload is not None)


@dataclass(frozen=True)
class Allocation:
    """The desired pods and the desired percentage of traffic of each revision.

    `replicas` has every revision of the demand. `routes` sums to 100 and has only revisions with traffic. It is empty if the provider uses
    no routes.
    """

    replicas: Mapping[str, int]
    routes: Mapping[str, int] = field(default_factory=dict)


class Provider(Protocol):
    """A traffic provider: a module or an object. `providers.allocate` checks for every provider what `allocate` promises."""

    def allocate(self, demand: Demand) -> Allocation:
        """The next pods and routes on the way to the requested weight.

        A revision gives up pods or traffic only when another can take over. The exception is a revision that failed: it gets nothing more as
        soon as another pod is ready.
        """
        ...

    def pending(self, demand: Demand) -> str | None:
        """What is missing until the requested weight is reached; None when it is, by pods and by routes in force."""
        ...

    def actual_weight(self, revision: str, workloads: Mapping[str, Workload], routes: Routes | None) -> int:
        """The percentage of the traffic that the revision actually gets."""
        ...
