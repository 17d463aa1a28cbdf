"""Worlds for tests of a rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.plan.rollout.world import ANALYSIS, PAUSES, STEPS, World


@pytest.fixture
def world() -> Callable[..., World]:
    """Makes a world whose spec has the demo's steps; `served` lets revision `a` serve first."""

    def make(
        *,
        served: bool = True,
        analysis: Any = None,
        steps: Any = STEPS,
        replicas: int = 3,
        routed: bool = False,
        **more: Any,
    ) -> World:
        rollout: dict[str, Any] = {"steps": steps, **more}
        if analysis is not None:
            rollout["analysis"] = analysis
        built = World({"replicas": replicas, "rollout": rollout}, routed=routed)
        if served:
            built.until(lambda w: w.condition("Ready")[0] == "True")
        return built

    return make


@pytest.fixture
def analysis() -> dict[str, Any]:
    """A success rate of 99 %, windows of 5 s."""
    return dict(ANALYSIS)


@pytest.fixture
def paused(world: Callable[..., World]) -> Any:
    """Revision b waits in its first pause."""
    w = world(steps=PAUSES)
    w.ask("b")
    return w.until(lambda w: w.waits)
