"""What a decision is on its way: the canary after a look at it, and who is who afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from fettle.api.modeldeployment_status import CanaryStatus, RollbackStatus
from fettle.api.reasons import Reason
from fettle.plan.events import EventDraft
from fettle.plan.rollout.ledger import Exit
from fettle.plan.rollout.providers.base import Demand


@dataclass(frozen=True)
class Wait:
    """Why the canary does not go on. `hold`: until somebody or something else moves; else it is merely a matter of time."""

    reason: Reason
    message: str
    hold: bool = False
    pending: bool = False  # waits for a weight to be reached: the progress deadline counts
    until: datetime | None = None


@dataclass(frozen=True)
class CanaryDecision:
    """The canary after a look at it. Exactly one of `wait`, `exit` and `promoted` says what comes next."""

    canary: CanaryStatus
    wait: Wait | None = None
    exit: Exit | None = None
    promoted: bool = False
    events: tuple[EventDraft, ...] = ()


@dataclass(frozen=True)
class Transition:
    """Who is who afterwards. `exits`: why revisions leave; `failed`: the revision that is not tried again, and why."""

    stable: str | None
    decision: CanaryDecision | None = None
    demand: Demand | None = None  # for the canary that goes on
    exits: Mapping[str, Exit] = field(default_factory=dict)
    failed: tuple[str, Exit] | None = None
    held: Wait | None = None
    events: tuple[EventDraft, ...] = ()
    rollback: RollbackStatus | None = None  # the order that holds
    over: CanaryStatus | None = None  # the canary whose trial ended in this pass

    @property
    def canary(self) -> CanaryStatus | None:
        """The canary that goes on."""
        return self.decision.canary if self.decision is not None else None
