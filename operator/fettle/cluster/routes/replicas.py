"""The provider Replicas routes nothing: each ready pod behind the one Service gets traffic."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from fettle.cluster.kinds import Object, ResourceKind

kinds: Sequence[ResourceKind] = ()


def render(owner: Object, weights: Mapping[str, int], revisions: Collection[str]) -> Sequence[Object]:
    """No object."""
    return ()


def observe(objects: Sequence[Object], now: datetime) -> None:
    """No routes."""
