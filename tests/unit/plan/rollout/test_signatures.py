"""A revision that clients of the stable one could not use: whose clients count, what becomes of it, and how a person has it all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.plan.rollout.world import at_least, at_weight

from fettle.api.reasons import Reason
from fettle.plan.rollout.revision import NotReady
from fettle.plan.rollout.state import PodFault

Make = Callable[..., Any]


def without_traffic(revision: str) -> Callable[..., None]:
    """A watcher: no pod of `revision` is ever ready."""

    def watch(world: Any, *_: Any) -> None:
        assert world.ready(revision) == 0

    return watch


@pytest.fixture
def refused(world: Make) -> Any:
    """Clients of a cannot use b, which the spec asked for."""
    w = world()
    w.unfit.add(("a", "b"))
    w.ask("b")
    return w.until(lambda w: w.status.failed_revision == "b")


@pytest.mark.parametrize("more", [{}, {"onFailure": "Pause"}, {"steps": []}], ids=["", "onFailure: Pause", "no steps"])
def test_a_revision_that_clients_could_not_use_ends_before_it_gets_traffic(world: Make, more: Any) -> None:
    w = world(**more)
    w.unfit.add(("a", "b"))
    w.watchers += [without_traffic("b"), at_least(3)]
    w.ask("b")
    w.run(120)
    assert (w.replicas, w.stable) == ({"a": 3}, "a")
    assert w.condition("Degraded") == ("True", Reason.SIGNATURE_INCOMPATIBLE)
    assert w.message("Degraded") == "revision b: input x is new"
    assert "kubectl fettle retry digits" in w.message("Progressing")
    assert (w.condition("Ready")[0], w.condition("Paused")[0]) == ("True", "False")
    assert w.exits() == [("b", Reason.SIGNATURE_INCOMPATIBLE)]
    assert w.rendered == ["a", "b"], "it is not tried again"


def test_retry_rolls_it_out_all_the_same(refused: Any) -> None:
    refused.order("retry", "b", "1")  # while its pod still terminates
    refused.until(lambda w: w.stable == "b")
    assert (refused.replaces["b"], refused.rendered) == (None, ["a", "b", "b"])
    assert refused.condition("Degraded")[0] == "False"


def test_retry_still_holds_when_the_rollout_goes_on_later(refused: Any) -> None:
    refused.annotations["fettle.dev/paused"] = "true"
    refused.order("retry", "b", "1")
    refused.run(30)
    del refused.annotations["fettle.dev/paused"]
    refused.until(lambda w: w.stable == "b")


def test_who_has_insisted_once_need_not_do_so_after_each_failure(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.unfit.add(("a", "b"))
    w.behaves("b", fault=PodFault(Reason.ARTIFACT_TAMPERED, "said three times", final=True))
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b").run(10)
    w.behaves("b", fault=None)
    w.order("retry", "b", "1")
    w.until(lambda w: w.condition("Degraded") == ("True", Reason.SIGNATURE_INCOMPATIBLE)).run(10)
    w.behaves("b", fault=PodFault(Reason.ARTIFACT_TAMPERED, "said three times", final=True))
    w.order("retry", "b", "2")
    w.until(lambda w: w.condition("Degraded") == ("True", Reason.ARTIFACT_TAMPERED)).run(10)
    w.behaves("b", fault=None)
    w.order("retry", "b", "3")
    w.until(lambda w: w.stable == "b")


def test_an_order_from_before_it_was_refused_allows_nothing(world: Make) -> None:
    w = world()
    w.unfit.add(("a", "b"))
    w.behaves("b", fault=PodFault(Reason.ARTIFACT_NOT_FOUND, "said three times", final=True))
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b").run(10)
    w.behaves("b", fault=None)
    w.watchers.append(without_traffic("b"))
    w.order("retry", "b", "1")
    w.run(60)
    assert w.exits() == [("b", Reason.ARTIFACT_NOT_FOUND), ("b", Reason.SIGNATURE_INCOMPATIBLE)]


def test_another_spec_and_then_this_one_again_is_refused_again(refused: Any) -> None:
    refused.ask("a")
    refused.run(10)
    refused.watchers.append(without_traffic("b"))
    refused.ask("b")
    refused.run(30)
    assert refused.exits() == [("b", Reason.SIGNATURE_INCOMPATIBLE)] * 2


def test_a_first_revision_has_no_clients_to_care_for(world: Make) -> None:
    w = world(served=False)
    w.behaves("a", start_seconds=None)
    w.run(10)
    w.ask("b")
    w.until(lambda w: w.condition("Ready")[0] == "True")
    assert w.replaces == {"a": None, "b": None}


def test_a_third_revision_is_for_the_clients_of_stable_and_not_of_the_canary(world: Make) -> None:
    w = world()
    w.unfit.add(("b", "c"))
    w.ask("b")
    w.until(at_weight(34))
    w.ask("c")
    w.until(lambda w: w.stable == "c")
    assert w.replaces == {"a": None, "b": "a", "c": "a"}


def test_nothing_keeps_people_from_going_back_to_what_served_before(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.stable == "b").run(10)
    w.unfit.add(("b", "a"))
    w.ask("a")
    w.until(lambda w: w.stable == "a").run(10)
    w.order("rollback-to", "a/b", "1")
    w.until(lambda w: w.stable == "b")


def test_another_setting_of_the_same_artifact_changes_nothing_for_clients(world: Make) -> None:
    w = world()
    w.artifacts["b"] = "pvc://store/artifacts/a"
    w.ask("b")
    w.until(lambda w: w.stable == "b")
    assert w.replaces["b"] is None


def test_it_ends_also_while_the_rollout_is_paused_or_the_model_is_gone(world: Make) -> None:
    for hold in ("paused", "gone"):
        w = world()
        w.unfit.add(("a", "b"))
        w.ask("b")
        w.reconcile()
        if hold == "paused":
            w.edit(paused=True)
        else:
            w.ask(NotReady(Reason.MODEL_NOT_READY, "deleted"))
        w.run(20)
        assert w.replicas == {"a": 3}, hold
