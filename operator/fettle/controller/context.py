"""What a reconciler is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.events import EventRecorder
from fettle.cluster.trials import Trials
from fettle.settings import Settings


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Context:
    """The way to the cluster, for reconcilers: reads from `cache` (`client` for live ones), writes through `client`.

    What `client` writes is in `cache` when the call returns. `trials` is what this process saw of canaries that are on trial.
    """

    settings: Settings
    client: Client
    cache: Cache
    events: EventRecorder
    now: Callable[[], datetime] = field(default=utc_now)
    trials: Trials = field(default_factory=Trials)


Reconciler = Callable[[Context, str, str], Awaitable[float | None]]
"""(context, namespace, name) -> seconds until the next look, None = when something changes. Raises ClusterError to be called again."""
