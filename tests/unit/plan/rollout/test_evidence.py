"""What the analysis saw is kept: in status while the canary is on trial, in the ledger afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fettle.api.modeldeployment_status import Verdict
from fettle.plan.rollout.analysis import KEPT_WINDOWS

Make = Callable[..., Any]


def line(world: Any, revision: str) -> str:
    return next(entry.name for entry in reversed(world.ledger) if entry.revision == revision)


def test_each_judged_window_is_kept_with_its_weight_and_what_each_metric_said(world: Make, analysis: Any) -> None:
    w = world(analysis={**analysis, "latency": {"percentile": 50, "maxMilliseconds": 20, "maxRatioToStable": 2}})
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 67).run(6)
    windows = w.status.canary.analysis.windows
    assert {window.weight for window in windows} >= {34}
    assert all(window.verdict is Verdict.GOOD and window.start < window.end for window in windows)
    rate, absolute, ratio = windows[-1].metrics
    assert (rate.metric, rate.value, rate.bound) == ("successRate", 1.0, 0.99)
    assert (absolute.metric, absolute.bound) == ("p50Milliseconds", 20)
    assert absolute.value == pytest.approx(1.06, abs=0.01)  # the edge of a simulated bucket
    assert (ratio.metric, ratio.value, ratio.bound) == ("p50RatioToStable", 1.0, 2)
    assert ratio.samples == windows[-1].requests > 0


def test_a_rollback_leaves_its_windows_in_the_ledger(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.behaves("b", error_rate=0.5)
    w.ask("b")
    w.until(lambda w: w.status.failed_revision == "b")
    kept = w.judged[line(w, "b")]
    assert [window.verdict for window in kept[-2:]] == [Verdict.BAD, Verdict.BAD]
    assert kept[-1].metrics[0].value == 0.5


def test_so_does_a_promotion(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis)
    w.ask("b")
    w.until(lambda w: w.stable == "b")
    assert {window.verdict for window in w.judged[line(w, "b")]} == {Verdict.GOOD}


def test_a_trial_without_analysis_leaves_none(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.stable == "b")
    assert w.judged == {}


def test_status_keeps_a_bounded_number_of_them(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.run(200)
    assert len(w.status.canary.analysis.windows) == KEPT_WINDOWS
    assert len(w.status.to_json()["canary"]["analysis"]["windows"]) * 250 < 8192
