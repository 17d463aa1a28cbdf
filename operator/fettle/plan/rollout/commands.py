"""Commands: annotations `fettle.dev/<name>` = `<revision>/<token>` on the ModelDeployment. Each token acts once.

`rollback-to` is different, because it stays in force: see plan/rollout/rollback.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fettle.api.modeldeployment_status import CommandStatus, ModelDeploymentStatus
from fettle.plan.commands import PAUSED_ANNOTATION, VALUE_LIMIT, Command, acceptance, refusal
from fettle.plan.events import EventDraft

ONCE = (Command.PROMOTE, Command.PROMOTE_FULL, Command.RETRY, Command.ABORT)  # the strongest last
EFFECTS = {
    Command.PROMOTE: "canary {} does not wait for the pause or the analysis of its current step",
    Command.PROMOTE_FULL: "canary {} skips the remaining steps",
    Command.RETRY: "revision {} is tried again from its first step",
    Command.ABORT: "canary {} is removed",
}


@dataclass(frozen=True)
class Orders:
    """The commands since the last pass: revision by command. `malformed`: invalid values by command."""

    new: Mapping[Command, str]
    values: Mapping[Command, str]  # as they were given; status remembers them as handled
    malformed: Mapping[Command, str]

    def has(self, command: Command, revision: str) -> bool:
        """Whether `command` was given for `revision`, without an abort in the same pass."""
        aborted = self.new.get(Command.ABORT) == revision
        return self.new.get(command) == revision and (command is Command.ABORT or not aborted)


@dataclass(frozen=True)
class Ground:
    """What decides whether a command is accepted. `canary`: the current canary; `failed`: the revision that is not tried again."""

    canary: str | None
    failed: str | None
    paused: bool


def paused(annotations: Mapping[str, str]) -> bool:
    """Whether the annotation pauses the rollout."""
    return annotations.get(PAUSED_ANNOTATION, "").lower() == "true"


def handled_before(status: ModelDeploymentStatus, command: Command) -> str | None:
    """The last value of `command` that was handled."""
    return next((entry.value for entry in status.commands if entry.name == command.value), None)


def latest(orders: Orders, status: ModelDeploymentStatus, command: Command) -> str | None:
    """The revision for which `command` was given last, in this pass or before."""
    revision, _, token = (orders.values.get(command) or handled_before(status, command) or "").partition("/")
    return revision if token else None


def read(
    annotations: Mapping[str, str], status: ModelDeploymentStatus, subjects: Collection[str], *, forgotten: bool
) -> Orders:
    """The commands for `subjects` (the desired revision and the canary). Commands for other revisions wait until these become current.

    `forgotten`: the status was lost, so it is not known which tokens were handled. None of the present tokens acts then.
    """
    new: dict[Command, str] = {}
    values: dict[Command, str] = {}
    malformed: dict[Command, str] = {}
    for command in ONCE:
        value = annotations.get(command.annotation, "")
        revision, _, token = value.partition("/")
        if not value or handled_before(status, command) == value[:VALUE_LIMIT]:
            continue
        if not (revision and token):
            malformed[command] = values[command] = value
        elif forgotten or revision in subjects:
            values[command] = value
            if not forgotten:
                new[command] = revision
    return Orders(new, values, malformed)


def handled(
    status: ModelDeploymentStatus, values: Mapping[Command, str]
) -> tuple[tuple[CommandStatus, ...], CommandStatus | None]:
    """What status remembers after this pass: the last value of each command, and the last command of all."""
    fresh = [CommandStatus(name=command.value, value=value[:VALUE_LIMIT]) for command, value in values.items()]
    names = {entry.name for entry in fresh}
    kept = [entry for entry in status.commands if entry.name not in names]
    listed = tuple(sorted((*kept, *fresh), key=lambda entry: entry.name))
    return listed, fresh[-1] if fresh else status.last_command


def events(orders: Orders, ground: Ground) -> tuple[EventDraft, ...]:
    """An Event that answers each new command: accepted, or refused with the reason."""
    said = [
        refusal(command, value, f"{value!r} is not a valid command: expected <revision>/<token>")
        for command, value in orders.malformed.items()
    ]
    for command, revision in orders.new.items():
        objection, value = _why_not(orders, command, revision, ground), orders.values[command]
        said.append(
            refusal(command, value, objection)
            if objection
            else acceptance(command, value, EFFECTS[command].format(revision))
        )
    return tuple(said)


def _why_not(orders: Orders, command: Command, revision: str, ground: Ground) -> str | None:
    if not orders.has(command, revision):
        return f"revision {revision} was aborted at the same time"
    if command is Command.RETRY:
        return None if revision == ground.failed else f"revision {revision} has not failed"
    if revision != ground.canary:
        return f"revision {revision} is not the canary"
    if ground.paused and command is not Command.ABORT:
        return "the rollout is paused; resume it first"
    return None
