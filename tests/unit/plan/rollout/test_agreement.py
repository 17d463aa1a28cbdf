"""A canary whose answers are compared with the stable revision's: what the rollout does about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fettle.api.reasons import Reason
from fettle.plan.rollout.window_totals import Comparisons, Doubt

Make = Callable[..., Any]
AGREEMENT = {"intervalSeconds": 5, "minRequests": 30, "failureLimit": 2, "agreement": {"min": 0.95}}


def test_a_fast_canary_without_errors_that_is_wrong_is_rolled_back_and_says_why(world: Make) -> None:
    w = world(analysis={**AGREEMENT, "successRate": {"min": 0.99}})
    w.behaves("b", comparisons=Comparisons(agreed=1, disagreed=8, unsure=2))
    w.ask("b")
    w.until(lambda w: w.exits() == [("b", Reason.ANALYSIS_FAILED)])
    assert w.stable == "a"
    assert w.condition("Degraded") == ("True", "AnalysisFailed")
    assert "agreement 0.1111 < 0.95 (95 % interval up to 0." in w.message("Degraded")
    assert (
        "45 of stable's recent items compared, 40 disagreed; 10 more items skipped, because the stable revision is unsure of them"
        in w.message("Degraded")
    )
    assert w.condition("Ready")[0] == "True"


def test_a_canary_that_differs_only_where_stable_is_unsure_is_promoted(world: Make) -> None:
    w = world(analysis=AGREEMENT)
    w.behaves("b", comparisons=Comparisons(agreed=20, unsure=10))
    w.ask("b")
    w.until(lambda w: w.stable == "b")
    assert w.exits() == [("a", Reason.SUPERSEDED)]
    told = [event.message for event in w.events]
    assert "canary b is scaled to full size; it is promoted after one good window" in told


@pytest.mark.parametrize(
    "doubt",
    [
        Doubt(Reason.ANALYSIS_UNREACHABLE, "stable pod 10.0.0.1 returned no samples (404)"),
        Doubt(Reason.ANALYSIS_INCONCLUSIVE, "stable has y FP32 [-1, 10], this revision FP32 [-1, 11]"),
    ],
)
def test_answers_that_cannot_be_compared_pause_and_promote_goes_on_without_them(world: Make, doubt: Doubt) -> None:
    w = world(analysis=AGREEMENT)
    w.behaves("b", incomparable=doubt)
    w.ask("b")
    w.until(lambda w: w.condition("Paused") == ("True", doubt.reason.value))
    w.run(120)
    assert w.canary == "b"
    assert doubt.message in w.message("Paused")
    for token in range(6):
        w.order("promote", "b", str(token))
        w.run(20)
    assert w.stable == "b"


def test_a_pause_for_samples_ends_by_itself_when_they_come(world: Make) -> None:
    w = world(analysis=AGREEMENT)
    w.behaves("b", comparisons=Comparisons(unsure=1))
    w.ask("b")
    w.until(lambda w: w.condition("Paused") == ("True", "AnalysisInconclusive"))
    w.behaves("b", comparisons=Comparisons(agreed=20))
    w.until(lambda w: w.stable == "b")


def test_a_user_can_add_agreement_in_the_middle_of_a_rollout(world: Make) -> None:
    success: dict[str, Any] = {**AGREEMENT, "successRate": {"min": 0.99}}
    del success["agreement"]
    w = world(analysis=success, steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.behaves("b", comparisons=Comparisons(disagreed=5))
    w.ask("b")
    w.until(lambda w: w.condition("Paused") == ("True", "WaitingForPromote"))
    w.rollout(analysis=AGREEMENT)
    w.until(lambda w: w.exits() == [("b", Reason.ANALYSIS_FAILED)])
    assert w.started["b"] == 1
