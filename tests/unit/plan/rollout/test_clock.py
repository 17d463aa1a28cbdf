"""The operator's clock is set forward or back in the middle of a rollout."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from fettle.api.reasons import Reason

Make = Callable[..., Any]
HOUR = timedelta(hours=1)


@pytest.fixture
def canary(world: Make, analysis: Any) -> Any:
    """Revision b has 34 % of the traffic, and a pause of 10 s with an analysis has begun."""
    w = world(analysis=analysis)
    w.ask("b")
    return w.until(lambda w: w.status.canary is not None and w.status.canary.step == 1)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_clock_that_jumps_stops_no_rollout(canary: Any, jump: timedelta) -> None:
    canary.skew = jump
    canary.until(lambda w: w.stable == "b", limit=120)
    assert canary.exits() == [("a", Reason.SUPERSEDED)]


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_clock_that_jumps_hides_no_bad_canary(canary: Any, jump: timedelta) -> None:
    canary.skew = jump
    canary.behaves("b", error_rate=1.0)
    canary.until(lambda w: w.status.failed_revision == "b", limit=60)
    assert canary.stable == "a"


def test_a_clock_set_back_does_not_hide_the_progress_deadline(world: Make) -> None:
    w = world(progressDeadlineSeconds=20)
    w.behaves("b", start_seconds=None)
    w.ask("b")
    w.run(5)
    w.skew = -HOUR
    w.until(lambda w: w.status.failed_revision == "b", limit=60)
    assert w.condition("Degraded") == ("True", Reason.PROGRESS_DEADLINE_EXCEEDED)
