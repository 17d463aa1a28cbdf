"""Orders of events that broke other rollout controllers; docs/design/rollout.md lists each with its test."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.plan.rollout.world import at_least, at_weight

from fettle.api.reasons import Reason
from fettle.plan.rollout.state import PodFault

Make = Callable[..., Any]
PAUSED = [{"weight": 34}, {"pause": {}}, {"weight": 100}]


def test_scaling_in_the_middle_of_an_update_is_obeyed_and_takes_no_capacity(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(at_weight(34))
    w.watchers.append(at_least(3))
    w.edit(replicas=6)
    w.until(at_weight(67))
    assert w.replicas == {"a": 2, "b": 4}
    w.until(lambda w: w.stable == "b").run(10)
    assert w.replicas == {"b": 6}


def test_a_spec_that_changes_revision_and_replicas_at_once_does_both(world: Make) -> None:
    w = world()
    w.watchers.append(at_least(3))
    w.wanted = "b"
    w.edit(replicas=5)
    w.until(lambda w: w.stable == "b").run(10)
    assert w.replicas == {"b": 5}
    assert w.exits() == [("a", Reason.SUPERSEDED)]


def test_an_autoscaler_that_never_rests_neither_stops_a_rollout_nor_fights_it(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    for replicas in (4, 6, 3, 5, 2, 6, 4, 3, 5, 4, 6, 4) * 2:
        w.edit(replicas=replicas)
        w.run(7)
        assert sum(w.replicas.values()) <= 2 * 6
    w.until(lambda w: w.stable == "b").run(10)
    assert w.replicas == {"b": 4}
    assert w.status.failed_revision is None


def test_a_third_revision_rolls_out_over_a_canary_that_waits_for_a_person(world: Make) -> None:
    w = world(steps=PAUSED)
    w.ask("b")
    w.until(lambda w: w.waits)
    w.watchers.append(at_least(3))
    w.ask("c")
    w.until(lambda w: w.canary == "c" and w.waits)
    assert w.replicas.get("b", 0) == 0
    w.order("promote", "c", "1")
    w.until(lambda w: w.stable == "c").run(10)
    assert w.exits() == [("a", Reason.SUPERSEDED), ("b", Reason.SUPERSEDED)]


def test_a_promote_for_the_second_revision_does_not_promote_the_third(world: Make) -> None:
    w = world(steps=PAUSED)
    w.ask("b")
    w.until(lambda w: w.waits)
    w.order("promote", "b", "1")
    w.ask("c")
    w.until(lambda w: w.canary == "c" and w.waits).run(60)
    assert (w.stable, w.canary) == ("a", "c")


def test_set_back_to_stable_the_canary_keeps_its_pods_until_stable_is_full(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(at_weight(67))
    w.behaves("a", start_seconds=20)
    w.watchers.append(at_least(3))
    w.ask("a")
    w.run(15)
    assert w.replicas == {"a": 3, "b": 2}
    w.run(20)
    assert w.replicas == {"a": 3}


def test_a_new_rollout_begins_at_its_first_step_whatever_the_last_one_reached(world: Make) -> None:
    w = world()
    for revision in "bcd":
        w.ask(revision)
        w.until(lambda w, revision=revision: w.canary == revision)
        assert (w.status.canary.step, w.status.canary.weight) == (0, 0)
        w.until(lambda w, revision=revision: w.stable == revision).run(10)


def test_coming_back_to_a_revision_that_served_long_ago_takes_its_steps_again(world: Make) -> None:
    w = world(steps=[{"weight": 34}, {"weight": 100}], revisionHistoryLimit=2)
    for revision in "bcd":
        w.ask(revision)
        w.until(lambda w, revision=revision: w.stable == revision).run(10)
    assert "a" not in {entry.revision for entry in w.ledger}  # outside the history
    for revision in ("c", "a"):  # inside it, and outside
        w.ask(revision)
        w.until(at_weight(34))
        w.until(lambda w, revision=revision: w.stable == revision).run(10)
    assert w.replicas == {"a": 3}


def test_pods_that_are_ready_for_a_moment_only_bring_no_weight(world: Make) -> None:
    w = world(progressDeadlineSeconds=60)
    w.min_ready = timedelta(seconds=3)
    w.ask("b")
    for _ in range(8):  # ready for two seconds, then not for five
        w.until(lambda w: w.ready("b") > 0)
        w.run(1)
        w.unready("b", 5)
        assert w.status.canary.weight == 0
        assert w.replicas["a"] == 3
    w.until(lambda w: w.stable == "b")


def test_a_canary_that_crashes_again_and_again_is_no_success_of_the_old_pods(world: Make) -> None:
    w = world(steps=[], progressDeadlineSeconds=30)
    w.behaves("b", start_seconds=None, fault=PodFault(Reason.MODEL_LOAD_FAILED, "exit code 1"))
    w.ask("b")
    w.run(20)
    assert w.condition("Progressing")[0] == "True"
    assert "exit code 1" in w.message("Progressing")
    w.until(lambda w: w.status.failed_revision == "b")
    assert w.condition("Degraded") == ("True", Reason.PROGRESS_DEADLINE_EXCEEDED)
    assert (w.stable, w.serving()) == ("a", 3)


@pytest.mark.parametrize("fault", [Reason.IMAGE_PULL_FAILED, Reason.STORE_FULL, Reason.UNSCHEDULABLE])
def test_what_passes_is_waited_for_and_meanwhile_nothing_is_lost(world: Make, fault: Reason) -> None:
    """A registry that is down, a disk that is full, a node without room, for a minute."""
    w = world(progressDeadlineSeconds=120)
    w.behaves("b", start_seconds=None, fault=PodFault(fault, "for a minute"))
    w.watchers.append(at_least(3))
    w.ask("b")
    w.run(60)
    assert (w.status.canary.weight, w.status.canary.actual_weight, w.ready("b")) == (0, 0, 0)
    assert w.replicas["a"] == 3
    assert "for a minute" in w.message("Progressing")
    w.behaves("b", start_seconds=4, fault=None)
    for pod in w.alive("b"):
        pod.ready_at = w.now + timedelta(seconds=4)
    w.until(lambda w: w.stable == "b")
    assert w.status.failed_revision is None


@pytest.mark.parametrize("fault", [Reason.ARTIFACT_NOT_FOUND, Reason.ARTIFACT_TAMPERED, Reason.MODEL_LOAD_FAILED])
def test_what_cannot_pass_ends_the_rollout_at_once(world: Make, fault: Reason) -> None:
    w = world()
    w.behaves("b", start_seconds=None, fault=PodFault(fault, "said three times", final=True))
    w.ask("b")
    w.run(3)
    assert w.condition("Degraded") == ("True", fault)
    assert (w.replicas.get("b", 0), w.serving()) == (0, 3)


def test_an_abort_while_every_pod_of_the_canary_and_one_of_stable_is_lost_keeps_serving(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(at_weight(34))
    w.watchers.append(at_least(1))
    w.lose_pods("b")
    w.lose_pod("a")
    w.order("abort", "b", "1")
    w.run(30)
    assert w.replicas == {"a": 3}
    assert w.exits() == [("b", Reason.ABORTED)]


def test_retry_then_a_new_spec_then_the_old_one_again(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b").run(10)
    w.order("retry", "b", "1")
    w.until(lambda w: w.canary == "b")
    w.ask("c")
    w.until(lambda w: w.stable == "c").run(10)
    w.behaves("b", error_rate=0.0)
    w.ask("b")  # asking for it anew is a new spec: the old failure does not count
    w.until(lambda w: w.stable == "b").run(10)
    reasons = [Reason.ANALYSIS_FAILED, Reason.SUPERSEDED, Reason.SUPERSEDED, Reason.SUPERSEDED]
    assert sorted(reason for _, reason in w.exits()) == sorted(reasons)
