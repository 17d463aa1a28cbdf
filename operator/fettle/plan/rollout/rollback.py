"""`rollback-to` = `<desired>/<target>/<token>`: serve the revision `target` from the ledger for as long as the spec asks for `desired`.

Unlike the other commands, this one stays in force. Meanwhile the rollout works towards `target`, with the same steps and the same
analysis. It ends when the spec asks for another revision, when the annotation is removed, or with a `rollback-to` whose target is
`desired` itself. It does not start again if the spec returns to `desired`, because its token has already acted.
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
    """The rollback in force, if any; the value that was handled in this pass; the Events about it."""

    holds: RollbackStatus | None = None
    values: Mapping[Command, str] = field(default_factory=dict)
    events: tuple[EventDraft, ...] = ()


def read(snapshot: RolloutSnapshot, stable: str | None, current: str | None, *, forgotten: bool) -> Rollback:
    """The effect of `rollback-to` now. `current` is the canary; `forgotten`: the status was lost."""
    value = snapshot.annotations.get(Command.ROLLBACK_TO.annotation, "")
    before, order = snapshot.status.rollback, _parse(value)
    desired = snapshot.wanted.revision if isinstance(snapshot.wanted, DesiredRevision) else None
    if forgotten:
        return _recalled(value, order, desired, {stable, current})
    events: tuple[EventDraft, ...] = ()
    if before is not None and not (value and desired in (None, before.desired)):
        events = (_ended(before, handled_before(snapshot.status, Command.ROLLBACK_TO)),)
        before = None
    if not value or handled_before(snapshot.status, Command.ROLLBACK_TO) == value[:VALUE_LIMIT]:
        return Rollback(before, events=events)
    if order is not None and order.desired != desired:  # it waits until the spec asks for that revision
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
    """A new `rollback-to`. If it is refused, the previous one stays in force: a typing error must not bring back the revision that
    somebody rolled back from."""
    handled = {Command.ROLLBACK_TO: value}
    if order is None:
        objection = f"{value!r} is not a valid command: expected <desired>/<target>/<token>"
        return Rollback(before, handled, (refusal(Command.ROLLBACK_TO, value, objection),))
    if order.target == order.desired and before is not None:
        effect = f"back to revision {order.desired}, which the spec asks for"
        return Rollback(None, handled, (acceptance(Command.ROLLBACK_TO, value, effect), _ended(before, value)))
    why_not = _why_not(snapshot, order, stable, current)
    if why_not is not None:
        return Rollback(before, handled, (refusal(Command.ROLLBACK_TO, value, why_not),))
    effect = f"from revision {order.desired} to revision {order.target}"
    return Rollback(order, handled, (acceptance(Command.ROLLBACK_TO, value, effect),))


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
    """After the status was lost: a `rollback-to` whose target is stable or the canary was in force."""
    handled = {Command.ROLLBACK_TO: value} if value else {}
    in_force = order is not None and order.desired == desired and order.target in alive
    return Rollback(order if in_force else None, handled)


def _parse(value: str) -> RollbackStatus | None:
    parts = value.split("/")
    if len(parts) != 3 or not all(parts):
        return None
    return RollbackStatus(desired=parts[0][:64], target=parts[1][:64])


def _ended(before: RollbackStatus, value: str | None) -> EventDraft:
    text = f"the rollback from revision {before.desired} to {before.target} has ended: the spec decides again which revision serves"
    return EventDraft("Normal", Reason.SUPERSEDED, text, value or "")
