"""A whole run, from the first look to Published."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from tests.unit.plan.optimize.world import START, World, digest, fails, failure, make_spec

from fettle.api.conditions import ConditionStatus
from fettle.api.reasons import Reason
from fettle.api.task import BuildTask, MeasureTask, PublishTask
from fettle.api.vocabulary import CandidateState, UnsureItems
from fettle.plan.run.decide import decide

BUILDS = [
    "bfloat16-mixed-openvino",
    "int8-openvino",
    "int8-mixed-openvino",
    "int8-onnxruntime",
    "int8-mixed-onnxruntime",
]


def test_a_run_goes_through_its_stages_and_publishes_the_best() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})

    first = world.look()
    assert [task.stage for task in first.requests] == ["prepare"]
    assert (world.ready.status, world.ready.reason) == (ConditionStatus.FALSE, Reason.PREPARING)
    assert world.status.observed_generation == 1
    assert world.status.started_at == "2026-03-01T12:00:00Z"
    world.finish()

    world.look()
    assert world.ready.reason == Reason.OPTIMIZING
    assert world.ready.message == "0 of 5 builds done"
    assert world.condition("SourceResolved").status == ConditionStatus.TRUE
    assert world.condition("Converted").status == ConditionStatus.TRUE
    assert world.condition("Measured").status == ConditionStatus.UNKNOWN
    assert world.labels("build") == [f"build {name}" for name in BUILDS]
    assert world.rows()["int8-openvino"].state == CandidateState.RUNNING
    assert world.rows()["float32-openvino"].state == CandidateState.PENDING
    world.finish()

    world.look()
    assert world.ready.reason == Reason.MEASURING
    assert world.labels("measure") == ["measure cpu"]
    assert world.rows()["int8-openvino"].state == CandidateState.RUNNING
    world.finish()

    world.look()
    assert world.ready.reason == Reason.PUBLISHING
    assert world.rows()["int8-openvino"].state == CandidateState.SELECTED
    world.finish()

    assert world.look().finished
    assert (world.ready.status, world.ready.reason) == (ConditionStatus.TRUE, Reason.PUBLISHED)
    assert [reason for _, reason in world.events] == [
        Reason.PREPARING,
        Reason.OPTIMIZING,
        Reason.MEASURING,
        Reason.PUBLISHING,
        Reason.PUBLISHED,
    ]
    assert {kind for kind, _ in world.events} == {"Normal"}


def test_what_was_published_stands_in_status() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    last = world.settle()
    assert last.requests == ()
    assert world.ready.observed_generation == 1
    assert "cpu: int8-openvino, 3 [2.91, 3.09] times as fast" in world.ready.message
    (artifact,) = world.status.artifacts
    assert artifact.candidate == "int8-openvino"
    assert artifact.uri == f"pvc://fettle-store/artifacts/{artifact.sha256}"
    assert artifact.sha256 == digest("int8-openvino cpu")
    assert (artifact.speedup, artifact.accuracy_drop, artifact.threads) == (3.0, 0.001, 2)
    assert world.status.report is not None
    assert world.status.report.uri == "pvc://fettle-store/reports/team/digits/1.html"


def test_each_promise_of_a_finished_run_is_completed() -> None:
    world = World()
    world.settle()
    for kind in ("SourceResolved", "Converted", "Measured"):
        condition = world.condition(kind)
        assert (condition.status, condition.reason) == (ConditionStatus.TRUE, Reason.COMPLETED), kind
        assert condition.observed_generation == 1
    assert world.condition("SourceResolved").message.startswith("ONNX, 1 kB, sha256 ")
    assert " candidates measured in full; the original: " in world.condition("Measured").message


def test_a_source_that_is_there_but_cannot_be_converted_keeps_the_promise_that_holds() -> None:
    world = World(answer=fails("prepare", failure(Reason.UNSUPPORTED_OPERATOR)))
    world.settle()
    found = world.condition("SourceResolved")
    assert (found.status, found.reason) == (ConditionStatus.TRUE, Reason.COMPLETED)


def test_where_items_are_too_few_for_a_lossy_winner_ready_says_once_how_many_are_needed() -> None:
    world = World(make_spec(targets=[{"name": "one"}, {"name": "two", "threads": 2}]), prepare={"items": 50})
    world.settle()
    assert (world.ready.status, world.ready.reason) == (ConditionStatus.TRUE, Reason.PUBLISHED)
    assert {artifact.candidate.partition("-")[0] for artifact in world.status.artifacts} == {"float32"}
    assert world.ready.message.count("lossy candidates were not tried: 50 evaluation items") == 1
    assert world.ready.message.count("189 are needed") == 1
    refused = [row for row in world.status.candidates if row.reason == Reason.EVALUATION_TOO_SMALL]
    assert {row.target for row in refused} == {"one", "two"} and len(refused) > 2


def test_a_lossy_winner_is_told_without_a_word_of_items() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    assert "lossy" not in world.ready.message


def test_what_is_published_is_left_alone() -> None:
    world = World()
    world.settle()
    before = world.status
    world.now += timedelta(days=9)
    decision = world.look()
    assert decision.finished
    assert decision.requests == ()
    assert decision.events == ()
    assert decision.status is before


def test_looking_twice_decides_the_same_and_tells_nothing_twice() -> None:
    world = World()
    for _ in range(6):
        once = world.look()
        again = decide(world.snapshot)
        assert again.requests == once.requests
        assert again.status == once.status
        assert again.events == ()
        world.finish()


def test_a_lost_status_is_found_again_from_what_the_tasks_answered() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    published = world.status.artifacts
    lost = World(speeds=world.speeds)
    lost.settle()
    assert lost.status.artifacts == published


def test_builds_run_so_many_at_once_and_no_more() -> None:
    world = World(make_spec(search={"parallelism": 1}))
    world.look()
    world.finish()
    world.look()
    assert world.labels("build") == [f"build {BUILDS[0]}"]
    assert world.ready.message == f"0 of {len(BUILDS)} builds done"
    world.finish()
    world.look()
    assert world.labels("build") == [f"build {name}" for name in BUILDS[:2]]
    assert world.ready.message == "1 of 5 builds done"


def test_what_the_store_has_is_not_built_again() -> None:
    world = World(prepare={"cached": BUILDS})
    world.settle()
    assert world.labels("build") == []
    assert world.ready.reason == Reason.PUBLISHED


def test_nothing_is_measured_beside_a_build() -> None:
    world = World()
    world.look()
    world.finish()
    world.look()
    assert world.labels("measure") == []


def test_two_targets_that_may_share_a_node_are_measured_one_after_the_other() -> None:
    world = World(make_spec(targets=[{"name": "one"}, {"name": "two", "threads": 2}]))
    world.look()
    world.finish("prepare")
    world.look()
    world.finish("build")
    world.look()
    assert world.labels("measure") == ["measure one"]
    world.look()
    assert world.labels("measure") == ["measure one"]
    world.finish("measure")
    world.look()
    assert world.labels("measure") == ["measure one", "measure two"]
    assert "1 of 2 targets measured" in world.ready.message
    world.settle()
    assert [artifact.target for artifact in world.status.artifacts] == ["one", "two"]


def test_two_targets_on_different_nodes_are_measured_together() -> None:
    targets = [
        {"name": "old", "nodeSelector": {"cpu": "old"}},
        {"name": "new", "nodeSelector": {"cpu": "new"}, "tolerations": [{"key": "new", "operator": "Exists"}]},
    ]
    world = World(make_spec(targets=targets))
    world.look()
    world.finish("prepare")
    world.look()
    world.finish("build")
    decision = world.look()
    assert world.labels("measure") == ["measure old", "measure new"]
    measures = [task for task in decision.requests if task.stage == "measure"]
    assert [task.target.name for task in measures if task.target] == ["old", "new"]
    world.settle()
    placements = [artifact.placement for artifact in world.status.artifacts]
    assert [placement.node_selector for placement in placements] == [{"cpu": "old"}, {"cpu": "new"}]
    assert len(placements[1].tolerations) == 1


def test_every_accuracy_interval_gets_its_share_of_the_error() -> None:
    world = World()
    world.settle()
    (measure,) = [task.task for task in world.started if isinstance(task.task, MeasureTask)]
    assert measure.alpha == pytest.approx(0.05 / 4)
    assert measure.places == 4


@pytest.mark.parametrize(("labelled", "unsure"), [(True, UnsureItems.COUNT), (False, UnsureItems.SKIP)])
def test_layers_are_chosen_by_the_items_that_count_when_they_are_certified(labelled: bool, unsure: UnsureItems) -> None:
    data = {"evaluation": {"uri": "pvc://models/evaluation.npz", "agreement": {"unsure": "Skip"}}}
    world = World(make_spec(data=data), prepare={"labelled": labelled})
    world.settle()
    builds = [task.task for task in world.started if isinstance(task.task, BuildTask)]
    told = [build.evaluation.agreement.unsure for build in builds if build.evaluation is not None]
    assert told == [unsure] * 3, "those that choose layers"


@pytest.mark.parametrize(
    ("search", "exhaustive"), [({}, None), ({"strategy": "Pruning"}, None), ({"strategy": "Exhaustive"}, True)]
)
def test_a_search_that_prunes_keeps_the_hash_of_its_task(search: dict[str, str], exhaustive: bool | None) -> None:
    world = World(make_spec(search={"parallelism": 5, **search}))
    world.settle()
    (measure,) = [task.task for task in world.started if isinstance(task.task, MeasureTask)]
    assert measure.to_json().get("exhaustive") == exhaustive
    assert measure.exhaustive == bool(exhaustive)
    assert ("deadlineSeconds" in measure.to_json()) == bool(exhaustive), "with more time it measures more"


def test_an_exhaustive_search_is_told_when_the_run_has_to_end() -> None:
    world = World(make_spec(search={"parallelism": 5, "strategy": "Exhaustive", "deadlineSeconds": 600}))
    ends = int(world.now.timestamp()) + 600
    world.settle()
    told = {task.stage: task.environment for task in world.started}
    assert told["measure"] == {"FETTLE_ENDS": str(ends)}
    assert told["build"] == told["publish"] == {}


def test_the_percentile_of_the_constraint_reaches_the_clock() -> None:
    world = World(make_spec(constraints={"latency": {"maxMilliseconds": 50, "percentile": 95}}))
    world.settle()
    (measure,) = [task.task for task in world.started if isinstance(task.task, MeasureTask)]
    assert measure.constraints.latency is not None
    assert measure.constraints.latency.percentile == 95


def test_each_task_is_told_the_time_that_is_left() -> None:
    world = World(make_spec(search={"deadlineSeconds": 600, "parallelism": 5}))
    world.look()
    world.now += timedelta(seconds=100)
    world.finish()
    world.look()
    assert [task.deadline_seconds for task in world.started] == [600, *[500] * 5]


def test_the_report_is_told_every_verdict_and_the_constraints() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    (publish,) = [task.task for task in world.started if isinstance(task.task, PublishTask)]
    states = {verdict.candidate: verdict.state for verdict in publish.verdicts}
    assert states["int8-openvino"] == CandidateState.SELECTED
    assert states.keys() == world.rows().keys()
    assert publish.constraints == "accuracy drop <= 0.02, changed answers <= 0.12 (default)"
    assert len(publish.builds) == len(BUILDS)
    assert len(publish.measures) == 1


def test_times_are_written_as_kubernetes_does() -> None:
    world = World()
    world.now = datetime.fromisoformat("2026-03-01T14:00:00.123456+02:00")
    world.look()
    assert world.status.started_at == START.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_run_says_what_would_be_faster_and_what_keeps_it_out() -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.3)})
    world.settle()
    assert "int8-openvino is about 3 times as fast as the original, but accuracy drop 0.3 [" in world.ready.message


@pytest.mark.parametrize("speed", [0.9, 1.2, 1.4])
def test_what_is_hardly_faster_than_the_winner_is_not_mentioned(speed: float) -> None:
    world = World(speeds={"int8-openvino": (speed, 0.3)})
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED
    assert "int8-openvino" not in world.ready.message
