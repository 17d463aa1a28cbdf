"""`fettle.dev/retry` on an OptimizedModel: what failed is tried again, what succeeded is not, and each token acts once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.plan.choose.figures import row as figures
from tests.unit.plan.optimize.world import Answer, World, fails, failure, make_spec, remembered

from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.vocabulary import CandidateState
from fettle.plan.run.attempts import MAX_ATTEMPTS
from fettle.plan.run.decide import decide
from fettle.plan.run.state import TaskPhase, TaskRequest, TaskState

FAULTS = [
    ("prepare", Reason.SOURCE_NOT_FOUND),
    ("prepare", Reason.DATA_NOT_FOUND),
    ("prepare", Reason.STORE_FULL),
    ("measure", Reason.OUT_OF_MEMORY),
    ("measure", Reason.DEADLINE_EXCEEDED),
    ("publish", Reason.JOB_FAILED),
]


def attempts(world: World, stage: str) -> list[int]:
    """Attempts that were started at the tasks of a stage, in order."""
    return [task.attempt for task in world.started if task.stage == stage]


def mend(world: World, token: str = "one") -> None:
    """What was wrong is repaired, and a retry ordered."""
    world.answer = lambda request: None
    world.retry = token


@pytest.mark.parametrize(("stage", "reason"), FAULTS)
def test_a_run_that_ended_with_a_fault_is_tried_again_and_only_what_failed_runs(stage: str, reason: Reason) -> None:
    world = World(answer=fails(stage, failure(reason)))
    world.settle()
    assert world.ready.reason == reason
    before = {task.task_hash for task in world.started if task.stage != stage}
    mend(world)
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert attempts(world, stage) == [0, MAX_ATTEMPTS]
    assert len(before) == len([task for task in world.started if task.task_hash in before]), "answers are reused"
    assert (world.status.retries, world.status.last_handled_retry) == (1, "one")
    assert ("Normal", Reason.COMMAND_ACCEPTED) in world.events


def test_a_token_acts_once() -> None:
    world = World(answer=fails("prepare", failure(Reason.SOURCE_NOT_FOUND)))
    world.settle()
    world.retry = "one"
    world.settle()
    assert attempts(world, "prepare") == [0, 3]
    world.now += timedelta(days=1)
    decision = world.look()
    assert (decision.requests, decision.events, decision.finished) == ((), (), True)
    world.retry = ""
    world.look()
    world.retry = "one"
    assert world.look().finished, "taken away and given again, it is still the same"
    world.retry = "two"
    world.settle()
    assert attempts(world, "prepare") == [0, 3, 6]


def test_a_retry_has_attempts_of_its_own_after_the_first() -> None:
    world = World(answer=fails("prepare", failure(Reason.STORE_FULL, "no room", retryable=True)))
    world.settle()
    world.retry = "one"
    world.settle()
    assert attempts(world, "prepare") == [0, 1, 2, 3, 4, 5]
    assert world.ready.message == "no room (3 attempts)"


def test_a_retry_has_the_whole_of_its_deadline() -> None:
    world = World(make_spec(search={"deadlineSeconds": 60}))
    (waits,) = world.look().requests
    world.tasks[waits.task_hash] = replace(failure(Reason.UNSCHEDULABLE), phase=TaskPhase.RUNNING)
    world.now += timedelta(seconds=60)
    assert world.look().finished
    assert world.ready.reason == Reason.DEADLINE_EXCEEDED
    world.retry = "one"
    world.now += timedelta(hours=1)
    (prepare,) = world.look().requests
    assert (prepare.attempt, prepare.deadline_seconds) == (3, 60), (
        "the name of the Job that was deleted is not taken again"
    )
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED


def test_what_was_published_before_stays_published_throughout() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    published = world.status.artifacts
    world.generation, world.spec = 2, make_spec(source={"uri": "pvc://models/retrained.onnx"})
    world.answer = fails("prepare", failure(Reason.SOURCE_NOT_FOUND))
    world.settle()
    world.retry = "one"
    world.look()
    assert world.ready.reason == Reason.PREPARING
    assert world.status.artifacts == published
    world.settle()
    assert world.status.artifacts == published


def test_what_is_published_is_looked_at_again_and_stays_where_it_is_whole() -> None:
    world = World()
    world.settle()
    before, started = world.status.artifacts, len(world.started)
    world.retry = "one"
    world.settle()
    assert [(task.stage, task.attempt) for task in world.started[started:]] == [("publish", MAX_ATTEMPTS)]
    assert (world.ready.reason, world.status.artifacts) == (Reason.PUBLISHED, before)
    assert (world.status.retries, world.status.last_handled_retry) == (1, "one")
    assert ("Normal", Reason.COMMAND_ACCEPTED) in world.events
    assert world.look().finished


LOSSES = (Reason.ARTIFACT_NOT_FOUND, Reason.ARTIFACT_TAMPERED, Reason.STORE_NOT_FOUND)


def loses(stage: str, reason: Reason, maker: str) -> Answer:
    """An `answer` in which a stage finds lost what another makes, until that one is asked once more."""
    made: list[int] = []

    def answer(request: TaskRequest) -> TaskState | None:
        if request.stage == maker:
            made.append(request.attempt)
        return failure(reason, "it is gone") if request.stage == stage and len(set(made)) < 2 else None

    return answer


@pytest.mark.parametrize("reason", LOSSES)
@pytest.mark.parametrize(("stage", "maker"), [("publish", "measure"), ("measure", "build"), ("build", "prepare")])
def test_what_a_task_finds_lost_is_made_again_by_the_tasks_before_it(stage: str, maker: str, reason: Reason) -> None:
    world = World(answer=loses(stage, reason, maker))
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert set(attempts(world, "prepare")) == set(attempts(world, maker)) == set(attempts(world, stage)) == {0, 1}
    made = [(task.task_hash, task.attempt) for task in world.started]
    assert len(made) == len(set(made))


@pytest.mark.parametrize("reason", LOSSES)
def test_what_was_published_and_is_lost_is_made_again_by_one_retry(reason: Reason) -> None:
    world = World()
    world.settle()
    world.now += timedelta(days=1)
    world.answer = fails("publish", failure(reason, "it is gone"), until_attempt=MAX_ATTEMPTS + 1)
    world.retry = "one"
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert attempts(world, "publish") == [0, 3, 4]
    assert attempts(world, "prepare") == attempts(world, "measure") == [0, 4]


def test_what_stays_lost_ends_the_run_and_a_retry_begins_with_what_makes_it() -> None:
    world = World(answer=fails("publish", failure(Reason.ARTIFACT_TAMPERED, "it is gone")))
    world.settle()
    assert (world.ready.reason, attempts(world, "publish")) == (Reason.ARTIFACT_TAMPERED, [0, 1, 2])
    started = len(world.started)
    mend(world)
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    stages = [task.stage for task in world.started[started:]]
    assert stages == sorted(stages, key=["prepare", "build", "measure", "publish"].index)
    assert {task.attempt for task in world.started[started:]} == {MAX_ATTEMPTS}


def test_a_loss_of_an_earlier_spec_makes_nothing_be_asked_twice() -> None:
    world = World(answer=fails("publish", failure(Reason.ARTIFACT_NOT_FOUND, "it is gone")))
    world.settle()
    world.now += timedelta(days=1)
    started, world.answer = len(world.started), lambda request: None
    world.generation, world.spec = 2, make_spec(source={"uri": "pvc://models/retrained.onnx"})
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    hashes = [task.task_hash for task in world.started[started:]]
    assert len(hashes) == len(set(hashes))


def test_a_build_that_failed_in_a_published_run_is_tried_again_and_the_choice_made_anew() -> None:
    broken = failure(Reason.OUT_OF_MEMORY)
    world = World(speeds={"int8-openvino": (5.0, 0.001)}, answer=fails("build", broken, "build int8-openvino"))
    world.settle()
    (first,) = world.status.artifacts
    mend(world)
    world.look()
    assert world.ready.reason == Reason.OPTIMIZING
    assert world.status.artifacts == (first,)
    world.settle()
    assert [task.attempt for task in world.started if task.label == "build int8-openvino"] == [0, 3]
    assert attempts(world, "prepare") == [0]
    assert world.status.artifacts[0].candidate == "int8-openvino"


def test_the_published_artifact_stays_unless_a_candidate_that_was_mended_beats_it() -> None:
    speeds = {"int8-openvino": (3.05, 0.001), "int8-onnxruntime": (3.0, 0.001)}
    world = World(speeds=speeds, answer=fails("build", failure(Reason.OUT_OF_MEMORY), "build int8-openvino"))
    world.settle()
    published = world.status.artifacts[0]
    assert published.candidate == "int8-onnxruntime"
    mend(world)
    world.settle()
    assert world.status.artifacts == (published,)
    assert world.rows()["int8-openvino"].state == CandidateState.MEASURED


def test_a_candidate_that_failed_while_it_was_measured_is_measured_again() -> None:
    broken = figures("int8-openvino", (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)).model_copy(
        update={"state": CandidateState.FAILED, "reason": Reason.OUT_OF_MEMORY, "speedup": None}
    )
    world = World(rows_instead={"int8-openvino": broken})
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    world.rows_instead = {}
    world.retry = "one"
    world.settle()
    assert attempts(world, "measure") == [0, 3]
    assert attempts(world, "build") == [0, 0, 0, 0, 0]
    assert world.rows()["int8-openvino"].state != CandidateState.FAILED


def test_a_target_that_was_measured_is_not_measured_again_for_another_that_failed() -> None:
    targets = [{"name": "one"}, {"name": "two", "threads": 2}]
    broken = fails("measure", failure(Reason.OUT_OF_MEMORY), "measure two")
    world = World(make_spec(targets=targets), answer=broken)
    world.settle()
    assert [artifact.target for artifact in world.status.artifacts] == ["one"]
    mend(world)
    world.settle()
    assert world.labels("measure") == ["measure one", "measure two", "measure two"]
    assert [artifact.target for artifact in world.status.artifacts] == ["one", "two"]


def test_a_retry_asks_beside_the_artifact_that_the_run_began_with() -> None:
    """Else each target would be measured again because the run itself published something."""
    targets = [{"name": "one"}, {"name": "two", "threads": 2}]
    world = World(make_spec(targets=targets), speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    old = {artifact.target: artifact.sha256 for artifact in world.status.artifacts}
    world.generation, world.spec = 2, make_spec(targets=targets, source={"uri": "pvc://models/retrained.onnx"})
    world.speeds = {"int8-onnxruntime": (9.0, 0.001), "published": (3.0, 0.001)}
    world.answer = fails("measure", failure(Reason.OUT_OF_MEMORY), "measure two")
    world.settle()
    assert world.status.artifacts[0].candidate == "int8-onnxruntime"
    assert world.status.artifacts[0].incumbent in (None, old["one"])
    seen = len(world.labels("measure"))
    mend(world)
    world.settle()
    assert world.labels("measure")[seen:] == ["measure two"]


def test_a_build_that_failed_is_tried_again_beside_those_that_run() -> None:
    world = World(answer=fails("build", failure(Reason.OUT_OF_MEMORY), "build int8-openvino"))
    world.look()
    world.finish()
    first = world.look()
    (broken,) = [task for task in first.requests if task.label == "build int8-openvino"]
    world.tasks[broken.task_hash] = replace(failure(Reason.OUT_OF_MEMORY), task_hash=broken.task_hash)
    world.look()
    mend(world)
    decision = world.look()
    builds = {task.label: task.attempt for task in decision.requests if task.stage == "build"}
    others = {label: attempt for label, attempt in builds.items() if label != "build int8-openvino"}
    assert builds["build int8-openvino"] == 3
    assert set(others.values()) == {0}, "those that run are not disturbed"
    world.settle()
    assert attempts(world, "build") == [0, 0, 0, 0, 0, 3]
    assert world.ready.reason == Reason.PUBLISHED


def test_no_more_builds_are_tried_again_at_once_than_the_spec_allows() -> None:
    world = World(make_spec(search={"parallelism": 1}), answer=fails("build", failure(Reason.OUT_OF_MEMORY)))
    world.settle()
    mend(world)
    world.look()
    running = [state for state in world.tasks.values() if state.phase == TaskPhase.RUNNING]
    assert len(running) == 1
    world.settle()
    assert [attempt for attempt in attempts(world, "build") if attempt] == [3, 3, 3, 3, 3]


def test_a_measurement_that_goes_on_is_not_disturbed_by_a_build_that_is_tried_again() -> None:
    world = World(answer=fails("build", failure(Reason.OUT_OF_MEMORY), "build int8-openvino"))
    while not world.labels("measure"):
        world.look()
        world.finish("prepare")
        world.finish("build")
    mend(world)
    decision = world.look()
    assert [task.attempt for task in decision.requests if task.stage == "measure"] == [0]
    world.finish("measure")
    world.look()
    assert world.status.last_handled_retry is None
    world.settle()
    world.settle()  # what the run published is a change, and so looked at again
    assert world.status.last_handled_retry == "one"
    assert [task.attempt for task in world.started if task.label == "build int8-openvino"] == [0, 3]
    assert world.ready.reason == Reason.PUBLISHED


def test_a_retry_that_waited_for_a_measurement_acts_when_the_run_is_over() -> None:
    targets = [{"name": "one"}, {"name": "two", "threads": 2}]
    world = World(make_spec(targets=targets), answer=fails("measure", failure(Reason.OUT_OF_MEMORY), "measure one"))
    while "measure two" not in world.labels("measure"):
        world.look()
        world.finish("prepare")
        world.finish("build")
        if "measure two" not in world.labels("measure"):
            world.finish("measure")
    mend(world)
    assert world.settle().finished
    assert (world.ready.reason, world.status.last_handled_retry) == (Reason.OUT_OF_MEMORY, None)
    world.settle()
    assert (world.ready.reason, world.status.last_handled_retry) == (Reason.PUBLISHED, "one")
    assert world.labels("measure") == ["measure one", "measure two", "measure one"]


def test_a_verdict_is_no_failure() -> None:
    world = World(make_spec(constraints={"speedup": {"min": 99}}))
    world.settle()
    assert world.ready.reason == Reason.CONSTRAINTS_NOT_MET
    started = len(world.started)
    world.retry = "one"
    decision = world.look()
    assert decision.finished
    assert (len(world.started), world.events[-1]) == (started, ("Warning", Reason.COMMAND_REFUSED))
    (refused,) = decision.events
    assert refused.message == (
        "retry refused: it repeats the failed tasks of a run, and none failed; to change the result (ConstraintsNotMet), change the spec"
    )


def test_a_new_object_that_comes_with_the_annotation_is_run_as_any_other() -> None:
    world = World(retry="from-git")
    world.settle()
    assert {task.attempt for task in world.started} == {0}
    assert (world.status.retries, world.status.last_handled_retry) == (None, "from-git")


@pytest.mark.parametrize("label", ["prepare", "build int8-openvino", "measure cpu"])
def test_a_changed_spec_tries_again_what_failed_though_the_task_is_the_same(label: str) -> None:
    broken = fails(label.partition(" ")[0], failure(Reason.OUT_OF_MEMORY), label)
    world = World(speeds={"int8-onnxruntime": (3.0, 0.001)}, answer=broken)
    world.settle()
    world.answer = lambda request: None
    world.generation, world.spec = 2, make_spec(jobs={"resources": {"limits": {"memory": "8Gi"}}})
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert [task.attempt for task in world.started if task.label == label][:2] == [0, 3]
    assert CandidateState.FAILED not in {row.state for row in world.status.candidates}
    assert (world.status.retries, world.status.last_handled_retry) == (1, None)
    assert ("Normal", Reason.COMMAND_ACCEPTED) not in world.events


def test_a_changed_spec_with_a_retry_tries_what_both_specs_have_in_common() -> None:
    world = World(answer=fails("prepare", failure(Reason.SOURCE_NOT_FOUND)))
    world.settle()
    world.generation, world.spec = 2, make_spec(constraints={"accuracy": {"maxDrop": 0.01}})
    mend(world)
    world.settle()
    assert attempts(world, "prepare") == [0, 3]
    assert world.ready.reason == Reason.PUBLISHED


def test_retries_are_counted_on_where_status_was_lost() -> None:
    world = World(answer=fails("prepare", failure(Reason.SOURCE_NOT_FOUND)))
    world.settle()
    world.retry = "one"
    world.settle()
    world.status = OptimizedModelStatus()
    world.settle()
    assert attempts(world, "prepare") == [0, 3], "which token acted is not known any more: none acts"
    mend(world, "two")
    world.settle()
    assert attempts(world, "prepare") == [0, 3, 6]
    assert world.ready.reason == Reason.PUBLISHED


def test_a_retry_whose_jobs_were_made_before_the_operator_died_makes_no_others() -> None:
    world = World(answer=fails("build", failure(Reason.OUT_OF_MEMORY)))
    world.settle()
    before = world.status
    mend(world)
    first = world.look()
    for stage in ("build", None):
        world.status = before  # the Jobs are there, the status was never written
        world.finish(stage)
        world.look()
        assert world.status.retries == 1
    world.settle()
    assert [task.attempt for task in first.requests if task.stage == "build"] == [3, 3, 3, 3, 3]
    assert [attempt for attempt in attempts(world, "build") if attempt] == [3, 3, 3, 3, 3]
    assert world.ready.reason == Reason.PUBLISHED


OUTCOMES = st.sampled_from(
    [
        None,
        None,
        failure(Reason.JOB_FAILED),
        failure(Reason.STORE_FULL, retryable=True),
        failure(Reason.ARTIFACT_NOT_FOUND),
        failure(Reason.STORE_NOT_FOUND, retryable=True),
        TaskState("", TaskPhase.SUCCEEDED),
    ]
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), parallelism=st.integers(1, 3))
def test_whatever_fails_and_whenever_it_is_ordered_no_attempt_is_made_twice(
    data: st.DataObject, parallelism: int
) -> None:
    """Status writes are lost at will, as where the operator is killed after it made Jobs."""
    world = World(make_spec(search={"parallelism": parallelism}))
    world.answer = remembered(lambda: data.draw(OUTCOMES))
    for number in range(data.draw(st.integers(1, 4))):
        world.settle(200)
        world.retry = f"token-{number}"
        for _ in range(data.draw(st.integers(0, 6))):
            before = world.status
            decision = world.look()
            if data.draw(st.booleans()):
                world.status = before
            else:
                again = decide(world.snapshot)
                assert (again.requests, again.events) == (decision.requests, ())
            if data.draw(st.booleans()):
                world.finish()
    world.answer = lambda request: None
    world.settle(200)
    world.retry = "last"
    world.settle(200)
    made = [(task.task_hash, task.attempt) for task in world.started]
    assert len(made) == len(set(made))
    assert world.ready.reason == Reason.PUBLISHED
    for artifact in world.status.artifacts:
        assert world.rows(artifact.target)[artifact.candidate].state == CandidateState.SELECTED
