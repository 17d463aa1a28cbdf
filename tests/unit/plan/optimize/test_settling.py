"""Reconciling and Stalled: by these two conditions tools tell whether an OptimizedModel is on its way, is stuck, or is published."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.optimize.world import World, fails, failure, make_spec

from fettle.api.conditions import ConditionStatus
from fettle.api.reasons import Reason
from fettle.plan.run.state import TaskPhase, TaskState
from fettle.plan.run.status import IN_PROGRESS, settling


def held(world: World) -> dict[str, Reason]:
    """Those of the two that hold, with their reasons."""
    found = (world.condition("Reconciling"), world.condition("Stalled"))
    return {condition.type: Reason(condition.reason) for condition in found if condition.status is ConditionStatus.TRUE}


def test_a_run_reconciles_until_it_has_published() -> None:
    world = World()
    seen = []
    for _ in range(60):
        decision = world.look()
        seen.append((world.ready.reason, held(world)))
        if decision.finished:
            break
        world.finish()
    assert seen[-1] == (Reason.PUBLISHED, {})
    assert all(conditions == {"Reconciling": reason} for reason, conditions in seen[:-1])


@pytest.mark.parametrize("stage", ["prepare", "measure", "publish"])
def test_a_run_that_failed_is_stalled_with_its_reason_and_message(stage: str) -> None:
    world = World(answer=fails(stage, failure(Reason.OUT_OF_MEMORY, "killed at 2Gi")))
    world.settle()
    assert held(world) == {"Stalled": Reason.OUT_OF_MEMORY}
    assert world.condition("Stalled").message == world.ready.message


def test_a_job_that_waits_for_a_node_reconciles_and_says_so() -> None:
    waits = TaskState("", TaskPhase.RUNNING, reason=Reason.UNSCHEDULABLE, message="0/1 nodes are available")
    world = World()
    world.look()
    (task,) = world.started
    world.tasks[task.task_hash] = TaskState(
        task.task_hash, waits.phase, task.attempt, reason=waits.reason, message=waits.message
    )
    world.look()
    assert held(world) == {"Reconciling": Reason.PREPARING}
    assert "0/1 nodes are available" in world.condition("Reconciling").message


def test_a_new_spec_ends_a_stall() -> None:
    world = World(answer=fails("prepare", failure(Reason.SOURCE_NOT_FOUND)))
    world.settle()
    world.generation, world.spec = 2, make_spec(source={"uri": "pvc://models/other.onnx"})
    world.answer = lambda request: None
    world.look()
    assert held(world) == {"Reconciling": Reason.PREPARING}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_of_ready_is_one_of_three(reason: Reason) -> None:
    reconciling, stalled = settling(reason, "why")
    assert (reconciling.kind, stalled.kind) == ("Reconciling", "Stalled")
    expected = (reason in IN_PROGRESS, reason not in IN_PROGRESS | {Reason.PUBLISHED})
    assert (reconciling.holds, stalled.holds) == expected


@pytest.mark.parametrize("answer", [lambda request: None, fails("prepare", failure(Reason.DATA_INVALID))])
def test_what_an_earlier_version_of_the_operator_wrote_gets_the_two_conditions_and_nothing_else(answer: Any) -> None:
    world = World(answer=answer)
    world.settle()
    whole = world.status
    kept = tuple(one for one in whole.conditions if one.type not in ("Reconciling", "Stalled"))
    world.status = whole.model_copy(update={"conditions": kept})
    decision = world.look()
    assert (world.status, decision.events) == (whole, ())


def test_a_reason_that_only_a_newer_version_knows_is_left_as_it_is() -> None:
    world = World()
    world.settle()
    ready = world.ready.model_copy(update={"reason": "SomethingNew", "status": ConditionStatus.FALSE})
    world.status = world.status.model_copy(update={"conditions": (ready,)})
    world.look()
    assert world.status.conditions == (ready,)


def test_a_run_of_a_spec_that_could_not_be_read_before_begins_now() -> None:
    """Its deadline does not count from a run of before, whose candidates are not its own."""
    world = World()
    world.settle()
    unread = tuple(
        one.model_copy(
            update={"reason": Reason.INVALID_SPEC, "status": ConditionStatus.FALSE, "observed_generation": 2}
        )
        if one.type == "Ready"
        else one
        for one in world.status.conditions
    )
    world.status = world.status.model_copy(update={"conditions": unread, "observed_generation": 2})
    world.generation, world.spec = 2, make_spec(source={"uri": "pvc://models/other.onnx"})
    world.now = world.now.replace(year=2027)
    world.look()
    assert world.ready.reason == Reason.PREPARING
    assert world.status.candidates == ()
    assert world.status.started_at is not None and world.status.started_at.startswith("2027")
