"""What every stage of a decision may use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from fettle.api.constraints import Constraints
from fettle.api.optimizedmodel_status import DeviceStatus
from fettle.plan import timestamps
from fettle.plan.run.attempts import Attempts
from fettle.plan.run.constraints import in_force
from fettle.plan.run.state import RetryOrder, RunSnapshot


@dataclass(frozen=True)
class RunContext:
    """A snapshot, and what follows from it: the start of the run, the constraints in force, the attempts, the store's URI.

    The targets of the snapshot's spec have the architectures in `devices`.
    """

    snapshot: RunSnapshot
    order: RetryOrder
    started: datetime
    constraints: Constraints
    attempts: Attempts
    store: str
    devices: tuple[DeviceStatus, ...] | None = None  # of targets with GPUs


def context_of(snapshot: RunSnapshot, order: RetryOrder, devices: tuple[DeviceStatus, ...] | None = None) -> RunContext:
    """The context of a decision on `snapshot`, with the retry `order` and the GPUs that were found."""
    started = _started(snapshot, order)
    ends = started + timedelta(seconds=snapshot.spec.search.deadline_seconds)
    attempts = Attempts(snapshot.tasks, snapshot.now, ends, order.retries)
    return RunContext(snapshot, order, started, in_force(snapshot.spec), attempts, store_of(snapshot), devices)


def store_of(snapshot: RunSnapshot) -> str:
    """URI of the store this run writes to."""
    return snapshot.spec.store.uri if snapshot.spec.store is not None else snapshot.default_store


def _started(snapshot: RunSnapshot, order: RetryOrder) -> datetime:
    """When the run began, in whole seconds.

    A time in the future is replaced by now: the clock was set back, and the deadline starts again.
    """
    status, now = snapshot.status, snapshot.now
    goes_on = snapshot.goes_on and not order.acts
    recorded = timestamps.read(status.started_at) if goes_on else None
    return recorded if recorded is not None and recorded <= now else now.replace(microsecond=0)
