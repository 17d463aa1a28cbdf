"""The operator's clock is set forward or back in the middle of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.plan.optimize.world import START, World, fails, failure, make_spec

from fettle.api.reasons import Reason
from fettle.plan.run.state import TaskPhase, TaskState

STAGES = ("prepare", "build", "measure", "publish")
HOUR = timedelta(hours=1)
FULL = failure(Reason.STORE_FULL, "no room", retryable=True)


def reaches(stage: str, **world: Any) -> World:
    """A run whose tasks of `stage` have just begun."""
    one = World(**world)
    one.look()
    while not one.labels(stage):
        one.finish()
        one.look()
    return one


def made_once(world: World) -> bool:
    """Whether no task of the run was made more than once."""
    return set(Counter(task.task_hash for task in world.started).values()) == {1}


@pytest.mark.parametrize("stage", STAGES)
def test_a_clock_set_back_stops_no_run(stage: str) -> None:
    world = reaches(stage)
    world.now -= HOUR
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert made_once(world)


@pytest.mark.parametrize("stage", STAGES)
def test_a_clock_set_back_does_not_hold_up_the_next_attempt(stage: str) -> None:
    world = reaches(stage, answer=fails(stage, FULL, until_attempt=1))
    world.finish()
    world.now -= HOUR
    since = world.now
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert world.now - since < timedelta(minutes=1)


def test_a_cluster_whose_clock_is_a_little_ahead_does_not_end_the_back_off() -> None:
    world = reaches("prepare", answer=fails("prepare", FULL, until_attempt=1))
    world.finish()
    world.now -= timedelta(seconds=3)
    assert world.look().requeue_seconds == 13
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED


def test_a_clock_set_back_does_not_hide_the_deadline() -> None:
    world = reaches("prepare", spec=make_spec(search={"deadlineSeconds": 600}))
    (prepare,) = world.started
    waits = TaskState(prepare.task_hash, TaskPhase.RUNNING, reason=Reason.UNSCHEDULABLE, message="no node fits")
    world.tasks[prepare.task_hash] = waits
    world.now -= HOUR
    decision = world.look()
    assert [task.deadline_seconds for task in decision.requests] == [600]
    assert world.status.started_at == (START - HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.now += timedelta(seconds=599)
    assert not world.look().finished
    world.now += timedelta(seconds=1)
    assert world.look().finished
    assert world.ready.reason == Reason.DEADLINE_EXCEEDED


@pytest.mark.parametrize("stage", STAGES)
def test_a_clock_set_forward_stops_no_job_that_runs_and_begins_no_other(stage: str) -> None:
    world = reaches(stage)
    before, running = len(world.started), {task.task_hash for task in world.started if task.stage == stage}
    world.now += HOUR
    decision = world.look()
    assert running <= {task.task_hash for task in decision.requests}
    assert (decision.finished, len(world.started)) == (False, before)
    assert decision.requeue_seconds is not None and decision.requeue_seconds >= 10, (
        "no hasty looks at what only has to end"
    )
    assert "deadlineSeconds = 3600 s have passed" in world.ready.message
    world.finish()
    world.look()
    assert len(world.started) == before
    assert world.ready.reason == (Reason.PUBLISHED if stage == "publish" else Reason.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_clock_set_forward_ended_is_taken_up_by_a_retry_where_it_was(stage: str) -> None:
    world = reaches(stage, speeds={"int8-openvino": (3.0, 0.001)})
    world.now += HOUR
    world.settle()
    if stage != "publish":
        assert "a retry gets the whole deadline again" in world.ready.message
        world.retry = "one"
        world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert world.status.artifacts[0].candidate == "int8-openvino"
    assert made_once(world)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_clock_that_jumps_takes_nothing_from_what_is_published(jump: timedelta) -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    published = world.status.artifacts
    world.now += jump
    assert world.look().events == ()
    assert (world.ready.reason, world.status.artifacts) == (Reason.PUBLISHED, published)
    world.generation, world.spec = 2, make_spec(source={"uri": "pvc://models/retrained.onnx"})
    world.look()
    world.now += jump
    world.settle()
    assert [artifact.uri for artifact in world.status.artifacts] == [artifact.uri for artifact in published]


def test_a_run_whose_jobs_never_end_is_over_after_its_deadline_and_as_long_again() -> None:
    world = reaches("measure", spec=make_spec(search={"deadlineSeconds": 600}))
    world.now += timedelta(seconds=1199)
    assert not world.look().finished
    world.now += timedelta(seconds=1)
    decision = world.look()
    assert (decision.finished, decision.requests) == (True, ())
    assert world.ready.reason == Reason.DEADLINE_EXCEEDED


def test_past_the_deadline_what_only_waits_is_given_up_while_something_else_runs() -> None:
    """Else its Job would begin as soon as the quota allows it, with no time left."""
    world = reaches("build")
    waits, *run = (task for task in world.started if task.stage == "build")
    world.tasks[waits.task_hash] = replace(failure(Reason.QUOTA_EXCEEDED, "quota q"), phase=TaskPhase.RUNNING)
    world.now += HOUR
    decision = world.look()
    assert [task.label for task in decision.requests if task.stage == "build"] == [task.label for task in run]
    assert "QuotaExceeded: quota q" in world.ready.message
    world.finish()
    assert world.look().finished
    world.retry = "one"
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED


def test_past_the_deadline_what_failed_is_not_tried_again_by_itself() -> None:
    world = reaches("build", answer=fails("build", FULL, "build int8-openvino"))
    world.finish()
    before = len(world.started)
    world.now += HOUR
    assert world.look().finished
    assert (len(world.started), world.ready.reason) == (before, Reason.DEADLINE_EXCEEDED)
    assert "StoreFull: no room" in world.ready.message


def test_past_the_deadline_what_the_store_lost_is_not_made_again_and_is_named() -> None:
    lost = failure(Reason.ARTIFACT_NOT_FOUND, "int8 is gone")
    world = reaches("measure", answer=fails("measure", lost, "measure cpu"))
    world.now += HOUR
    world.finish()
    decision = world.look()
    assert (decision.finished, decision.requests) == (True, ())
    assert "int8 is gone" in world.ready.message
