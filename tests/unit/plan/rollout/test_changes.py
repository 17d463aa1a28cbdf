"""What is changed while it serves: replicas, workloads, history, steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fettle.api.reasons import Reason
from fettle.plan.rollout.decide import decide

Make = Callable[..., Any]


def test_zero_replicas_hold_the_rollout_and_scaling_up_starts_it_with_its_steps(world: Make) -> None:
    w = world()
    w.edit(replicas=0)
    w.ask("b")
    w.run(30)
    assert (w.stable, sum(w.replicas.values())) == ("a", 0)
    assert w.condition("Ready")[0] == "True"
    w.edit(replicas=3)
    w.reconcile()
    assert w.replicas["a"] >= 2
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 34)
    w.until(lambda w: w.stable == "b")


def test_a_single_replica_has_one_pod_of_each_while_it_is_tried(world: Make) -> None:
    w = world(replicas=1, steps=[{"weight": 10}, {"pause": {}}, {"weight": 100}])
    w.watchers.append(lambda w, *_: w.serving() >= 1 or pytest.fail("no pod"))
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    assert w.replicas == {"a": 1, "b": 1}
    assert w.status.canary.actual_weight == 50
    w.order("promote", "b", "1")
    w.until(lambda w: w.stable == "b").run(5)
    assert w.replicas == {"b": 1}


def test_all_canary_pods_deleted_during_an_abort_change_nothing(world: Make) -> None:
    w = world()
    w.ask("b")
    w.until(lambda w: w.status.canary is not None and w.status.canary.weight == 67)
    w.order("abort", "b", "1")
    w.lose_pods("b")
    w.run(15)
    assert w.replicas == {"a": 3}


def test_a_workload_that_somebody_deleted_comes_back(world: Make) -> None:
    w = world()
    del w.replicas["a"]
    w.pods.clear()
    w.run(6)
    assert w.replicas == {"a": 3}
    assert w.rendered == ["a"]


def test_the_history_is_cut_at_its_limit_but_what_serves_stays(world: Make) -> None:
    w = world(steps=[], revisionHistoryLimit=2)
    for revision in "bcdef":
        w.ask(revision)
        w.until(lambda w, revision=revision: w.stable == revision).run(10)
    assert [entry.revision for entry in w.ledger] == ["d", "e", "f"]
    assert [record.revision for record in w.status.revisions] == ["d", "e", "f"]


def test_nothing_is_written_when_nothing_changes(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.behaves("a", requests=0)
    w.behaves("b", requests=0)
    w.ask("b")
    w.run(100)
    writes, events = w.writes, len(w.events)
    w.run(300)
    assert (w.writes, len(w.events)) == (writes, events)


def test_under_traffic_status_is_written_at_most_once_an_interval(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True").run(20)
    writes = w.writes
    w.run(50, tick=0.5)
    assert w.writes - writes <= 11


def test_steps_edited_in_the_middle_of_a_rollout_are_obeyed_and_none_is_skipped(world: Make, analysis: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {}}, {"weight": 67}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    w.rollout(steps=[{"weight": 34}, {"weight": 50}, {"pause": {"seconds": 5}}, {"weight": 100}])
    seen = []
    w.watchers.append(lambda _w, _s, d: seen.append(d.status.canary.weight if d.status.canary else None))
    w.until(lambda w: w.stable == "b")
    assert sorted({weight for weight in seen if weight is not None}) == [34, 50, 100]


@pytest.mark.parametrize("steps", [[{"weight": 100}], [{"weight": 50}, {"weight": 100}], []])
def test_steps_cut_short_do_not_promote_without_the_analysis(world: Make, analysis: Any, steps: Any) -> None:
    w = world(analysis=analysis, steps=[{"weight": 34}, {"pause": {"seconds": 1}}, {"pause": {}}, {"weight": 100}])
    w.ask("b")
    w.until(lambda w: w.condition("Paused")[0] == "True")
    w.behaves("b", requests=0)
    w.rollout(steps=steps)
    w.run(120)
    assert (w.stable, w.canary) == ("a", "b")
    assert w.condition("Paused") == ("True", Reason.ANALYSIS_INCONCLUSIVE)


def test_what_the_ledger_says_serves_and_is_not_in_sight_is_read_live_before_anything_is_decided(world: Make) -> None:
    w = world(replicas=10)
    w.ask("b")
    for _ in range(60):
        snapshot = w.snapshot()
        for hidden in snapshot.workloads:
            blind = replace(snapshot, workloads={k: v for k, v in snapshot.workloads.items() if k != hidden})
            serves = any(line.revision == hidden and line.entered and not line.left for line in snapshot.ledger)
            assert decide(blind).takes_away(blind) or not serves
        w.run(1)
    assert w.stable == "b"
