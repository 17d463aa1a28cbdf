"""What Progressing says while a good canary takes its steps."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.plan.rollout.world import World

from fettle.api.reasons import Reason


def test_a_canary_runs_then_is_promoted_and_then_serves(world: Callable[..., World]) -> None:
    w = world()
    w.ask("b")
    said: list[str] = []
    for _ in range(300):
        w.run(1)
        reason = w.condition("Progressing")[1]
        if not said or said[-1] != reason:
            said.append(reason)
        if w.stable == "b" and reason == Reason.SERVING:
            break
    assert said == [Reason.CANARY_RUNNING, Reason.PROMOTING, Reason.SERVING]
