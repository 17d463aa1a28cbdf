"""Reconciling and Stalled: by these two conditions tools tell whether a ModelDeployment is on its way, is stuck, or is as its spec asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.plan.rollout.world import ANALYSIS, World

from fettle.api.reasons import Reason
from fettle.plan.rollout.revision import NotReady
from fettle.plan.rollout.state import PodFault

Make = Callable[..., World]


def stands(w: World) -> tuple[str, str]:
    """The condition that holds, if any, and its reason."""
    reconciling, stalled = w.condition("Reconciling"), w.condition("Stalled")
    assert "True" not in (reconciling[0], stalled[0]) or reconciling[0] != stalled[0]
    if stalled[0] == "True":
        return "Stalled", stalled[1]
    return ("Reconciling" if reconciling[0] == "True" else "settled"), reconciling[1]


def first(make: Make) -> World:
    return make(served=False).run(1)


def serving(make: Make) -> World:
    return make().run(1)


def scaled_up(make: Make) -> World:
    w = make()
    w.edit(replicas=5)
    return w.run(1)


def kept_out_by_a_quota(make: Make) -> World:
    w = make(served=False)
    w.behaves("a", start_seconds=None, fault=PodFault(Reason.QUOTA_EXCEEDED, "exceeded quota: team, limited: pods=0"))
    return w.run(1)


def scaled_to_zero(make: Make) -> World:
    w = make()
    w.edit(replicas=0)
    return w.run(10)


def stuck_at_first(make: Make) -> World:
    w = make(served=False, progressDeadlineSeconds=30)
    w.behaves("a", start_seconds=None, fault=PodFault(Reason.MODEL_LOAD_FAILED, "unknown operator Foo"))
    return w.run(40)


def mended_by_another(make: Make) -> World:
    w = stuck_at_first(make)
    w.ask("b")
    return w.run(1)


def canary(make: Make) -> World:
    w = make()
    w.ask("b")
    return w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)


def promoting(make: Make) -> World:
    w = make(steps=[{"weight": 34}, {"weight": 100}])
    w.ask("b")
    return w.until(lambda w: w.condition("Progressing")[1] == Reason.PROMOTING)


def promoted(make: Make) -> World:
    w = canary(make)
    return w.until(lambda w: w.stable == "b").run(10)


def waiting_for_promote(make: Make) -> World:
    w = make(steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    return w.until(lambda w: w.condition("Paused")[0] == "True")


def paused_on_its_way(make: Make) -> World:
    w = canary(make)
    w.annotations["fettle.dev/paused"] = "true"
    return w.run(5)


def paused_before_a_rollout(make: Make) -> World:
    w = make()
    w.edit(paused=True)
    w.ask("b")
    return w.run(5)


def paused_with_nothing_to_do(make: Make) -> World:
    w = make()
    w.edit(paused=True)
    return w.run(5)


def inconclusive(make: Make) -> World:
    w = make(analysis=ANALYSIS)
    for revision in ("a", "b"):
        w.behaves(revision, requests=0)
    w.ask("b")
    return w.run(100)


def unreachable(make: Make) -> World:
    w = make(analysis=ANALYSIS)
    w.behaves("b", silent=True)
    w.ask("b")
    return w.run(100)


def failed(make: Make) -> World:
    w = make(analysis=ANALYSIS)
    w.behaves("b", error_rate=0.3)
    w.ask("b")
    return w.until(lambda w: w.status.failed_revision == "b").run(10)


def failed_and_waiting(make: Make) -> World:
    w = make(analysis=ANALYSIS, onFailure="Pause")
    w.behaves("b", error_rate=1.0)
    w.ask("b")
    return w.until(lambda w: w.condition("Paused")[0] == "True")


def aborted(make: Make) -> World:
    w = canary(make)
    w.order("abort", "b", "1")
    return w.run(10)


def retried(make: Make) -> World:
    w = aborted(make)
    w.order("retry", "b", "2")
    return w.run(2)


def reverted(make: Make) -> World:
    w = failed(make)
    w.ask("a")
    return w.run(10)


def tampered(make: Make) -> World:
    w = make()
    w.behaves("b", start_seconds=None, fault=PodFault(Reason.ARTIFACT_TAMPERED, "blob differs", final=True))
    w.ask("b")
    return w.run(3)


def without_a_model(make: Make) -> World:
    w = make(served=False)
    w.ask(NotReady(Reason.MODEL_NOT_READY, "OptimizedModel m has published nothing"))
    return w.run(3)


def serving_while_the_next_target_is_not_ready(make: Make) -> World:
    w = make()
    w.ask(NotReady(Reason.MODEL_NOT_READY, "OptimizedModel m has published nothing for target gpu"))
    return w.run(3)


def of_a_spec_without_sense(make: Make) -> World:
    w = make()
    w.ask(NotReady(Reason.INVALID_SPEC, "spec.model requires ref, or uri with sha256 and runtime"))
    return w.run(3)


def rolled_back(make: Make) -> World:
    w = promoted(make)
    w.order("rollback-to", "b/a", "1")
    w.order("promote-full", "a", "1")
    return w.until(lambda w: w.stable == "a").run(10)


@pytest.mark.parametrize(
    ("situation", "expected"),
    [
        (first, ("Reconciling", Reason.DEPLOYING)),
        (serving, ("settled", Reason.SERVING)),
        (scaled_up, ("Reconciling", Reason.DEPLOYING)),
        (kept_out_by_a_quota, ("Reconciling", Reason.QUOTA_EXCEEDED)),
        (scaled_to_zero, ("settled", Reason.SERVING)),
        (stuck_at_first, ("Stalled", Reason.MODEL_LOAD_FAILED)),
        (mended_by_another, ("Reconciling", Reason.DEPLOYING)),
        (canary, ("Reconciling", Reason.CANARY_RUNNING)),
        (promoting, ("Reconciling", Reason.PROMOTING)),
        (promoted, ("settled", Reason.SERVING)),
        (waiting_for_promote, ("Reconciling", Reason.WAITING_FOR_PROMOTE)),
        (paused_on_its_way, ("Reconciling", Reason.PAUSED_BY_USER)),
        (paused_before_a_rollout, ("Reconciling", Reason.PAUSED_BY_USER)),
        (paused_with_nothing_to_do, ("settled", Reason.SERVING)),
        (inconclusive, ("Reconciling", Reason.ANALYSIS_INCONCLUSIVE)),
        (unreachable, ("Reconciling", Reason.ANALYSIS_UNREACHABLE)),
        (failed, ("Stalled", Reason.ANALYSIS_FAILED)),
        (failed_and_waiting, ("Stalled", Reason.ANALYSIS_FAILED)),
        (aborted, ("Stalled", Reason.ABORTED)),
        (retried, ("Reconciling", Reason.CANARY_RUNNING)),
        (reverted, ("settled", Reason.SERVING)),
        (tampered, ("Stalled", Reason.ARTIFACT_TAMPERED)),
        (without_a_model, ("Reconciling", Reason.MODEL_NOT_READY)),
        (serving_while_the_next_target_is_not_ready, ("Reconciling", Reason.MODEL_NOT_READY)),
        (of_a_spec_without_sense, ("Stalled", Reason.INVALID_SPEC)),
        (rolled_back, ("settled", Reason.SERVING)),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_a_modeldeployment_says_how_it_stands(world: Any, situation: Callable[[Make], World], expected: Any) -> None:
    assert stands(situation(world)) == expected


def test_what_keeps_pods_out_is_told_by_reconciling_too(world: Any) -> None:
    w = kept_out_by_a_quota(world)
    expected = "0 of 3 pods of revision a are ready: exceeded quota: team, limited: pods=0"
    assert w.message("Reconciling") == expected
    w.behaves("a", fault=None)
    assert stands(w.run(1)) == ("Reconciling", Reason.DEPLOYING)
