"""Commands that people give as annotations `fettle.dev/<command>` on either kind, and the Events that answer them."""

from __future__ import annotations

from enum import StrEnum

from fettle.api.base import GROUP
from fettle.api.reasons import Reason
from fettle.plan.events import EventDraft

PAUSED_ANNOTATION = f"{GROUP}/paused"
VALUE_LIMIT = 256  # characters of a command's value (CommandStatus.value)


class Command(StrEnum):
    """The commands, safest first. If several are new at the same time, `abort` wins."""

    ABORT = "abort"
    RETRY = "retry"
    PROMOTE_FULL = "promote-full"
    PROMOTE = "promote"
    ROLLBACK_TO = "rollback-to"

    @property
    def annotation(self) -> str:
        """The name of its annotation."""
        return f"{GROUP}/{self.value}"


def command_line(command: Command, namespace: str, subject: str) -> str:
    """How a person gives a command: 'kubectl fettle retry om/digits -n vision'."""
    return f"kubectl fettle {command.value} {subject}" + ("" if namespace == "default" else f" -n {namespace}")


def refusal(command: Command, value: str, objection: str) -> EventDraft:
    """The Event for a command that is refused; `value` is that of its annotation."""
    return EventDraft("Warning", Reason.COMMAND_REFUSED, f"{command.value} refused: {objection}", value)


def acceptance(command: Command, value: str, effect: str) -> EventDraft:
    """The Event for a command that is accepted. Its token, which is in `value`, makes each Event distinct."""
    return EventDraft("Normal", Reason.COMMAND_ACCEPTED, f"{command.value} accepted: {effect}", value)
