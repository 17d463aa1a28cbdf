"""Events for conditions that change."""

from __future__ import annotations

from fettle.api.conditions import READY, Condition, ConditionStatus
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan.rollout.status import transitions


def test_an_event_says_since_when_the_condition_holds_and_not_the_revision() -> None:
    ready = Condition(
        type=READY,
        status=ConditionStatus.TRUE,
        reason=Reason.SERVING,
        message="3 pods ready, stable revision 8ab86e230b",
        last_transition_time="2026-01-02T06:01:17Z",
    )
    (event,) = transitions(ModelDeploymentStatus(), ModelDeploymentStatus(conditions=(ready,)))
    assert event.message == "3 pods ready, stable revision 8ab86e230b (Ready is True since 2026-01-02T06:01:17Z)"
