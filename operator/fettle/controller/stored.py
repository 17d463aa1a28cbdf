"""The status that an object has stored. An older operator, or a person, may have written what cannot be read any more."""

from __future__ import annotations

import logging
from typing import TypeVar

from pydantic import ValidationError

from fettle.api.base import ApiModel
from fettle.api.conditions import Condition
from fettle.cluster.kinds import Object

logger = logging.getLogger(__name__)
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


def observed(status: Object, generation: int) -> Object:
    """observedGeneration of a status to which a condition is added that speaks of the object's latest spec.

    Tools read no condition of a status that is older than the spec. Absent where it is absent: `legible` says why.
    """
    return {"observedGeneration": generation} if "observedGeneration" in status else {}


def conditions_of(status: Object) -> tuple[Condition, ...]:
    """The conditions of a status that can be read."""
    return tuple(Condition.model_validate(condition) for condition in status.get("conditions") or ())
