"""Events for conditions that change."""

from __future__ import annotations

from fettle.api.conditions import READY, Condition, ConditionStatus
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan.events import EventDraft
from fettle.plan.rollout.status import transitions


def ready(since: str) -> EventDraft:
    """The Event of a ModelDeployment that becomes Ready."""
    condition = Condition(
        type=READY,
        status=ConditionStatus.TRUE,
        reason=Reason.SERVING,
        message="3 pods of stable revision 8ab86e230b ready",
        last_transition_time=since,
    )
    (event,) = transitions(ModelDeploymentStatus(), ModelDeploymentStatus(conditions=(condition,)))
    return event


def test_an_event_has_the_conditions_own_message_and_is_another_one_each_time() -> None:
    first, second = ready("2026-01-02T06:01:17Z"), ready("2026-01-02T07:00:00Z")
    assert first.message == second.message == "3 pods of stable revision 8ab86e230b ready"
    assert first != second
