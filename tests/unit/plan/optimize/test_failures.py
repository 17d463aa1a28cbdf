"""What a run does when something fails, is lost, or changes under it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.plan.optimize.world import World, digest, fails, failure, make_spec

from fettle.api.conditions import Condition, ConditionStatus
from fettle.api.optimizedmodel_status import ArtifactStatus, OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.report import BuildReport, MeasureReport
from fettle.api.task import BuildTask, MeasureTask, PublishTask
from fettle.api.text import RETRY_COMMAND
from fettle.api.vocabulary import CandidateState, RuntimeName
from fettle.plan.run.attempts import MAX_ATTEMPTS
from fettle.plan.run.state import AnyReport, TaskPhase, TaskRequest, TaskState

PREPARE_FAULTS = [
    (Reason.SOURCE_NOT_FOUND, "SourceResolved"),
    (Reason.DIGEST_MISMATCH, "SourceResolved"),
    (Reason.UNSUPPORTED_OPERATOR, "Converted"),
    (Reason.NUMERICAL_MISMATCH, "Converted"),
    (Reason.DATA_INVALID, "SourceResolved"),
]


@pytest.mark.parametrize(("reason", "condition"), PREPARE_FAULTS)
def test_a_source_that_cannot_be_prepared_ends_the_run_with_its_reason(reason: Reason, condition: str) -> None:
    world = World(answer=fails("prepare", failure(reason, "no such file")))
    world.settle()
    assert (world.ready.status, world.ready.reason) == (ConditionStatus.FALSE, reason)
    assert world.ready.message == "no such file"
    assert (world.condition(condition).status, world.condition(condition).reason) == (ConditionStatus.FALSE, reason)
    assert world.events[-1] == ("Warning", reason)
    assert len(world.started) == 1


def test_a_terminal_failure_stays_until_the_spec_changes() -> None:
    world = World(answer=fails("prepare", failure(Reason.SOURCE_NOT_FOUND)))
    world.settle()
    world.now += timedelta(days=1)
    decision = world.look()
    assert decision.finished
    assert decision.events == ()
    assert len(world.started) == 1

    world.generation = 2
    world.spec = make_spec(source={"uri": "pvc://models/other.onnx"})
    world.answer = lambda request: None
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert world.ready.observed_generation == 2


def test_a_failure_that_may_pass_is_tried_again_after_a_while() -> None:
    world = World(answer=fails("prepare", failure(Reason.STORE_UNREACHABLE, retryable=True), until_attempt=1))
    world.look()
    world.finish()
    waiting = world.look()
    assert [(task.attempt) for task in waiting.requests] == [0]
    assert waiting.requeue_seconds == 10
    assert "StoreUnreachable: it broke" in world.ready.message
    world.now += timedelta(seconds=10)
    world.look()
    assert [task.attempt for task in world.started] == [0, 1]
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED


def test_a_failure_that_may_pass_is_not_tried_for_ever() -> None:
    world = World(answer=fails("prepare", failure(Reason.STORE_UNREACHABLE, "no route", retryable=True)))
    world.settle()
    assert [task.attempt for task in world.started] == list(range(MAX_ATTEMPTS))
    assert world.ready.reason == Reason.STORE_UNREACHABLE
    assert world.ready.message == "no route (3 attempts)"


def test_an_answer_that_was_lost_is_asked_for_again() -> None:
    lost = TaskState("", TaskPhase.SUCCEEDED)
    world = World(answer=fails("measure", lost, until_attempt=1))
    world.settle()
    assert [task.attempt for task in world.started if task.stage == "measure"] == [0, 1]
    assert world.ready.reason == Reason.PUBLISHED


def test_an_answer_of_the_wrong_kind_is_a_fault_and_no_loop() -> None:
    wrong = TaskState("", TaskPhase.SUCCEEDED, report=BuildReport(name="x", cache_key="y"))
    world = World(answer=fails("prepare", wrong))
    world.settle()
    assert world.ready.reason == Reason.JOB_FAILED
    assert "BuildReport" in world.ready.message


def test_a_build_that_fails_is_one_row_and_not_the_end_of_the_run() -> None:
    broken = failure(Reason.OUT_OF_MEMORY, "killed at 2 GiB")
    world = World(answer=fails("build", broken, "build int8-onnxruntime"))
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    for name in ("int8-onnxruntime", "int8-onnxruntime-in-openvino"):
        row = world.rows()[name]
        assert (row.state, row.reason, row.message) == (
            CandidateState.FAILED,
            Reason.OUT_OF_MEMORY,
            "killed at 2 GiB",
        )
    (publish,) = [task.task for task in world.started if isinstance(task.task, PublishTask)]
    (failed,) = [task.task_hash for task in world.started if task.label == "build int8-onnxruntime"]
    assert failed not in publish.builds, "the report is made of answers; a failure left none"


def test_a_recipe_that_does_not_apply_is_a_rejected_row() -> None:
    def answer(request: TaskRequest) -> AnyReport | None:
        if not isinstance(request.task, BuildTask) or request.label != "build int8-openvino":
            return None
        return BuildReport(
            name=request.task.plan.name,
            cache_key=request.task.cache_key,
            reason=Reason.RECIPE_NOT_APPLICABLE,
            message="nothing to quantize",
        )

    world = World(answer=answer)
    world.settle()
    row = world.rows()["int8-openvino"]
    assert (row.state, row.reason) == (CandidateState.REJECTED, Reason.RECIPE_NOT_APPLICABLE)
    assert world.ready.reason == Reason.PUBLISHED


def test_a_measurement_that_fails_ends_its_target_only() -> None:
    targets = [{"name": "one"}, {"name": "two", "threads": 2}]
    broken = failure(Reason.OUT_OF_MEMORY, "killed at 1 GiB")
    world = World(make_spec(targets=targets), answer=fails("measure", broken, "measure two"))
    world.settle()
    assert (world.ready.status, world.ready.reason) == (ConditionStatus.FALSE, Reason.OUT_OF_MEMORY)
    assert world.ready.message == "two: killed at 1 GiB"
    assert [artifact.target for artifact in world.status.artifacts] == ["one"]
    assert {row.state for row in world.rows("two").values()} <= {CandidateState.FAILED, CandidateState.REJECTED}
    assert world.condition("Measured").reason == Reason.OUT_OF_MEMORY


def test_a_run_whose_only_measurement_fails_publishes_nothing() -> None:
    world = World(answer=fails("measure", failure(Reason.NODE_LOST, "gone")))
    world.settle()
    assert world.ready.reason == Reason.NODE_LOST
    assert world.labels("publish") == []
    assert world.status.artifacts == ()


def test_a_candidate_that_the_measurement_left_out_is_no_winner() -> None:
    def answer(request: TaskRequest) -> AnyReport | None:
        if request.stage != "measure":
            return None
        report = World().report(request.task)
        assert isinstance(report, MeasureReport)
        kept = tuple(row for row in report.candidates if not row.name.startswith("float32"))
        return report.model_copy(update={"candidates": kept})

    world = World(answer=answer)
    world.settle()
    assert world.rows()["float32-openvino"].state == CandidateState.FAILED


def test_a_job_that_waits_for_a_node_says_so() -> None:
    world = World()
    world.look()
    world.finish()
    world.look()
    world.finish()
    decision = world.look()
    (measure,) = [task for task in decision.requests if task.stage == "measure"]
    world.tasks[measure.task_hash] = TaskState(
        measure.task_hash, TaskPhase.RUNNING, reason=Reason.UNSCHEDULABLE, message="0/1 nodes fit"
    )
    world.look()
    assert world.ready.reason == Reason.MEASURING
    assert "Unschedulable: 0/1 nodes fit" in world.ready.message
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED


def test_a_build_that_waits_for_its_next_attempt_says_why() -> None:
    broken = failure(Reason.STORE_UNREACHABLE, "no route", retryable=True)
    world = World(answer=fails("build", broken, until_attempt=1))
    for _ in range(3):
        world.look()
        world.finish()
    decision = world.look()
    assert decision.requeue_seconds == 10
    assert world.ready.message == "0 of 5 builds done (StoreUnreachable: no route)"
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED


STOPPED = failure(Reason.DEADLINE_EXCEEDED, "the Job did not end before its deadline")  # by the cluster


@pytest.mark.parametrize(
    ("stage", "at"), [("prepare", "the Job"), ("build", "the stage was Measuring"), ("measure", "cpu: the Job")]
)
def test_a_run_ends_at_its_deadline(stage: str, at: str) -> None:
    world = World(make_spec(search={"deadlineSeconds": 60, "parallelism": 5}), answer=fails(stage, STOPPED))
    world.look()
    while not world.labels(stage):
        world.finish()
        world.look()
    world.now += timedelta(seconds=60)
    world.finish()
    decision = world.look()
    assert (decision.finished, decision.requests) == (True, ())
    assert (world.ready.status, world.ready.reason) == (ConditionStatus.FALSE, Reason.DEADLINE_EXCEEDED)
    assert "deadlineSeconds = 60" in world.ready.message
    assert at in world.ready.message
    reasons = {row.reason for row in world.status.candidates if row.state == CandidateState.FAILED}
    assert reasons == ({Reason.DEADLINE_EXCEEDED} if stage != "prepare" else set())


def test_a_run_that_only_waits_ends_at_its_deadline_at_once() -> None:
    world = World(make_spec(search={"deadlineSeconds": 60}))
    world.look()
    world.finish()
    for task in world.look().requests[1:]:
        world.tasks[task.task_hash] = replace(failure(Reason.QUOTA_EXCEEDED, "quota q"), phase=TaskPhase.RUNNING)
    world.now += timedelta(seconds=60)
    decision = world.look()
    assert (decision.finished, decision.requests) == (True, ())
    assert "the stage was Optimizing: 0 of 5 builds done (QuotaExceeded: quota q)" in world.ready.message
    assert (world.rows()["int8-openvino"].state, world.rows()["int8-openvino"].reason) == (
        CandidateState.FAILED,
        Reason.DEADLINE_EXCEEDED,
    )


def test_the_deadline_counts_from_the_start_of_this_generation() -> None:
    world = World(make_spec(search={"deadlineSeconds": 60}))
    world.settle()
    world.now += timedelta(days=1)
    world.generation = 2
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED


def test_a_run_that_was_over_before_its_deadline_is_over_after_it() -> None:
    world = World(make_spec(search={"deadlineSeconds": 60}))
    world.look()
    while not world.labels("publish"):
        world.finish()
        world.look()
    world.finish()
    world.now += timedelta(hours=5)  # the operator was down
    world.look()
    assert world.ready.reason == Reason.PUBLISHED


def test_nothing_passes_and_the_nearest_miss_is_named() -> None:
    spec = make_spec(constraints={"accuracy": {"maxDrop": 0.02}, "speedup": {"min": 5}})
    world = World(spec, speeds={"int8-openvino": (4.5, 0.001)})
    world.settle()
    assert (world.ready.status, world.ready.reason) == (ConditionStatus.FALSE, Reason.CONSTRAINTS_NOT_MET)
    assert "nearest: int8-openvino" in world.ready.message
    assert world.status.artifacts == ()
    assert world.status.report is not None, "a report is written all the same"
    assert all(row.state != CandidateState.SELECTED for row in world.status.candidates)


def test_the_last_published_artifact_stays_when_a_new_spec_cannot_be_kept() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    published = world.status.artifacts
    world.generation = 2
    world.spec = make_spec(constraints={"accuracy": {"maxDrop": 0.02}, "speedup": {"min": 9}})
    world.settle()
    assert world.ready.reason == Reason.CONSTRAINTS_NOT_MET
    assert world.status.artifacts == published


def test_the_last_published_artifact_stays_while_a_new_one_is_looked_for() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    published = world.status.artifacts
    world.generation = 2
    world.spec = make_spec(source={"uri": "pvc://models/retrained.onnx"})
    world.look()
    assert world.ready.reason == Reason.PREPARING
    assert world.status.artifacts == published
    assert world.status.candidates == ()


def test_an_artifact_of_a_target_that_is_gone_goes_too() -> None:
    world = World()
    world.settle()
    world.generation = 2
    world.spec = make_spec(targets=[{"name": "other"}])
    world.settle()
    assert [artifact.target for artifact in world.status.artifacts] == ["other"]


def test_a_changed_constraint_builds_nothing_again_but_searches_again() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    before = {task.task_hash for task in world.started}
    world.generation = 2
    world.spec = make_spec(constraints={"accuracy": {"maxDrop": 0.02}, "size": {"maxBytes": 500}})
    world.settle()
    fresh = [task.stage for task in world.started if task.task_hash not in before]
    assert fresh == ["measure", "publish"], "the search stops at what passes, so it follows the constraints"


def test_the_published_artifact_is_kept_where_the_new_one_is_no_better() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001), "int8-onnxruntime": (2.95, 0.001)})
    old = ArtifactStatus(
        target="cpu",
        candidate="int8-onnxruntime",
        runtime=RuntimeName.ONNXRUNTIME,
        uri="pvc://fettle-store/artifacts/x",
        sha256=digest("int8-onnxruntime cpu"),
        bytes=300,
    )
    world.status = OptimizedModelStatus(artifacts=(old,))
    world.settle()
    (artifact,) = world.status.artifacts
    assert artifact.candidate == "int8-onnxruntime"


OLD = ArtifactStatus(
    target="cpu",
    candidate="tuned-openvino",
    runtime=RuntimeName.OPENVINO,
    uri="pvc://fettle-store/artifacts/x",
    sha256="a" * 64,
    bytes=300,
)


def test_the_published_artifact_is_measured_again_and_stays_where_nothing_beats_it() -> None:
    world = World(speeds={"published": (3.0, 0.001), "int8-openvino": (3.05, 0.001)})
    world.status = OptimizedModelStatus(artifacts=(OLD,))
    world.settle()
    found = world.rows()["published"]
    assert (found.state, found.artifact) == (CandidateState.SELECTED, OLD.sha256)
    assert (
        found.message
        == "it was already published and is kept, because int8-openvino is not faster by more than the interval"
    )
    (artifact,) = world.status.artifacts
    assert (artifact.sha256, artifact.candidate, artifact.speedup) == (OLD.sha256, "tuned-openvino", 3.0)
    assert artifact.incumbent == OLD.sha256, "what was published before the run is what it kept"


def test_the_published_artifact_goes_where_another_beats_it_by_more_than_the_interval() -> None:
    world = World(speeds={"published": (3.0, 0.001), "int8-openvino": (4.0, 0.001)})
    world.status = OptimizedModelStatus(artifacts=(OLD,))
    world.settle()
    found = world.rows()["published"]
    assert (found.state, found.reason) == (CandidateState.MEASURED, Reason.NOT_PREFERRED)
    assert world.status.artifacts[0].candidate == "int8-openvino"


@pytest.mark.parametrize(
    "changed",
    [{"runtime": RuntimeName.ONNXRUNTIME}, {"threads": 3}, {"uri": "pvc://elsewhere/artifacts/x"}, {"target": "other"}],
    ids=["another runtime", "more threads", "another store", "another target"],
)
def test_a_published_artifact_that_may_not_serve_there_is_not_measured(changed: dict[str, Any]) -> None:
    world = World(make_spec(targets=[{"name": "cpu", "threads": 2, "runtimes": ["openvino"]}]))
    world.status = OptimizedModelStatus(artifacts=(OLD.model_copy(update=changed),))
    world.settle()
    assert {task.task.incumbent for task in world.started if isinstance(task.task, MeasureTask)} == {None}


def test_a_publish_that_finds_an_artifact_damaged_publishes_nothing() -> None:
    world = World(answer=fails("publish", failure(Reason.ARTIFACT_TAMPERED, "blob 12ab is gone")))
    world.settle()
    assert (world.ready.status, world.ready.reason) == (ConditionStatus.FALSE, Reason.ARTIFACT_TAMPERED)
    assert world.status.artifacts == ()


def test_a_spec_that_parses_again_is_run() -> None:
    bad = Condition(type="Ready", status=ConditionStatus.FALSE, reason=Reason.INVALID_SPEC, observed_generation=1)
    world = World(status=OptimizedModelStatus(observed_generation=1, conditions=(bad,)))
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED


def test_a_fault_names_the_object_in_the_command_that_retries_it() -> None:
    told = f"pvc://models/modle.onnx does not exist; run `{RETRY_COMMAND}`"
    world = World(answer=fails("prepare", failure(Reason.SOURCE_NOT_FOUND, told)))
    world.settle()
    expected = "pvc://models/modle.onnx does not exist; run `kubectl fettle retry om/digits -n team`"
    assert world.ready.message == world.condition("SourceResolved").message == expected
