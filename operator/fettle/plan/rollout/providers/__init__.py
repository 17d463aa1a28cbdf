"""What splits the traffic: one module a provider. A provider says how many pods a weight takes, and what weight pods make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from fettle.api.modeldeployment import TrafficProvider
from fettle.plan.rollout.providers import replicas
from fettle.plan.rollout.providers.replicas import Leaving, Sizes
from fettle.plan.rollout.state import RolloutSnapshot, Workload


class Provider(Protocol):
    """The functions of a provider's module."""

    def sizes(
        self,
        weight: int,
        replicas: int,
        stable: Workload,
        canary: Workload,
        *,
        in_force: int = 0,
        keep_stable: bool = False,
        frozen: bool = False,
    ) -> Sizes:
        """The next pods on the way to `weight`."""
        ...

    def reached(self, weight: int, replicas: int, canary: Workload) -> bool:
        """Whether the canary may be given `weight`."""
        ...

    def retire(self, leaving: Iterable[Leaving], replicas: int, staying: Iterable[Workload]) -> Mapping[str, int]:
        """Pods that revisions on their way out still keep."""
        ...

    def actual_weight(self, canary: Workload, all_workloads: Iterable[Workload]) -> int:
        """Percent of the traffic that the canary really gets."""
        ...


PROVIDERS: Mapping[TrafficProvider, Provider] = {TrafficProvider.REPLICAS: replicas}


def provider(snapshot: RolloutSnapshot) -> Provider:
    """The provider that the spec asks for."""
    return PROVIDERS[snapshot.spec.traffic.provider]
