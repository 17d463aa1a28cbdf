"""The operator killed after each of its writes: the same end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

Make = Callable[..., Any]


def play(world: Make, analysis: Any, kill_after: int | None) -> Any:
    """First deployment; b is promoted; c fails; d is aborted and tried again. Killed once after `kill_after` writes."""
    w = world(served=False, analysis=analysis)
    w.kill_after = kill_after
    w.behaves("c", error_rate=1.0)

    def until(condition: Callable[[Any], bool]) -> None:
        for _ in range(400):
            try:
                w.reconcile()
            except Exception as error:
                if type(error).__name__ != "Killed":
                    raise
                continue  # the process starts again
            if condition(w):
                return
            w.now += timedelta(seconds=1)
        pytest.fail(f"never came: {w.status}")

    def rest(w: Any) -> bool:
        return w.canary is None and w.serving() == 3 and len(w.replicas) == 1

    until(lambda w: w.stable == "a" and rest(w))
    w.ask("b")
    until(lambda w: w.stable == "b" and rest(w))
    w.ask("c")
    until(lambda w: w.status.failed_revision == "c" and rest(w))
    w.ask("d")
    until(lambda w: w.canary == "d" and w.status.canary.weight == 34)
    w.order("abort", "d", "1")
    until(lambda w: w.status.failed_revision == "d" and rest(w))
    w.order("retry", "d", "2")
    until(lambda w: w.stable == "d" and rest(w))
    return w


def outcome(w: Any) -> Any:
    return (
        w.stable,
        w.replicas,
        [(entry.revision, entry.reason, entry.message.split(";")[0][:14]) for entry in w.ledger],
        [(record.revision, record.reason) for record in w.status.revisions],
        {condition.type: (condition.status, condition.reason) for condition in w.status.conditions},
        w.status.commands,
    )


def test_killed_after_any_write_the_operator_comes_to_the_same_end(world: Make, analysis: Any) -> None:
    undisturbed = play(world, analysis, None)
    for after in range(undisturbed.writes):
        assert outcome(play(world, analysis, after)) == outcome(undisturbed), f"killed after write {after}"
