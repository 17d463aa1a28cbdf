"""What happens inside the canary's pods while it is judged: restarts, crashes, kills for memory, windows that are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fettle.api.modeldeployment_status import Verdict
from fettle.api.reasons import Reason

Make = Callable[..., Any]
PAUSED = [{"weight": 34}, {"pause": {}}, {"weight": 100}]


def on_trial(world: Make, analysis: Any, **more: Any) -> Any:
    """The canary waits at weight 34; its window has just begun."""
    w = world(analysis=analysis, steps=PAUSED, **more)
    w.ask("b")
    return w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)


def test_a_restart_that_is_nobodys_fault_costs_an_interval_and_no_rollout(world: Make, analysis: Any) -> None:
    w = on_trial(world, analysis)
    w.run(2)
    w.restart("b")
    w.run(4)
    assert w.status.canary.analysis.verdict is Verdict.PENDING
    assert "part of the window is unknown" in w.status.canary.analysis.message
    w.run(30)
    assert w.status.canary.analysis.verdict is Verdict.GOOD
    assert w.canary == "b"


def test_seconds_that_a_pod_knows_no_more_are_in_no_good_window(world: Make, analysis: Any) -> None:
    w = on_trial(world, analysis)
    w.run(3)
    w.lose_windows("b")
    w.run(3)
    assert w.status.canary.analysis.verdict is Verdict.PENDING
    w.run(20)
    assert w.status.canary.analysis.verdict is Verdict.GOOD


def test_crashes_in_as_many_windows_as_may_be_bad_end_the_rollout(world: Make, analysis: Any) -> None:
    w = on_trial(world, analysis)
    for _ in range(2):
        w.until(lambda w: w.ready("b") > 0)
        w.run(1)
        w.restart("b", crashed=True)
        w.run(6)
    assert w.until(lambda w: w.status.failed_revision == "b").condition("Degraded") == ("True", Reason.ANALYSIS_FAILED)
    assert "exit code 1" in w.message("Degraded")


def test_three_kills_at_its_own_memory_limit_end_the_rollout_at_once(world: Make, analysis: Any) -> None:
    w = on_trial(world, {**analysis, "failureLimit": 100})
    for _ in range(3):
        assert w.canary == "b"
        w.until(lambda w: w.ready("b") > 0)
        w.restart("b", memory=True)
    w.reconcile()
    assert w.condition("Degraded") == ("True", Reason.OUT_OF_MEMORY)
    assert w.run(10).replicas == {"a": 3}
