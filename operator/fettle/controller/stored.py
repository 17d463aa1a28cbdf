"""The status that an object has stored, and the writing of a new one: one PUT, and then the Events that belong to it.

An older operator, or a person, may have written what cannot be read any more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TypeVar

from pydantic import ValidationError

from fettle.api.base import ApiModel
from fettle.api.conditions import Condition, with_condition
from fettle.cluster.kinds import Object, ResourceKind
from fettle.controller.context import Context
from fettle.plan import timestamps
from fettle.plan.events import EventDraft

logger = logging.getLogger(__name__)
FAULTS = 5  # that a message lists
Status = TypeVar("Status", bound=ApiModel)


def status_of(obj: Object, model: type[Status]) -> Status:
    """The stored status; an empty one where it cannot be read: it is a view that can be built again."""
    try:
        return model.model_validate(obj.get("status") or {})
    except ValidationError as error:
        logger.warning(
            "status of %s/%s cannot be read: %s", obj["metadata"]["namespace"], obj["metadata"]["name"], error
        )
        return model()


def legible(obj: Object, model: type[ApiModel]) -> Object:
    """The stored status without the fields that cannot be read, for whoever adds a condition to it and cannot build it again.

    With such a field goes observedGeneration: what the others say is then no whole to decide by, and is told from one by that.
    """
    stored: Object = obj.get("status") or {}
    try:
        model.model_validate(stored)
        return dict(stored)
    except ValidationError as error:
        odd = {str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}
        kept = {key: value for key, value in stored.items() if key not in odd | {"observedGeneration"}}
    try:
        model.model_validate(kept)
    except ValidationError:
        return {}
    return kept


def observed_generation(status: Object, generation: int) -> Object:
    """observedGeneration of a status to which a condition is added that speaks of the object's latest spec.

    Tools read no condition of a status that is older than the spec. Absent where it is absent: `legible` says why.
    """
    return {"observedGeneration": generation} if "observedGeneration" in status else {}


def conditions_of(status: Object) -> tuple[Condition, ...]:
    """The conditions of a status that can be read."""
    return tuple(Condition.model_validate(condition) for condition in status.get("conditions") or ())


async def write_status(
    context: Context, kind: ResourceKind, obj: Object, status: ApiModel, events: Iterable[EventDraft]
) -> None:
    """Write the status with one PUT, if it changed, and then the Events that belong to it. Raises ClusterError."""
    body = status.to_json()
    if body != (obj.get("status") or {}):
        obj = await context.client.put_status(kind, obj, body)
    for event in events:
        await context.events.emit(kind, obj, event)


async def report(
    context: Context, kind: ResourceKind, obj: Object, status: Object, wrong: Mapping[str, bool], fault: EventDraft
) -> None:
    """Write a fault into conditions of a `legible` status (`wrong`: which hold), and its Event if they changed; nothing else changes.

    Raises ClusterError.
    """
    generation, now = obj["metadata"]["generation"], timestamps.write(context.now())
    before = conditions = conditions_of(status)
    for name, holds in wrong.items():
        conditions = with_condition(
            conditions, name, holds, fault.reason, fault.message, generation=generation, now=now
        )
    if conditions == before:
        return
    seen = observed_generation(status, generation)
    body = status | seen | {"conditions": [condition.to_json() for condition in conditions]}
    obj = await context.client.put_status(kind, obj, body)
    await context.events.emit(kind, obj, fault)


def unreadable(error: ValidationError) -> str:
    """What is wrong with a stored spec that cannot be read, for a person."""
    faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:FAULTS])
    return f"the stored spec cannot be read: {faults}"
