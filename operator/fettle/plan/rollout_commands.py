"""Commands: annotations `fettle.dev/<name>` = `<revision>/<token>` on the ModelDeployment. Each token acts once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fettle.api.base import GROUP
from fettle.api.modeldeployment import CommandStatus, ModelDeploymentStatus

PAUSED_ANNOTATION = f"{GROUP}/paused"


class Command(StrEnum):
    """What a person may order, the safest first: of several new ones at once `abort` wins over the rest."""

    ABORT = "abort"
    RETRY = "retry"
    PROMOTE_FULL = "promote-full"
    PROMOTE = "promote"

    @property
    def annotation(self) -> str:
        """Where it is given."""
        return f"{GROUP}/{self.value}"


@dataclass(frozen=True)
class Orders:
    """What was ordered since the last pass (revision by command), and what counts as handled after this one."""

    new: Mapping[Command, str]
    handled: tuple[CommandStatus, ...]
    last: CommandStatus | None

    def has(self, command: Command, revision: str) -> bool:
        """Whether `command` was ordered for `revision`, and no abort came with it."""
        aborted = self.new.get(Command.ABORT) == revision
        return self.new.get(command) == revision and (command is Command.ABORT or not aborted)


def paused(annotations: Mapping[str, str]) -> bool:
    """Whether the annotation holds the rollout."""
    return annotations.get(PAUSED_ANNOTATION, "").lower() == "true"


def read(
    annotations: Mapping[str, str], status: ModelDeploymentStatus, subjects: Collection[str], *, forgotten: bool
) -> Orders:
    """The orders that concern `subjects` (the revisions asked for and on trial); others wait until theirs comes.

    `forgotten`: status was lost, so which tokens were handled is not known; none of those given acts again.
    """
    before = {entry.name: entry.value for entry in status.commands}
    new: dict[Command, str] = {}
    handled = dict(before)
    last = status.last_command
    for command in reversed(Command):
        value = annotations.get(command.annotation, "")
        revision, slash, token = value.partition("/")
        if not slash or not token or before.get(command.value) == value:
            continue
        if not forgotten and revision not in subjects:
            continue
        handled[command.value] = value[:256]
        last = CommandStatus(name=command.value, value=value[:256])
        if not forgotten:
            new[command] = revision
    listed = tuple(CommandStatus(name=name, value=value) for name, value in sorted(handled.items()))
    return Orders(new, listed, last)
