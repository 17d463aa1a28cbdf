"""What a traffic provider has in the cluster: the objects that route, rendered and read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from fettle.api.base import GROUP
from fettle.cluster.kinds import Object, ResourceKind
from fettle.plan.rollout.state import Routes

ROUTES_LABEL = f"{GROUP}/routes"  # on each object that routes; its value is the provider's name


class RouteObjects(Protocol):
    """A provider's module, or an object of it. It is pure: reading and writing is the controller's.

    Objects carry `serving.selector` among their labels and a controller ownerReference (`owner.child`), and have names of their own.
    """

    @property
    def kinds(self) -> Sequence[ResourceKind]:
        """Kinds of what it renders; all of `kinds.WATCHED`."""
        ...

    def render(self, owner: Object, weights: Mapping[str, int], revisions: Collection[str]) -> Sequence[Object]:
        """The objects that route so, in the order of their writing: what is routed to before what routes.

        `weights` is percent by revision; `revisions` are all that have pods. What is rendered no more is deleted.
        """
        ...

    def observe(self, objects: Sequence[Object], now: datetime) -> Routes | None:
        """The routes of which the objects tell that were rendered before and are in sight; None for a provider without routes.

        Where none is in sight nothing is settled: traffic may come by one that lost its labels.
        """
        ...
