"""Intermediate results of a decision: the canary after one pass, and the role of each revision afterwards."""

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
    """Why the canary does not advance. `hold`: until somebody or something else acts; otherwise only time has to pass."""

    reason: Reason
    message: str
    hold: bool = False
    pending: bool = False  # waits for a weight to be reached: the progress deadline counts
    until: datetime | None = None


@dataclass(frozen=True)
class CanaryDecision:
    """The canary after one pass. Exactly one of `wait`, `exit` and `promoted` says what happens next."""

    canary: CanaryStatus
    wait: Wait | None = None
    exit: Exit | None = None
    promoted: bool = False
    events: tuple[EventDraft, ...] = ()


@dataclass(frozen=True)
class Transition:
    """The role of each revision afterwards. `exits`: why revisions are removed; `failed`: the revision that is not tried again, and why."""

    stable: str | None
    decision: CanaryDecision | None = None
    demand: Demand | None = None  # for the canary, if it continues
    exits: Mapping[str, Exit] = field(default_factory=dict)
    failed: tuple[str, Exit] | None = None
    held: Wait | None = None
    events: tuple[EventDraft, ...] = ()
    rollback: RollbackStatus | None = None  # the rollback in force
    over: CanaryStatus | None = None  # the canary whose rollout ended in this pass

    @property
    def canary(self) -> CanaryStatus | None:
        """The canary, if its rollout continues."""
        return self.decision.canary if self.decision is not None else None
