"""What happens from apply to the end, in a simulated cluster."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan import timestamps
from fettle.plan.rollout.revision import NotReady

Make = Callable[..., Any]


def test_a_first_deployment_takes_no_steps_and_is_ready_when_its_pods_are(world: Make) -> None:
    w = world(served=False)
    w.reconcile()
    assert (w.stable, w.replicas, w.canary) == ("a", {"a": 3}, None)
    assert w.condition("Ready") == ("False", Reason.DEPLOYING)
    w.run(5)
    assert w.condition("Ready") == ("True", Reason.SERVING)
    assert w.condition("Progressing") == ("False", Reason.SERVING)
    assert [record.revision for record in w.status.revisions] == ["a"]


def test_a_good_canary_goes_up_step_by_step_and_becomes_stable_in_place(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    weights = []
    w.watchers.append(lambda _w, _s, d: weights.append(d.status.canary.weight if d.status.canary else None))
    w.until(lambda w: w.stable == "b").run(10)
    assert sorted({weight for weight in weights if weight is not None}) == [0, 34, 67, 100]
    assert w.replicas == {"b": 3}
    assert w.started == {"a": 3, "b": 3}  # no model was loaded twice
    assert w.exits() == [("a", Reason.SUPERSEDED)]
    assert w.settled()


def test_no_request_is_without_a_pod_and_the_count_stays_within_one_of_replicas(world: Make) -> None:
    w = world(replicas=10, steps=[{"weight": 50}, {"pause": {}}, {"weight": 100}])

    def watch(w: Any, _snapshot: Any, decision: Any) -> None:
        assert w.serving() >= 10
        if decision.status.canary is not None and decision.status.canary.step < 2:
            assert sum(decision.replicas.values()) <= 11

    w.watchers.append(watch)
    w.ask("b")
    w.until(lambda w: w.condition("Paused") == ("True", Reason.WAITING_FOR_PROMOTE)).run(2)
    assert w.replicas == {"a": 5, "b": 5}
    assert w.status.canary.actual_weight == 50
    w.order("promote", "b", "1")
    w.until(lambda w: w.settled()).run(5)
    assert w.replicas == {"b": 10}


@pytest.mark.parametrize(
    ("how", "metric"),
    [
        ({"error_rate": 0.3}, "success rate 0.7000 < 0.99"),
        ({"milliseconds": 80.0}, "p50 latency"),
    ],
)
def test_a_bad_canary_is_rolled_back_and_says_why(world: Make, analysis: Any, how: Any, metric: str) -> None:
    w = world(analysis={**analysis, "latency": {"percentile": 50, "maxRatioToStable": 2}})
    w.behaves("b", **how)
    w.ask("b")
    w.until(lambda w: w.canary is None and w.status.failed_revision == "b").run(10)
    assert w.replicas == {"a": 3}
    assert w.condition("Ready") == ("True", Reason.SERVING)
    assert w.condition("Progressing") == ("False", Reason.ANALYSIS_FAILED)
    assert w.condition("Degraded") == ("True", Reason.ANALYSIS_FAILED)
    assert metric in w.message("Degraded")
    assert "requests" in w.message("Degraded")
    assert w.exits() == [("b", Reason.ANALYSIS_FAILED)]
    assert any(event.type == "Warning" and event.reason is Reason.ANALYSIS_FAILED for event in w.events)


def test_a_bad_canary_never_gets_traffic_again(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b")
    made = w.started["b"]
    w.edit(replicas=4)
    w.rollout(steps=[{"weight": 100}])
    w.run(120)
    assert w.started["b"] == made
    assert w.replicas == {"a": 4}


def test_the_stable_revision_goes_to_full_size_in_the_very_pass_that_takes_the_bad_canary_away(
    world: Make, analysis: Any
) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 67)
    w.behaves("b", error_rate=1.0)
    w.until(lambda w: w.canary is None)
    assert w.replicas == {"a": 3, "b": 0}


def test_a_bad_canary_keeps_serving_only_while_no_stable_pod_is_ready(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 67)
    w.behaves("b", error_rate=1.0)
    w.lose_pods("a")
    w.behaves("a", start_seconds=30)
    for pod in w.alive("a"):
        pod.ready_at = w.now + timedelta(seconds=30)
    w.until(lambda w: w.status.failed_revision == "b")
    assert w.replicas["b"] == 2
    assert w.replicas["a"] == 3
    w.until(lambda w: w.ready("a") > 0)
    assert w.replicas["b"] == 0


def test_a_to_b_to_a_never_restarts_a_pod_of_a(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)
    w.ask("a")
    w.watchers.append(lambda w, *_: [None for _ in [0] if w.serving() >= 3] or pytest.fail("capacity was lost"))
    w.until(lambda w: w.settled()).run(10)
    assert w.replicas == {"a": 3}
    assert w.started["a"] == 4  # three, and the one that made room for the canary
    assert w.exits() == [("b", Reason.ROLLED_BACK)]
    assert w.condition("Degraded")[0] == "False"
    assert w.rendered == ["a", "b"]


def test_a_new_revision_mid_canary_replaces_the_canary_and_restarts_the_steps(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 67)
    low = []
    w.watchers.append(lambda w, *_: low.append(w.serving()))
    w.ask("c")
    w.reconcile()
    assert (w.canary, w.status.canary.step, w.status.canary.weight) == ("c", 0, 0)
    w.until(lambda w: w.stable == "c").until(lambda w: w.settled()).run(10)
    assert min(low) >= 3
    assert w.replicas == {"c": 3}
    assert w.exits() == [("a", Reason.SUPERSEDED), ("b", Reason.SUPERSEDED)]
    assert w.started["b"] == 2


def test_scaling_is_obeyed_while_a_pause_waits(world: Make) -> None:
    w = world(steps=[{"weight": 50}, {"pause": {}}, {"weight": 100}], replicas=2)
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    w.edit(replicas=6)
    w.run(20)
    assert w.replicas == {"a": 3, "b": 3}
    w.edit(replicas=2)
    w.run(5)
    assert w.replicas == {"a": 1, "b": 1}
    assert w.condition("Paused") == ("True", Reason.WAITING_FOR_PROMOTE)


def test_the_stable_revision_is_found_again_after_status_and_annotation_were_lost(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 67)
    w.status, w.annotation = ModelDeploymentStatus(), None
    low = []
    w.watchers.append(lambda w, *_: low.append(w.serving()))
    w.reconcile()
    assert w.stable == "a"
    assert (w.canary, w.status.canary.weight, w.status.canary.started_at) == ("b", 34, timestamps.write(w.now))
    w.until(lambda w: w.stable == "b")
    assert min(low) >= 3


def test_with_no_ledger_at_all_the_available_workload_is_adopted_and_the_steps_are_not_skipped(world: Make) -> None:
    w = world()
    w.status, w.annotation, w.ledger = ModelDeploymentStatus(), None, []
    w.ask("b")
    w.reconcile()
    assert (w.stable, w.canary) == ("a", "b")
    assert w.rendered[-1] == "b"  # what runs keeps its own template
    w.until(lambda w: w.stable == "b")
    assert w.started["a"] == 3


def test_an_operator_upgrade_renders_nothing_anew(world: Make) -> None:
    w = world()
    w.rendered.clear()
    w.run(60)
    w.status = ModelDeploymentStatus()
    w.run(60)
    assert w.rendered == []
    assert w.started == {"a": 3}


def test_a_model_that_is_not_ready_changes_nothing_that_serves(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)
    before = dict(w.replicas)
    w.ask(NotReady(Reason.MODEL_NOT_READY, "OptimizedModel m not found in this namespace"))
    w.run(60)
    assert w.replicas == before
    assert w.condition("Progressing")[1] == Reason.MODEL_NOT_READY
    assert (w.condition("Ready")[0], w.condition("Paused")[0]) == ("True", "False")


def test_without_a_model_nothing_is_made(world: Make) -> None:
    w = world(served=False)
    w.ask(NotReady(Reason.MODEL_NOT_READY, "nothing published yet"))
    w.run(5)
    assert (w.replicas, w.ledger, w.stable) == ({}, [], None)
    assert w.condition("Ready") == ("False", Reason.MODEL_NOT_READY)
    assert w.condition("Paused")[0] == "False"


def test_an_invalid_first_revision_is_replaced_without_steps(world: Make) -> None:
    w = world(served=False)
    w.behaves("a", start_seconds=None)
    w.run(20)
    w.ask("b")
    w.reconcile()
    assert (w.stable, w.canary) == ("b", None)
    w.run(20)
    assert w.replicas == {"b": 3}
    assert w.condition("Ready")[0] == "True"
