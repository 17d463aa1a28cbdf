"""An order acts once: its annotation stays where it is, is taken away, comes back by `kubectl apply`, and nothing happens any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.plan.rollout.world import PAUSES

from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason

Make = Callable[..., Any]


def waits_at(weight: int) -> Callable[[Any], bool]:
    return lambda w: w.waits and w.canary == "b" and w.weight == weight


def again(w: Any) -> None:
    """Every annotation is seen again in many passes, is taken away, and given anew with the same value."""
    given = dict(w.annotations)
    w.run(30)
    w.annotations.clear()
    w.run(5)
    w.annotations.update(given)
    w.run(60)


def new_trial_of_b(w: Any) -> None:
    """Revision c comes in between, then b is asked for anew: everything is as it was when the order was given."""
    w.ask("c")
    w.until(lambda w: w.canary == "c")
    w.ask("b")
    w.until(waits_at(34))


@pytest.fixture
def paused(world: Make) -> Any:
    """Revision b waits in its first pause."""
    w = world(steps=PAUSES)
    w.ask("b")
    return w.until(waits_at(34))


def test_promote(paused: Any) -> None:
    paused.order("promote", "b", "1")
    paused.until(waits_at(67))
    again(paused)
    assert waits_at(67)(paused)
    new_trial_of_b(paused)
    again(paused)
    assert waits_at(34)(paused)


def test_promote_full(paused: Any) -> None:
    paused.order("promote-full", "b", "1")
    paused.until(lambda w: w.stable == "b" and w.settled())
    paused.ask("a")
    for token in "12":
        paused.run(30)
        paused.order("promote", "a", token)
    paused.until(lambda w: w.stable == "a" and w.settled())
    paused.ask("b")  # nobody said that this time, too, it shall skip its steps
    paused.until(waits_at(34))
    again(paused)
    assert waits_at(34)(paused)


def test_promote_full_that_a_new_revision_cut_short(paused: Any) -> None:
    paused.behaves("b", start_seconds=60)
    paused.order("promote-full", "b", "1")
    paused.run(5)
    new_trial_of_b(paused)
    again(paused)
    assert waits_at(34)(paused)


def test_abort(paused: Any) -> None:
    paused.order("abort", "b", "1")
    paused.until(lambda w: w.status.failed_revision == "b")
    new_trial_of_b(paused)
    again(paused)
    assert waits_at(34)(paused)
    assert [reason for _, reason in paused.exits()].count(Reason.ABORTED) == 1


def test_retry(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b")
    w.order("retry", "b", "1")
    w.until(lambda w: w.canary == "b")
    w.until(lambda w: w.status.failed_revision == "b")
    again(w)
    assert (w.status.failed_revision, w.canary, w.replicas) == ("b", None, {"a": 3})
    assert w.exits() == [("b", Reason.ANALYSIS_FAILED)] * 2


def test_rollback_to(world: Make) -> None:
    w = world(steps=[{"weight": 34}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: w.stable == "b" and w.settled())
    w.annotations["fettle.dev/rollback-to"] = "b/a/1"
    w.until(lambda w: w.stable == "a" and w.settled())
    del w.annotations["fettle.dev/rollback-to"]  # taken back: what the spec asks for is rolled out again
    w.until(lambda w: w.stable == "b" and w.settled())
    w.annotations["fettle.dev/rollback-to"] = "b/a/1"
    again(w)
    assert (w.stable, w.canary, w.status.rollback) == ("b", None, None)


@pytest.mark.parametrize("resumed", ["false", None])
def test_pause_and_resume_are_a_state_that_is_the_same_however_often_it_is_seen(
    paused: Any, resumed: str | None
) -> None:
    paused.annotations["fettle.dev/paused"] = "true"
    paused.run(5)
    writes = paused.writes
    paused.run(60)
    assert (paused.writes, paused.condition("Paused")) == (writes, ("True", Reason.PAUSED_BY_USER))
    if resumed is None:
        del paused.annotations["fettle.dev/paused"]
    else:
        paused.annotations["fettle.dev/paused"] = resumed
    paused.order("promote", "b", "1")
    paused.until(waits_at(67))
    paused.run(60)
    assert waits_at(67)(paused)  # resuming ended the user's pause and no other, however often it is seen


@pytest.mark.parametrize("command", ["promote", "promote-full"])
def test_not_even_after_status_was_lost(paused: Any, command: str) -> None:
    paused.behaves("b", start_seconds=60)
    paused.order(command, "b", "1")
    paused.run(5)
    paused.status = ModelDeploymentStatus()
    again(paused)
    assert waits_at(34)(paused)
