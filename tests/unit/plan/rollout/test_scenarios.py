"""What happens from apply to the end, in a simulated cluster."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan import moment
from fettle.plan.analysis import Crash
from fettle.plan.revision import NotReady
from fettle.plan.rollout_state import PodFault

Make = Callable[..., Any]


def settled(world: Any) -> bool:
    return world.canary is None and world.condition("Progressing")[0] == "False"


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
    assert settled(w)


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
    w.until(settled).run(5)
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
    w.until(settled).run(10)
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
    w.until(lambda w: w.stable == "c").until(settled).run(10)
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
    assert (w.canary, w.status.canary.weight, w.status.canary.started_at) == ("b", 34, moment.write(w.now))
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
    w.ask(NotReady(Reason.MODEL_NOT_READY, "there is no OptimizedModel m in this namespace"))
    w.run(60)
    assert w.replicas == before
    assert w.condition("Progressing")[1] == Reason.MODEL_NOT_READY
    assert w.condition("Ready")[0] == "True"


def test_without_a_model_nothing_is_made(world: Make) -> None:
    w = world(served=False)
    w.ask(NotReady(Reason.MODEL_NOT_READY, "nothing published yet"))
    w.run(5)
    assert (w.replicas, w.ledger, w.stable) == ({}, [], None)
    assert w.condition("Ready") == ("False", Reason.MODEL_NOT_READY)


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


def test_a_bad_canary_is_rolled_back_even_while_paused(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)
    w.edit(paused=True)
    w.behaves("b", error_rate=1.0)
    w.until(lambda w: w.status.failed_revision == "b").run(5)
    assert w.replicas == {"a": 3}


def test_an_analysis_without_traffic_pauses_and_does_not_roll_back(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("a", requests=0)
    w.behaves("b", requests=0)
    w.ask("b")
    w.run(100)
    assert w.canary == "b"
    assert w.condition("Paused") == ("True", Reason.ANALYSIS_INCONCLUSIVE)
    assert w.condition("Degraded")[0] == "False"
    w.order("promote", "b", "1")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 67)
    w.behaves("b", requests=20)
    w.until(lambda w: w.stable == "b")


def test_pods_that_cannot_be_asked_pause_the_rollout(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("b", silent=True)
    w.ask("b")
    w.run(100)
    assert w.condition("Paused") == ("True", Reason.ANALYSIS_UNREACHABLE)
    w.behaves("b", silent=False)
    w.until(lambda w: w.stable == "b")


def test_a_crash_counts_as_a_bad_window(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)
    crashes = tuple(Crash("b-0", w.now + timedelta(seconds=s), "exit code 139") for s in (2, 7))
    w.behaves("b", crashes=crashes)
    w.until(lambda w: w.status.failed_revision == "b")
    assert "exit code 139" in w.message("Degraded")


def test_on_failure_pause_waits_for_a_person(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, onFailure="Pause")
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    w.run(60)
    assert w.condition("Paused") == ("True", Reason.ANALYSIS_FAILED)
    assert (w.canary, w.replicas) == ("b", {"a": 2, "b": 1})
    w.order("abort", "b", "1")
    w.run(10)
    assert w.replicas == {"a": 3}
    assert w.condition("Degraded") == ("True", Reason.ABORTED)


def test_without_analysis_errors_after_the_promotion_are_left_to_the_user(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.stable == "b").run(10)
    w.behaves("b", error_rate=1.0)
    w.run(30)
    assert (w.stable, w.condition("Ready")[0]) == ("b", "True")
    w.ask("a")
    w.until(lambda w: w.stable == "a")


def test_good_then_bad_then_good(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.stable == "b")
    w.behaves("c", error_rate=1.0)
    w.ask("c")
    w.until(lambda w: w.status.failed_revision == "c")
    w.ask("d")
    w.until(lambda w: w.stable == "d").until(settled)
    assert w.condition("Degraded")[0] == "False"
    assert w.status.failed_revision is None
    assert [r for r, _ in w.exits()] == ["a", "c", "b"] or [r for r, _ in w.exits()] == ["a", "b", "c"]


def test_bad_then_bad_leaves_the_stable_revision_alone(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    for bad in ("b", "c"):
        w.behaves(bad, error_rate=1.0)
        w.ask(bad)
        w.until(lambda w, bad=bad: w.status.failed_revision == bad).run(10)
    assert w.replicas == {"a": 3}
    assert w.exits() == [("b", Reason.ANALYSIS_FAILED), ("c", Reason.ANALYSIS_FAILED)]


def test_a_failed_revision_is_tried_again_when_the_spec_asks_for_it_anew(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b")
    w.ask("a")
    w.run(5)
    w.behaves("b", error_rate=0.0)
    w.ask("b")
    w.until(lambda w: w.stable == "b")


def test_zero_replicas_hold_the_rollout_and_scaling_up_starts_it_with_its_steps(world: Make) -> None:
    w = world()
    w.edit(replicas=0)
    w.ask("b")
    w.run(30)
    assert (w.stable, sum(w.replicas.values())) == ("a", 0)
    assert w.condition("Ready")[0] == "True"
    w.edit(replicas=3)
    w.reconcile()
    assert w.replicas["a"] >= 2
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)
    w.until(lambda w: w.stable == "b")


def test_a_single_replica_has_one_pod_of_each_while_it_is_tried(world: Make) -> None:
    w = world(replicas=1, steps=[{"weight": 10}, {"pause": {}}, {"weight": 100}])
    w.watchers.append(lambda w, *_: w.serving() >= 1 or pytest.fail("no pod"))
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    assert w.replicas == {"a": 1, "b": 1}
    assert w.status.canary.actual_weight == 50
    w.order("promote", "b", "1")
    w.until(lambda w: w.stable == "b").run(5)
    assert w.replicas == {"b": 1}


def test_a_pause_after_weight_100_lets_the_canary_serve_alone(world: Make) -> None:
    w = world(steps=[{"weight": 50}, {"weight": 100}, {"pause": {}}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True").run(5)
    assert w.replicas == {"a": 0, "b": 3}
    assert (w.stable, w.status.canary.actual_weight) == ("a", 100)
    w.order("abort", "b", "1")
    w.reconcile()
    assert w.replicas == {"a": 3, "b": 3}  # it serves until a stable pod is ready
    w.until(settled).run(15)
    assert w.replicas == {"a": 3}


def test_all_canary_pods_deleted_during_an_abort_change_nothing(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 67)
    w.order("abort", "b", "1")
    w.lose_pods("b")
    w.run(15)
    assert w.replicas == {"a": 3}


def test_a_workload_that_somebody_deleted_comes_back(world: Make) -> None:
    w = world()
    del w.replicas["a"]
    w.pods.clear()
    w.run(6)
    assert w.replicas == {"a": 3}
    assert w.rendered == ["a"]


def test_the_history_is_cut_at_its_limit_but_what_serves_stays(world: Make) -> None:
    w = world(steps=[], revisionHistoryLimit=2)
    for revision in "bcdef":
        w.ask(revision)
        w.until(lambda w, revision=revision: w.stable == revision).run(10)
    assert [entry.revision for entry in w.ledger] == ["d", "e", "f"]
    assert [record.revision for record in w.status.revisions] == ["d", "e", "f"]


def test_nothing_is_written_when_nothing_changes(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.behaves("a", requests=0)
    w.behaves("b", requests=0)
    w.ask("b")
    w.run(100)
    writes, events = w.writes, len(w.events)
    w.run(300)
    assert (w.writes, len(w.events)) == (writes, events)


def test_under_traffic_status_is_written_at_most_once_an_interval(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True").run(20)
    writes = w.writes
    w.run(50, tick=0.5)
    assert w.writes - writes <= 11


def test_steps_edited_in_the_middle_of_a_rollout_are_obeyed_and_none_is_skipped(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {}}, {"weight": 67}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    w.rollout(steps=[{"weight": 34}, {"weight": 50}, {"pause": {"seconds": 5}}, {"weight": 100}])
    seen = []
    w.watchers.append(lambda _w, _s, d: seen.append(d.status.canary.weight if d.status.canary else None))
    w.until(lambda w: w.stable == "b")
    assert sorted({weight for weight in seen if weight is not None}) == [34, 50, 100]


@pytest.mark.parametrize("steps", [[{"weight": 100}], [{"weight": 50}, {"weight": 100}], []])
def test_steps_cut_short_do_not_promote_without_the_analysis(world: Make, analysis: Any, steps: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {"seconds": 1}}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    w.behaves("b", requests=0)
    w.rollout(steps=steps)
    w.run(120)
    assert (w.stable, w.canary) == ("a", "b")
    assert w.condition("Paused") == ("True", Reason.ANALYSIS_INCONCLUSIVE)


def test_a_pause_that_was_edited_in_begins_when_it_is_seen(world: Make) -> None:
    w = world(steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.behaves("b", start_seconds=20)
    w.ask("b")
    w.run(5)
    w.rollout(steps=[{"pause": {"seconds": 10}}, {"weight": 100}])
    w.run(5)
    assert (w.stable, w.status.canary.step) == ("a", 0)
    w.until(lambda w: w.stable == "b")
