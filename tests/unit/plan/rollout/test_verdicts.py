"""What follows from an analysis: rolled back, paused, or left to a person."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.plan.rollout.world import at_weight

from fettle.api.modeldeployment_status import Verdict
from fettle.api.reasons import Reason
from fettle.plan.rollout.window_totals import Crash

Make = Callable[..., Any]


def somebody_serves(w: Any, *_: Any) -> None:
    assert w.serving()


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


def test_with_an_analysis_too_errors_after_the_promotion_are_left_to_the_user(world: Make, analysis: Any) -> None:
    """The trial is over, and there is no pod of the revision before to go back to: that is for a person to order."""
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.stable == "b").run(10)
    w.behaves("b", error_rate=1.0)
    writes = w.writes
    w.run(120)
    assert (w.writes, w.stable, w.replicas) == (writes, "b", {"b": 3})
    assert [w.condition(kind)[0] for kind in ("Ready", "Degraded", "Progressing")] == ["True", "False", "False"]
    w.annotations["fettle.dev/rollback-to"] = "b/a/1"
    w.until(lambda w: w.stable == "a")


def test_errors_that_begin_in_a_pause_at_weight_100_bring_the_revision_back_that_had_no_pod_left(
    world: Make, analysis: Any
) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"weight": 100}, {"pause": {}}])
    w.ask("b")
    w.until(at_weight(100)).run(20)
    assert w.replicas == {"a": 0, "b": 3}
    w.behaves("b", error_rate=1.0)
    w.watchers.append(somebody_serves)
    w.until(lambda w: w.status.failed_revision == "b")
    assert (w.stable, w.condition("Degraded")) == ("a", ("True", Reason.ANALYSIS_FAILED))
    assert w.replicas == {"a": 3, "b": 3}  # bad answers are better than none until a stable pod is ready
    w.until(lambda w: w.ready("a") > 0).run(10)
    assert (w.replicas, w.exits()) == ({"a": 3}, [("b", Reason.ANALYSIS_FAILED)])


def test_errors_that_begin_while_the_canary_grows_to_full_size_end_the_rollout_before_the_promotion(
    world: Make, analysis: Any
) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.weight == 67 and w.condition("Progressing")[1] != Reason.PROMOTING)
    w.behaves("b", start_seconds=40)
    w.until(lambda w: w.replicas["b"] == 3)
    w.behaves("b", error_rate=1.0)
    w.until(lambda w: w.status.failed_revision == "b").run(10)
    assert (w.stable, w.replicas, w.ready("b")) == ("a", {"a": 3}, 0)


@pytest.mark.parametrize("order", [None, "promote-full"])
def test_errors_that_begin_at_full_size_are_seen_before_the_promotion_unless_it_was_ordered(
    world: Make, analysis: Any, order: str | None
) -> None:
    """The last window before the promotion is one at weight 100."""
    w = world(analysis=analysis)
    w.ask("b")
    w.until(at_weight(34))
    if order is not None:
        w.order(order, "b", "1")
    w.until(lambda w: w.ready("b") == 3 or w.stable == "b")
    w.behaves("b", error_rate=1.0)
    w.run(60)
    assert w.stable == ("b" if order else "a")
    assert w.status.failed_revision == (None if order else "b")


def test_good_then_bad_then_good(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.stable == "b")
    w.behaves("c", error_rate=1.0)
    w.ask("c")
    w.until(lambda w: w.status.failed_revision == "c")
    w.ask("d")
    w.until(lambda w: w.stable == "d").until(lambda w: w.settled())
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


@pytest.mark.parametrize("start_seconds", range(8, 22, 2))
def test_more_pods_are_waited_for_at_full_weight_and_a_bad_window_meanwhile_is_no_promotion(
    world: Make, analysis: Any, start_seconds: int
) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"weight": 100}])
    w.ask("b")
    w.until(at_weight(100))
    w.behaves("b", start_seconds=start_seconds)
    w.edit(replicas=6)
    w.until(lambda w: w.status.canary.analysis.verdict is Verdict.GOOD)
    w.behaves("b", error_rate=1.0, start_seconds=start_seconds)
    seen = Verdict.GOOD
    while w.status.canary is not None:
        seen = w.status.canary.analysis.verdict
        w.run(1)
    assert w.stable == ("b" if seen is Verdict.GOOD else "a")
