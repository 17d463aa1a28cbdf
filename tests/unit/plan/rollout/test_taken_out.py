"""Pods that a person took out of the traffic (`fettle.dev/traffic=off`): they are ready, and serve nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.plan.rollout.world import at_least, at_weight

from fettle.api.reasons import Reason

Make = Callable[..., Any]
BY_HAND = [{"weight": 34}, {"pause": {}}, {"weight": 67}, {"weight": 100}]


def test_ready_counts_the_pods_that_get_traffic_and_says_where_the_others_are(world: Make) -> None:
    w = world()
    w.take_out("a")
    w.run(2)
    assert w.condition("Ready") == ("False", Reason.DEPLOYING)
    assert w.message("Ready") == "2 of 3 pods are ready, 1 taken out of traffic by the label fettle.dev/traffic"
    assert (w.status.ready_replicas, w.status.stable.ready, w.status.stable.replicas) == (2, 2, 3)
    writes, started = w.writes, dict(w.started)
    w.run(700)
    assert (w.writes, w.started, w.replicas) == (writes, started, {"a": 3})
    w.put_back()
    w.run(2)
    assert (w.condition("Ready"), w.started) == (("True", Reason.SERVING), started)


def test_a_canary_whose_only_pod_is_taken_out_gets_no_weight_and_no_pod_of_stable(world: Make) -> None:
    w = world(steps=[{"weight": 34}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: len(w.alive("b")) == 1)
    w.alive("b")[0].out = True
    w.run(60)
    assert (w.weight, w.status.canary.actual_weight) == (0, 0)
    assert (w.stable, w.replicas, w.condition("Ready")[0]) == ("a", {"a": 3, "b": 1}, "True")
    w.put_back()
    w.until(lambda w: w.stable == "b")


@pytest.mark.parametrize("command", ["promote", "promote-full"])
def test_a_canary_that_is_taken_out_under_its_weight_is_not_promoted_either(world: Make, command: str) -> None:
    w = world(steps=BY_HAND)
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    w.take_out("b")
    w.order(command, "b", "1")
    w.run(60)
    assert (w.stable, w.ready("b"), w.status.canary.actual_weight) == ("a", 0, 0)
    assert "1 taken out of traffic" in w.message("Paused")
    w.put_back()
    w.until(lambda w: w.stable == "b")


def test_the_actual_weight_is_the_share_of_pods_that_get_traffic(world: Make) -> None:
    w = world(steps=[{"weight": 67}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(at_weight(67)).run(5)
    assert w.status.canary.actual_weight == 67
    w.take_out("b")
    w.run(1)
    assert w.status.canary.actual_weight == 50


def test_who_looks_at_a_pod_of_the_canary_holds_the_rollout_beyond_its_deadline(world: Make) -> None:
    w = world(progressDeadlineSeconds=60)
    w.ask("b")
    w.until(at_weight(34))
    w.take_out("b")
    w.run(200)
    assert (w.canary, w.weight, w.exits()) == ("b", 34, [])
    assert w.condition("Paused") == ("True", Reason.PAUSED_BY_USER)
    assert "1 taken out of traffic by the label fettle.dev/traffic" in w.message("Paused")
    writes = w.writes
    w.run(60)
    assert w.writes == writes
    w.lose_pods("b")  # or the pod is deleted: then its successor has the whole deadline before it
    w.until(lambda w: w.stable == "b")
    assert w.status.failed_revision is None


def test_it_can_be_aborted_meanwhile(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(at_weight(34))
    w.take_out("b")
    w.run(60)
    w.order("abort", "b", "1")
    w.run(10)
    assert (w.replicas, w.condition("Paused")[0]) == ({"a": 3}, "False")


def test_a_stable_pod_that_is_taken_out_stops_no_rollout_and_nobody_else_goes_in_its_place(world: Make) -> None:
    w = world()
    w.take_out("a")
    w.run(2)
    w.watchers.append(at_least(2))
    w.ask("b")
    w.until(at_weight(34))
    w.watchers.append(at_least(3))
    w.until(at_weight(67))
    assert w.ready("a") == 1  # beside the one that is out
    w.until(lambda w: w.stable == "b").run(10)
    assert (w.replicas, w.serving(), w.exits()) == ({"b": 3}, 3, [("a", Reason.SUPERSEDED)])


def test_scaled_down_the_pods_that_get_traffic_are_as_many_as_asked_for(world: Make) -> None:
    w = world()
    w.take_out("a")
    w.edit(replicas=2)
    w.run(10)
    assert (w.serving(), w.condition("Ready")) == (2, ("True", Reason.SERVING))
    w.put_back()
    w.run(10)
    assert (w.replicas, w.serving()) == ({"a": 2}, 2)
    w.take_out("a")
    w.edit(replicas=0)
    w.run(10)
    assert (w.replicas, w.alive("a")) == ({"a": 0}, [])


def test_a_bad_canary_is_not_taken_away_for_stable_pods_that_are_out(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(at_weight(34))
    w.take_out("a", 2)
    w.behaves("b", error_rate=1.0)
    w.watchers.append(at_least(1))
    w.until(lambda w: w.status.failed_revision == "b").run(10)
    assert w.replicas == {"a": 3}


def test_what_happened_before_a_pod_was_taken_out_still_counts(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    w.until(at_weight(34))
    w.until(lambda w: w.status.canary.analysis.consecutive == 1)
    w.take_out("b")
    w.run(60)
    assert w.status.canary.analysis.consecutive == 1  # nothing was added: nobody asks a pod that a person looks at
    w.put_back()
    w.until(lambda w: w.status.failed_revision == "b")
