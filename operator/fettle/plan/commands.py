"""Commands that people give as annotations `fettle.dev/<command>`, on either kind, and the Events that answer them."""

from __future__ import annotations

from enum import StrEnum

from fettle.api.base import GROUP
from fettle.api.reasons import Reason
from fettle.plan.events import EventDraft

PAUSED_ANNOTATION = f"{GROUP}/paused"
VALUE_LIMIT = 256  # characters of a command's value (CommandStatus.value)


class Command(StrEnum):
    """What a person may order, the safest first: of several new ones at once `abort` wins over the rest."""

    ABORT = "abort"
    RETRY = "retry"
    PROMOTE_FULL = "promote-full"
    PROMOTE = "promote"
    ROLLBACK_TO = "rollback-to"

    @property
    def annotation(self) -> str:
        """Where it is given."""
        return f"{GROUP}/{self.value}"


def refusal(command: Command, why: str) -> EventDraft:
    """An order that cannot be followed."""
    return EventDraft("Warning", Reason.COMMAND_REFUSED, f"{command.value} {why}")


def acceptance(command: Command, given: str) -> EventDraft:
    """An order that is followed. Its token makes each one an Event of its own."""
    return EventDraft("Normal", Reason.COMMAND_ACCEPTED, f"{command.value} {given}")
