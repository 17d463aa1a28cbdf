"""What `Ready` means while pods are missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan.rollout.state import PodFault

Make = Callable[..., Any]


def at_two_thirds(world: Any) -> bool:
    return bool(world.status.canary is not None and world.status.canary.weight == 67)


@pytest.fixture
def rolled_back(world: Make, analysis: Any) -> Any:
    """Two of three pods were the bad canary's; one stable pod serves, two are on their way."""
    w = world(analysis=analysis)
    w.ask("b")
    w.until(at_two_thirds)
    w.behaves("a", start_seconds=30)
    w.behaves("b", error_rate=1.0)
    return w.until(lambda w: w.canary is None)


def test_after_a_rollback_it_stays_ready_while_the_stable_revision_grows_back(rolled_back: Any) -> None:
    rolled_back.run(5)
    assert rolled_back.serving() == 1
    assert rolled_back.condition("Ready") == ("True", Reason.DEPLOYING)
    assert "1 of 3 pods" in rolled_back.message("Ready")
    assert rolled_back.condition("Progressing") == ("False", Reason.ANALYSIS_FAILED)
    assert rolled_back.condition("Degraded") == ("True", Reason.ANALYSIS_FAILED)
    rolled_back.run(40)
    assert rolled_back.condition("Ready") == ("True", Reason.SERVING)


def test_after_an_abort_too(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(at_two_thirds)
    w.behaves("a", start_seconds=30)
    w.order("abort", "b", "1")
    w.run(5)
    assert (w.serving(), w.condition("Ready")) == (1, ("True", Reason.DEPLOYING))


def test_no_event_says_that_it_is_not_ready(rolled_back: Any) -> None:
    rolled_back.run(60)
    assert not [event for event in rolled_back.events if "pods are ready" in event.message and event.type == "Warning"]


def test_it_is_not_ready_without_a_stable_pod(rolled_back: Any) -> None:
    rolled_back.lose_pods("a")
    rolled_back.run(2)
    assert rolled_back.condition("Ready") == ("False", Reason.DEPLOYING)


def test_pods_that_never_come_back_end_it_at_the_progress_deadline(world: Make) -> None:
    w = world(progressDeadlineSeconds=60)
    w.ask("b")
    w.until(at_two_thirds)
    w.behaves("a", start_seconds=1000)
    w.order("abort", "b", "1")
    w.run(50)
    assert w.condition("Ready")[0] == "True"
    decision = w.reconcile()
    assert decision.requeue_seconds is not None and decision.requeue_seconds <= 11
    w.run(15)
    assert w.condition("Ready") == ("False", Reason.DEPLOYING)


def test_pods_that_cannot_come_back_end_it_at_once(rolled_back: Any) -> None:
    rolled_back.behaves("a", fault=PodFault(Reason.ARTIFACT_TAMPERED, "a digest differs", final=True))
    rolled_back.run(2)
    assert rolled_back.condition("Ready") == ("False", Reason.ARTIFACT_TAMPERED)


def test_pods_lost_after_it_had_grown_back_count_again(rolled_back: Any) -> None:
    rolled_back.until(lambda w: w.condition("Ready") == ("True", Reason.SERVING))
    rolled_back.alive("a")[0].gone_at = rolled_back.now
    rolled_back.run(2)
    assert rolled_back.condition("Ready") == ("False", Reason.DEPLOYING)


def test_an_operator_that_died_before_it_wrote_status_says_the_same(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(at_two_thirds)
    w.behaves("a", start_seconds=30)
    w.behaves("b", error_rate=1.0)
    before = w.status
    w.until(lambda w: w.canary is None).run(5)
    w.status = before
    w.reconcile()
    assert w.condition("Ready") == ("True", Reason.DEPLOYING)


def test_after_status_was_lost_only_the_pods_count(rolled_back: Any) -> None:
    rolled_back.status = ModelDeploymentStatus()
    rolled_back.run(2)
    assert rolled_back.condition("Ready") == ("False", Reason.DEPLOYING)


def test_scaling_up_is_not_ready_until_the_pods_are(world: Make) -> None:
    w = world()
    w.edit(replicas=5)
    w.run(2)
    assert w.condition("Ready") == ("False", Reason.DEPLOYING)
    w.run(10)
    assert w.condition("Ready") == ("True", Reason.SERVING)
