"""The operator killed after each of its writes, and random histories: the same end, and never anything unsafe on the way."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fettle.api.modeldeployment import ModelDeploymentStatus

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


def safe(w: Any, snapshot: Any, decision: Any) -> None:
    """What holds in every pass, whatever happened before."""
    total = snapshot.spec.replicas
    before = snapshot.status.canary
    after = decision.status.canary
    assert all(0 <= count <= max(total, snapshot.workload(r).replicas) for r, count in decision.replicas.items())
    if after is not None:
        assert 0 <= after.weight <= 100
        assert 0 <= after.actual_weight <= 100
        assert after.revision != decision.stable
        raised = before is None or before.revision != after.revision or after.weight > before.weight
        if raised and after.weight:
            assert w.ready(after.revision) > 0, "a weight to a revision without a ready pod"
    if decision.stable != snapshot.stable_annotation and snapshot.stable_annotation in snapshot.workloads and total:
        ready = w.ready(decision.stable)
        never_served = not w.ready(snapshot.stable_annotation) and w.replicas.get(snapshot.stable_annotation)
        assert ready >= total or never_served, "promoted before it was at full size"
    kept = sum(min(w.ready(r), count) for r, count in decision.replicas.items())
    if total and w.serving() and decision.replicas:
        assert kept > 0, "the last ready pod was taken away"
    assert decision.requeue_seconds is None or decision.requeue_seconds > 0


ACTIONS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from("abcd")),
    st.tuples(st.just("scale"), st.integers(0, 5)),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.sampled_from(("promote", "promote-full", "abort", "retry")), st.sampled_from("abcd")),
    st.tuples(st.just("fail"), st.sampled_from("abcd")),
    st.tuples(st.just("mend"), st.sampled_from("abcd")),
    st.tuples(st.just("lose"), st.sampled_from("abcd")),
    st.tuples(st.just("stall"), st.sampled_from("abcd")),
    st.tuples(st.just("hush"), st.sampled_from("abcd")),
    st.tuples(
        st.just("steps"), st.sampled_from(([], [{"weight": 100}], [{"weight": 1}, {"weight": 50}, {"weight": 100}]))
    ),
    st.tuples(st.just("forget"), st.just("status")),
    st.tuples(st.just("forget"), st.just("annotation")),
)
HISTORIES = st.lists(st.tuples(ACTIONS, st.integers(0, 30)), max_size=10)


def act(w: Any, action: tuple[str, Any], token: int) -> None:
    name, value = action
    if name == "ask":
        w.ask(value)
    elif name == "scale":
        w.edit(replicas=value)
    elif name == "pause":
        w.edit(paused=value)
    elif name == "fail":
        w.behaves(value, error_rate=1.0)
    elif name == "mend":
        w.behaves(value, error_rate=0.0, silent=False, start_seconds=4)
    elif name == "stall":
        w.behaves(value, start_seconds=None)
    elif name == "hush":
        w.behaves(value, silent=True)
    elif name == "steps":
        w.rollout(steps=value)
    elif name == "lose":
        w.lose_pods(value)
    elif value == "status":
        w.status = ModelDeploymentStatus()
    elif value == "annotation":
        w.annotation = None
    else:
        w.order(name, value, str(token))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORIES)
def test_whatever_happens_nothing_unsafe_is_done_and_it_comes_to_rest(
    world: Make, analysis: Any, history: list[tuple[tuple[str, Any], int]]
) -> None:
    w = world(analysis=analysis, progressDeadlineSeconds=40)
    w.watchers.append(safe)
    for token, (action, seconds) in enumerate(history):
        act(w, action, token)
        w.run(seconds)
    w.edit(paused=False)
    for revision in "abcd":
        act(w, ("mend", revision), 0)
        w.lose_pods(revision)
    w.run(300, tick=2)
    writes = w.writes
    w.run(60, tick=2)
    assert w.writes == writes, "it never settles"
    assert w.canary is None or not w.spec["replicas"]
    assert w.serving() == w.spec["replicas"]
