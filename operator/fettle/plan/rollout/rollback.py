"""`rollback-to` = `<desired>/<target>/<token>`: the revision `target` of the ledger, for as long as the spec asks for `desired`.

Unlike the other commands this one holds. While it does, `target` is what the rollout works towards, on the same steps, with
the same analysis. Another spec ends it, and so does the annotation's removal, and an order whose target is `desired` itself. One
that ended does not begin again when the spec comes back to `desired`: its token has acted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fettle.api.modeldeployment_status import RollbackStatus
from fettle.api.reasons import Reason
from fettle.plan.commands import VALUE_LIMIT, Command, acceptance, refusal
from fettle.plan.events import EventDraft
from fettle.plan.rollout import ledger
from fettle.plan.rollout.commands import handled_before
from fettle.plan.rollout.state import DesiredRevision, RolloutSnapshot


@dataclass(frozen=True)
class Rollback:
    """What holds, if anything; the value that was handled in this pass; what is to be said of it."""

    holds: RollbackStatus | None = None
    values: Mapping[Command, str] = field(default_factory=dict)
    events: tuple[EventDraft, ...] = ()


def read(snapshot: RolloutSnapshot, stable: str | None, current: str | None, *, forgotten: bool) -> Rollback:
    """What `rollback-to` means now. `current` is the revision on trial; `forgotten`: status was lost."""
    value = snapshot.annotations.get(Command.ROLLBACK_TO.annotation, "")
    before, order = snapshot.status.rollback, _parse(value)
    desired = snapshot.wanted.revision if isinstance(snapshot.wanted, DesiredRevision) else None
    if forgotten:
        return _recalled(value, order, desired, {stable, current})
    events: tuple[EventDraft, ...] = ()
    if before is not None and not (value and desired in (None, before.desired)):
        events = (_ended(before),)
        before = None
    if not value or handled_before(snapshot.status, Command.ROLLBACK_TO) == value[:VALUE_LIMIT]:
        return Rollback(before, events=events)
    if order is not None and order.desired != desired:  # it waits until the spec asks for that one
        return Rollback(before, events=events)
    rollback = _new(snapshot, value, order, before, stable, current)
    return replace(rollback, events=(*events, *rollback.events))


def _new(
    snapshot: RolloutSnapshot,
    value: str,
    order: RollbackStatus | None,
    before: RollbackStatus | None,
    stable: str | None,
    current: str | None,
) -> Rollback:
    """An order that was not seen before. Where it is refused, what held before goes on: a slip of the pen must not bring
    back the revision that somebody fled from."""
    handled = {Command.ROLLBACK_TO: value}
    if order is None:
        why = f"{value!r} is not a valid command: expected <desired>/<target>/<token>"
        return Rollback(before, handled, (refusal(Command.ROLLBACK_TO, why),))
    accepted = acceptance(Command.ROLLBACK_TO, value)
    if order.target == order.desired and before is not None:
        return Rollback(None, handled, (accepted, _ended(before)))
    why_not = _why_not(snapshot, order, stable, current)
    if why_not is not None:
        return Rollback(before, handled, (refusal(Command.ROLLBACK_TO, f"{value}: {why_not}"),))
    return Rollback(order, handled, (accepted,))


def _why_not(snapshot: RolloutSnapshot, order: RollbackStatus, stable: str | None, current: str | None) -> str | None:
    if order.target == order.desired:
        return f"revision {order.target} is already the one that the spec asks for"
    if ledger.newest(snapshot.ledger, order.target) is None:
        known = ", ".join(dict.fromkeys(entry.revision for entry in reversed(snapshot.ledger)))
        return f"revision {order.target} is not in the ledger ({f'it has {known}' if known else 'it is empty'})"
    if order.target == stable and current is None:
        return f"revision {order.target} is already serving, and there is no canary"
    return None


def _recalled(value: str, order: RollbackStatus | None, desired: str | None, alive: set[str | None]) -> Rollback:
    """After status was lost: an order whose target serves, or is on trial, was in force."""
    handled = {Command.ROLLBACK_TO: value} if value else {}
    in_force = order is not None and order.desired == desired and order.target in alive
    return Rollback(order if in_force else None, handled)


def _parse(value: str) -> RollbackStatus | None:
    parts = value.split("/")
    if len(parts) != 3 or not all(parts):
        return None
    return RollbackStatus(desired=parts[0][:64], target=parts[1][:64])


def _ended(before: RollbackStatus) -> EventDraft:
    text = f"the rollback from {before.desired} to {before.target} is no longer in force: the spec applies again"
    return EventDraft("Normal", Reason.ROLLED_BACK, text)
