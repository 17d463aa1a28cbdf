"""Conditions, as Kubernetes writes them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field

from fettle.api.base import ApiModel
from fettle.api.reasons import Reason
from fettle.api.secrets import without_secrets
from fettle.api.text import CONDITION_LIMIT, clip

# The two conditions by which kstatus (Flux and many other tools) and the health checks for Argo CD tell how an object stands.
# Never both are True. Neither is where the object is as its spec asks.
RECONCILING = "Reconciling"  # on its way, or waiting for something that comes by itself or by a command
STALLED = "Stalled"  # a fault that somebody has to look at
READY = "Ready"  # of both kinds
PROGRESSING, DEGRADED, PAUSED = "Progressing", "Degraded", "Paused"  # of a ModelDeployment
SOURCE_RESOLVED, CONVERTED, MEASURED = "SourceResolved", "Converted", "Measured"  # of an OptimizedModel
UNOBSERVED = -1  # the API server's default of observedGeneration: no tool takes a new object for a settled one
# The messages of conditions that have nothing to explain.
_UNEVENTFUL = {
    PROGRESSING: "no rollout is in progress",
    DEGRADED: "no revision has failed",
    PAUSED: "the rollout is not paused",
    RECONCILING: "nothing is in progress",
    STALLED: "no fault needs attention",
}


class ConditionStatus(StrEnum):
    """Whether the condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


def _observed(value: object) -> object:
    return None if value == UNOBSERVED else value


ObservedGeneration = Annotated[
    int | None, BeforeValidator(_observed), Field(description="Generation of the spec that this status refers to.")
]


class Condition(ApiModel):
    """One observation of the object's state."""

    type: Annotated[str, Field(max_length=64, description="Type of the condition.")]
    status: Annotated[ConditionStatus, Field(description="True, False or Unknown.")]
    reason: Annotated[str, Field(max_length=64, description="Machine-readable reason from a closed list.")]
    message: Annotated[str, Field(max_length=2048, description="Human-readable explanation, with what to do.")] = ""
    observed_generation: Annotated[
        int | None, Field(description="Generation of the spec that this condition refers to.")
    ] = None
    last_transition_time: Annotated[
        str, Field(max_length=32, description="When the status last changed (RFC 3339, UTC).")
    ] = ""


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """The condition of that type, or None."""
    return next((condition for condition in conditions if condition.type == kind), None)


def with_condition(
    conditions: tuple[Condition, ...],
    kind: str,
    holds: bool | None,
    reason: Reason,
    message: str,
    *,
    generation: int | None,
    now: str,
) -> tuple[Condition, ...]:
    """`conditions` with one set; its transition time moves only when its status does. `now` is RFC 3339.

    Secrets in addresses are taken out of `message`. Without one, a condition that has nothing to explain says so.
    """
    status = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}[holds]
    earlier = find(conditions, kind)
    since = earlier.last_transition_time if earlier is not None and earlier.status == status else now
    current = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=clip(without_secrets(message or _UNEVENTFUL.get(kind, "")), CONDITION_LIMIT),
        observed_generation=generation,
        last_transition_time=since,
    )
    if earlier is None:
        return (*conditions, current)
    return tuple(current if condition.type == kind else condition for condition in conditions)
