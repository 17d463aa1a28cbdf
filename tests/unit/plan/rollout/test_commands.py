"""Promote, promote-full, abort and retry: each token acts once, in every order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from tests.unit.plan.rollout.world import PAUSES

from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.reasons import Reason

Make = Callable[..., Any]


def test_promote_ends_this_pause_and_no_other(paused: Any) -> None:
    paused.order("promote", "b", "1")
    paused.run(60)
    assert paused.waits
    assert (paused.status.canary.weight, paused.stable) == (67, "a")
    assert paused.status.last_command.value == "b/1"


def test_a_second_token_promotes_once_more(paused: Any) -> None:
    paused.order("promote", "b", "1")
    paused.run(30)
    paused.order("promote", "b", "2")
    paused.until(lambda w: w.stable == "b")


def test_promote_full_skips_the_remaining_steps_but_not_the_pods(paused: Any) -> None:
    paused.order("promote-full", "b", "1")
    paused.reconcile()
    assert paused.stable == "a"
    paused.until(lambda w: w.stable == "b")
    assert paused.ready("b") == 3


def test_promote_full_does_not_wait_for_the_analysis(world: Make, analysis: Any) -> None:
    w = world(steps=PAUSES, analysis=analysis)
    w.behaves("b", requests=0)
    w.ask("b")
    w.until(lambda w: w.waits)
    w.order("promote-full", "b", "1")
    w.until(lambda w: w.stable == "b")


def test_an_aborted_revision_is_not_tried_again_until_retry(paused: Any) -> None:
    paused.order("abort", "b", "1")
    paused.run(60)
    assert paused.replicas == {"a": 3}
    assert paused.condition("Degraded") == ("True", Reason.ABORTED)
    paused.order("retry", "b", "2")
    paused.until(lambda w: w.canary == "b")
    assert paused.condition("Degraded")[0] == "False"
    paused.until(lambda w: w.waits)
    paused.run(60)
    assert paused.canary == "b"  # the old abort is still annotated, and does not act again


def test_promote_while_pods_are_awaited_skips_nothing(world: Make) -> None:
    w = world(steps=PAUSES)
    w.ask("b")
    w.order("promote", "b", "1")
    w.run(60)
    assert w.waits
    assert w.status.canary.weight == 34


def test_a_command_for_another_revision_waits_for_that_one(paused: Any) -> None:
    paused.order("abort", "c", "1")
    paused.run(5)
    assert (paused.canary, paused.status.last_command) == ("b", None)
    paused.ask("c")
    paused.run(5)
    assert paused.status.failed_revision == "c"


def refusals(world: Any) -> list[str]:
    return [event.message for event in world.events if event.reason is Reason.COMMAND_REFUSED]


def accepted(world: Any) -> list[str]:
    return [event.message for event in world.events if event.reason is Reason.COMMAND_ACCEPTED]


@pytest.mark.parametrize("value", ["b", "b/", "/", "/1"])
def test_a_command_without_revision_and_token_is_none_and_is_told_so_once(paused: Any, value: str) -> None:
    paused.annotations["fettle.dev/abort"] = value
    paused.run(5)
    assert paused.canary == "b"
    assert refusals(paused) == [f"abort refused: {value!r} is not a valid command: expected <revision>/<token>"]


def test_an_empty_annotation_orders_nothing(paused: Any) -> None:
    paused.annotations["fettle.dev/abort"] = ""
    paused.run(5)
    assert (paused.canary, refusals(paused)) == ("b", [])


@pytest.mark.parametrize(
    ("command", "revision", "why"),
    [
        ("promote", "a", "promote refused: revision a is not the canary"),
        ("promote-full", "a", "promote-full refused: revision a is not the canary"),
        ("abort", "a", "abort refused: revision a is not the canary"),
        ("retry", "a", "retry refused: revision a has not failed"),
    ],
)
def test_an_order_that_has_no_effect_says_why(world: Make, command: str, revision: str, why: str) -> None:
    w = world()
    w.order(command, revision, "1")
    w.run(20)
    assert (refusals(w), accepted(w)) == ([why], [])
    assert w.status.last_command.value == "a/1"


def test_retry_twice_acts_once(paused: Any) -> None:
    paused.order("abort", "b", "1")
    paused.run(10)
    paused.order("retry", "b", "2")
    paused.until(lambda w: w.waits)
    begun = paused.status.canary.started_at
    paused.order("retry", "b", "3")
    paused.run(30)
    assert paused.status.canary.started_at == begun
    assert accepted(paused) == [
        "abort accepted: canary b is removed",
        "retry accepted: revision b is tried again from its first step",
    ]
    assert refusals(paused) == ["retry refused: revision b has not failed"]


@pytest.mark.parametrize("command", ["promote", "promote-full"])
def test_a_paused_rollout_is_not_promoted_behind_the_back_of_who_paused_it(paused: Any, command: str) -> None:
    paused.annotations["fettle.dev/paused"] = "true"
    paused.order(command, "b", "1")
    paused.run(30)
    assert refusals(paused) == [f"{command} refused: the rollout is paused; resume it first"]
    del paused.annotations["fettle.dev/paused"]
    paused.run(30)
    assert (paused.stable, paused.waits) == ("a", True)  # the token has acted


def test_the_annotation_pauses_and_its_absence_resumes(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)
    w.annotations["fettle.dev/paused"] = "true"
    w.run(120)
    assert (w.status.canary.weight, w.condition("Paused")) == (34, ("True", Reason.PAUSED_BY_USER))
    del w.annotations["fettle.dev/paused"]
    w.until(lambda w: w.stable == "b")


def test_of_several_new_commands_abort_wins(paused: Any) -> None:
    for command in ("promote", "promote-full", "retry", "abort"):
        paused.order(command, "b", "1")
    paused.run(60)
    assert (paused.stable, paused.status.failed_revision) == ("a", "b")


def test_commands_do_not_act_again_after_status_was_lost(paused: Any) -> None:
    paused.order("abort", "b", "1")
    paused.run(10)
    paused.order("retry", "b", "2")
    paused.until(lambda w: w.waits)
    paused.status = ModelDeploymentStatus()
    paused.run(60)
    assert (paused.canary, paused.status.failed_revision) == ("b", None)


@pytest.mark.parametrize("order", list(permutations(("abort", "retry", "promote"))))
def test_in_every_order_each_command_acts_once_and_the_end_is_at_rest(paused: Any, order: tuple[str, ...]) -> None:
    for token, command in enumerate(order):
        paused.order(command, "b", str(token))
        paused.run(30)
    writes = paused.writes
    paused.run(60)
    assert paused.writes == writes
    assert {entry.name for entry in paused.status.commands} == set(order)
    aborted_last = order.index("abort") > order.index("retry")
    assert (paused.status.failed_revision == "b") is aborted_last
    assert paused.serving() == 3
