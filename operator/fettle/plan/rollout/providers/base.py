"""What is asked of a traffic provider, and what it answers: how many pods each revision gets, and what is to be routed. Pure.

A provider decides in one place what its kind of traffic needs; the state machine only knows weights. Three kinds fit:
- pods are the weight (Replicas): nothing is routed, every ready pod gets its share;
- routes are the weight: pods first, then the route, and a weight is reached when the route that is in force says so;
- no split: the canary grows beside stable without traffic, and gets all of it at 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fettle.plan.rollout.state import Routes, Workload


@dataclass(frozen=True)
class Leaving:
    """A revision that serves no more. `failed`: its pods do harm."""

    workload: Workload
    failed: bool


@dataclass(frozen=True)
class Demand:
    """The weight that is asked for, and what is observed.

    `in_force` is the weight that was reached before. `keep_stable`: at 100 the stable pods stay until their revision is replaced.
    `frozen`: the canary gets no more pods and no more traffic than it has, or than the weight in force needs; scaling and healing go on.
    """

    replicas: int  # full size
    stable: Workload | None
    canary: Workload | None = None
    weight: int = 0  # percent, of the canary
    in_force: int = 0
    keep_stable: bool = False
    frozen: bool = False
    leaving: tuple[Leaving, ...] = ()  # the youngest first
    routes: Routes | None = None  # as observed; None where the provider has none

    @property
    def staying(self) -> tuple[Workload, ...]:
        """Who serves from now on: stable, and the canary."""
        return tuple(workload for workload in (self.stable, self.canary) if workload is not None)


@dataclass(frozen=True)
class Allocation:
    """What shall be: pods by revision, and percent of the traffic by revision.

    `replicas` has every revision of the demand. `routes` sums to 100 and leaves out who gets nothing; it is empty where nothing is routed.
    """

    replicas: Mapping[str, int]
    routes: Mapping[str, int] = field(default_factory=dict)


class Provider(Protocol):
    """A provider's module, or an object of it. What `allocate` promises is checked by `providers.allocate`, for every provider."""

    def allocate(self, demand: Demand) -> Allocation:
        """The next pods and routes on the way to the weight that is asked for.

        No side gives anything up before the other stands in for it, but a revision that failed: it gets nothing more from the moment
        at which another pod is ready.
        """
        ...

    def pending(self, demand: Demand) -> str | None:
        """What the weight that is asked for still waits for; None when it is reached, by pods and by routes that are in force."""
        ...

    def actual_weight(self, revision: str, workloads: Mapping[str, Workload], routes: Routes | None) -> int:
        """Percent of the traffic that the revision really gets."""
        ...
