"""`rollback-to`: an order that holds while the spec asks for what it fled from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason
from fettle.plan.rollout.revision import NotReady

Make = Callable[..., Any]
PAUSES = [{"weight": 34}, {"pause": {}}, {"weight": 100}]


def serve(w: Any, *revisions: str) -> Any:
    """Roll out one after the other."""
    for revision in revisions:
        w.ask(revision)
        w.until(lambda w, revision=revision: w.stable == revision and w.settled()).run(10)
    return w


def order(w: Any, target: str, token: str, desired: str | None = None) -> None:
    w.annotations["fettle.dev/rollback-to"] = f"{desired or w.wanted}/{target}/{token}"


def refusals(w: Any) -> list[str]:
    return [event.message for event in w.events if event.reason is Reason.COMMAND_REFUSED]


@pytest.fixture
def history(world: Make) -> Any:
    """a, b and c served one after the other; c serves."""
    return serve(world(), "b", "c")


def test_it_takes_the_revision_of_the_ledger_through_every_step(history: Any) -> None:
    weights = []
    history.watchers.append(lambda _w, _s, d: weights.append(d.status.canary.weight if d.status.canary else 0))
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled()).run(10)
    assert {34, 67} <= set(weights)
    assert history.replicas == {"a": 3}
    assert history.exits()[-1] == ("c", Reason.ROLLED_BACK)
    assert history.status.rollback.target == "a"
    assert history.status.last_command.value == "c/a/1"
    assert history.condition("Progressing") == ("False", Reason.ROLLED_BACK)
    assert history.condition("Degraded")[0] == "False"


def test_its_pods_run_what_they_ran_then_not_what_the_spec_says_now(history: Any) -> None:
    rendered = list(history.rendered)
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    assert history.rendered == rendered


def test_it_holds_while_the_spec_asks_for_what_it_fled_from(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    writes = history.writes
    history.edit(replicas=4)
    history.run(300)
    assert (history.stable, history.replicas) == ("a", {"a": 4})
    history.rollout(steps=[{"weight": 100}])
    history.run(60)
    assert history.stable == "a"
    assert history.writes < writes + 12  # nothing moves but the scaling


def test_a_new_spec_ends_it(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    serve(history, "d")
    assert history.status.rollback is None
    assert any("has ended: the spec decides again" in event.message for event in history.events)


def test_when_the_spec_comes_back_the_old_order_does_not_begin_again(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    serve(history, "d", "c")
    history.run(60)
    assert history.stable == "c"


def test_a_new_spec_in_the_middle_of_it_takes_over(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.canary == "a" and w.status.canary.weight == 34)
    history.ask("d")
    history.until(lambda w: w.stable == "d" and w.settled()).run(5)
    assert ("a", Reason.SUPERSEDED) in history.exits()
    assert history.replicas == {"d": 3}


@pytest.mark.parametrize("how", ["annotation taken away", "an order to the desired revision itself"])
def test_it_can_be_taken_back(history: Any, how: str) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    if how == "annotation taken away":
        del history.annotations["fettle.dev/rollback-to"]
    else:
        order(history, "c", "2")
    history.until(lambda w: w.stable == "c" and w.settled())
    assert (history.status.rollback, refusals(history)) == (None, [])


def test_to_the_stable_revision_it_ends_the_rollout_that_is_under_way(world: Make) -> None:
    w = world(steps=PAUSES)
    w.ask("b")
    w.until(lambda w: w.waits)
    order(w, "a", "1")
    w.run(120)
    assert (w.stable, w.replicas) == ("a", {"a": 3})
    assert w.exits() == [("b", Reason.ROLLED_BACK)]
    assert w.started["a"] == 4  # only the pod that had made room


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("c/x/1", "revision x is not in the ledger (it has c, b, a)"),
        ("c/c/1", "revision c is already the one that the spec asks for"),
        ("c/x", "expected <desired>/<target>/<token>"),
        ("c//1", "expected <desired>/<target>/<token>"),
        ("nonsense", "expected <desired>/<target>/<token>"),
    ],
)
def test_an_order_that_cannot_be_followed_is_refused_once_and_says_why(history: Any, value: str, why: str) -> None:
    history.annotations["fettle.dev/rollback-to"] = value
    history.run(30)
    (said,) = refusals(history)
    assert why in said
    assert (history.stable, history.canary, history.status.rollback) == ("c", None, None)


def test_the_revision_that_serves_while_another_failed_is_refused(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b").run(10)
    order(w, "a", "1")
    w.run(30)
    assert refusals(w) == ["rollback-to refused: revision a is already serving, and there is no canary"]
    assert w.condition("Degraded")[0] == "True"


def test_outside_the_history_limit_it_is_refused(world: Make) -> None:
    w = serve(world(revisionHistoryLimit=1), "b", "c")
    order(w, "a", "1")
    w.run(10)
    assert "is not in the ledger (it has c, b" in refusals(w)[0]
    order(w, "b", "2")
    w.until(lambda w: w.stable == "b" and w.settled())


def test_a_refused_order_leaves_the_one_that_holds_in_force(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    order(history, "x", "2")
    history.run(120)
    assert (history.stable, history.status.rollback.target) == ("a", "a")
    assert len(refusals(history)) == 1


def test_further_back_from_a_rollback(history: Any) -> None:
    order(history, "b", "1")
    history.until(lambda w: w.stable == "b" and w.settled())
    order(history, "a", "2")
    history.until(lambda w: w.stable == "a" and w.settled()).run(60)
    assert (history.stable, history.status.rollback.target) == ("a", "a")


def test_a_target_that_is_bad_itself_leaves_what_serves_and_may_be_retried(world: Make, analysis: Any) -> None:
    w = serve(world(analysis=analysis), "b")
    w.behaves("a", error_rate=1.0)
    order(w, "a", "1")
    w.until(lambda w: w.status.failed_revision == "a").run(30)
    assert (w.stable, w.replicas) == ("b", {"b": 3})
    assert w.condition("Degraded") == ("True", Reason.ANALYSIS_FAILED)
    w.behaves("a", error_rate=0.0)
    w.order("retry", "a", "2")
    w.until(lambda w: w.stable == "a" and w.settled())


def test_abort_ends_the_rollback_and_the_revision_before_goes_on_serving(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.canary == "a" and w.status.canary.weight == 34)
    history.order("abort", "a", "2")
    history.run(60)
    assert (history.stable, history.status.failed_revision) == ("c", "a")


def test_with_promote_full_it_skips_the_steps_but_not_the_pods(history: Any) -> None:
    history.rollout(steps=PAUSES)

    def watch(w: Any, _snapshot: Any, _decision: Any) -> None:
        assert w.serving() >= 3

    history.watchers.append(watch)
    order(history, "a", "1")
    history.order("promote-full", "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled(), limit=60)


def test_an_order_for_a_revision_not_asked_for_waits_for_it(history: Any) -> None:
    order(history, "a", "1", desired="d")
    history.run(30)
    assert (history.stable, history.status.last_command) == ("c", None)
    history.ask("d")
    history.until(lambda w: w.stable == "a" and w.settled())
    assert "d" not in history.started


def test_a_model_that_is_not_ready_does_not_end_it(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    history.ask(NotReady(Reason.MODEL_NOT_READY, "deleted"))
    history.run(30)
    history.ask("c")
    history.run(120)
    assert history.stable == "a"


def test_after_status_was_lost_it_still_holds(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    history.status = ModelDeploymentStatus()
    history.run(120)
    assert (history.stable, history.status.rollback.target) == ("a", "a")


def test_after_status_was_lost_an_order_that_had_ended_does_not_begin_again(history: Any) -> None:
    order(history, "a", "1")
    history.until(lambda w: w.stable == "a" and w.settled())
    serve(history, "d", "c")
    history.status = ModelDeploymentStatus()
    history.run(120)
    assert history.stable == "c"


def test_paused_it_waits(history: Any) -> None:
    history.annotations["fettle.dev/paused"] = "true"
    order(history, "a", "1")
    history.run(60)
    assert (history.stable, history.replicas) == ("c", {"c": 3})
    del history.annotations["fettle.dev/paused"]
    history.until(lambda w: w.stable == "a" and w.settled())
