"""What a rollout waits for, and for how long: pauses, deadlines, people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fettle.api.reasons import Reason
from fettle.plan.rollout.state import PodFault

Make = Callable[..., Any]


def test_a_first_deployment_that_never_gets_ready_says_so_after_its_deadline(world: Make) -> None:
    w = world(served=False, progressDeadlineSeconds=30)
    w.behaves("a", start_seconds=None, fault=PodFault(Reason.MODEL_LOAD_FAILED, "unknown operator Foo"))
    w.run(40)
    assert w.condition("Ready") == ("False", Reason.MODEL_LOAD_FAILED)
    assert w.condition("Degraded") == ("True", Reason.MODEL_LOAD_FAILED)
    assert "unknown operator Foo" in w.message("Ready")
    assert w.replicas == {"a": 3}


def test_a_canary_that_never_gets_ready_fails_at_the_deadline_and_never_got_a_weight(world: Make) -> None:
    w = world(progressDeadlineSeconds=30)
    w.behaves("b", start_seconds=None)
    w.watchers.append(lambda w, s, d: d.status.canary is None or d.status.canary.weight == 0 or pytest.fail("weight"))
    w.ask("b")
    w.run(29)
    assert w.canary == "b"
    w.run(10)
    assert w.condition("Degraded") == ("True", Reason.PROGRESS_DEADLINE_EXCEEDED)
    assert w.replicas == {"a": 3}
    assert [record.entered for record in w.status.revisions if record.revision == "b"] == [None]


def test_a_tampered_artifact_ends_the_rollout_at_once(world: Make) -> None:
    w = world()
    w.behaves("b", start_seconds=None, fault=PodFault(Reason.ARTIFACT_TAMPERED, "blob differs", final=True))
    w.ask("b")
    w.run(3)
    assert w.condition("Degraded") == ("True", Reason.ARTIFACT_TAMPERED)
    assert w.replicas.get("b", 0) == 0


def test_a_pause_longer_than_the_deadline_is_no_failure(world: Make) -> None:
    w = world(
        steps=[{"weight": 34}, {"pause": {"seconds": 100}}, {"weight": 67}, {"pause": {}}, {"weight": 100}],
        progressDeadlineSeconds=20,
    )
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    w.run(200)
    w.order("promote", "b", "1")
    w.until(lambda w: w.stable == "b")


def test_a_users_pause_does_not_count_against_the_deadline(world: Make) -> None:
    w = world(progressDeadlineSeconds=20)
    w.behaves("b", start_seconds=15)
    w.ask("b")
    w.run(5)
    w.edit(paused=True)
    w.run(100)
    w.lose_pods("b")
    w.edit(paused=False)
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)


def test_paused_holds_the_rollout_but_not_scaling(world: Make) -> None:
    w = world()
    w.edit(paused=True)
    w.ask("b")
    w.run(10)
    assert (w.canary, w.replicas) == (None, {"a": 3})
    assert w.condition("Paused") == ("True", Reason.PAUSED_BY_USER)
    w.edit(replicas=5)
    w.run(10)
    assert w.replicas == {"a": 5}
    w.edit(paused=False)
    w.until(lambda w: w.stable == "b")


def test_the_annotation_pauses_as_the_field_does(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)
    w.annotations["fettle.dev/paused"] = "true"
    w.run(60)
    assert (w.status.canary.weight, w.replicas) == (34, {"a": 2, "b": 1})
    del w.annotations["fettle.dev/paused"]
    w.until(lambda w: w.stable == "b")


def test_a_pause_after_weight_100_lets_the_canary_serve_alone(world: Make) -> None:
    w = world(steps=[{"weight": 50}, {"weight": 100}, {"pause": {}}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True").run(5)
    assert w.replicas == {"a": 0, "b": 3}
    assert (w.stable, w.status.canary.actual_weight) == ("a", 100)
    w.order("abort", "b", "1")
    w.reconcile()
    assert w.replicas == {"a": 3, "b": 3}  # it serves until a stable pod is ready
    w.until(lambda w: w.settled()).run(15)
    assert w.replicas == {"a": 3}


def test_a_pause_that_was_edited_in_begins_when_it_is_seen(world: Make) -> None:
    w = world(steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.behaves("b", start_seconds=20)
    w.ask("b")
    w.run(5)
    w.rollout(steps=[{"pause": {"seconds": 10}}, {"weight": 100}])
    w.run(5)
    assert (w.stable, w.status.canary.step) == ("a", 0)
    w.until(lambda w: w.stable == "b")
