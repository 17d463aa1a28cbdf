"""A recipe whose steps need different images is built in segments: each on what the one before it made, one candidate for all of them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.plan.optimize.world import World, digest, fails, failure, make_spec, stored

from fettle.api import images
from fettle.api.images import Image, ImageEntry
from fettle.api.reasons import Reason
from fettle.api.recipe import RecipeStep
from fettle.api.report import BuildReport
from fettle.api.task import BuildPlan, BuildTask
from fettle.api.vocabulary import CandidateState, RuntimeName
from fettle.plan.run.candidates import possible_builds
from fettle.plan.run.images import image_of

GRAPH, STATIC = {"optimizeGraph": {}}, {"quantize": {"mode": "Static"}}
FIRST, SECOND = "build lean-openvino-1-of-2", "build lean-openvino-2-of-2"


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image has both onnx, which prepares graphs, and NNCF, which quantizes for OpenVINO."""
    graphs = ImageEntry(Image.OPTIMIZER, frozenset({"onnx", "onnxruntime", "openvino"}))
    quantizes = ImageEntry(Image.OPTIMIZER_TORCH, frozenset({"nncf", "openvino"}))
    monkeypatch.setattr(images, "IMAGES", (graphs, quantizes))


def chain(**fields: Any) -> World:
    """A run whose only candidate is built in two segments."""
    recipes = [{"name": "lean", "steps": [GRAPH, STATIC]}]
    return World(make_spec(targets=[{"name": "cpu", "runtimes": ["openvino"]}], recipes=recipes), **fields)


def tasks(world: World) -> list[BuildTask]:
    """The build tasks that were started, in order."""
    return [request.task for request in world.started if isinstance(request.task, BuildTask)]


def steps(*documents: dict[str, Any]) -> tuple[RecipeStep, ...]:
    return tuple(RecipeStep.model_validate(document) for document in documents)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([GRAPH], [[GRAPH]]),
        ([GRAPH, GRAPH], [[GRAPH, GRAPH]]),
        ([GRAPH, STATIC], [[GRAPH], [STATIC]]),
        ([GRAPH, STATIC, STATIC, GRAPH], [[GRAPH], [STATIC, STATIC], [GRAPH]]),
    ],
)
def test_steps_part_where_no_image_has_what_both_sides_need(
    given: list[dict[str, Any]], parts: list[list[dict[str, Any]]]
) -> None:
    plan = BuildPlan(name="lean", family=RuntimeName.OPENVINO, steps=steps(*given))
    assert [segment.steps for segment in plan.segments] == [steps(*part) for part in parts]
    names = ["lean"] if len(parts) == 1 else [f"lean-{number}-of-{len(parts)}" for number in range(1, len(parts) + 1)]
    assert [segment.name for segment in plan.segments] == names


def test_what_one_image_builds_stays_one_build() -> None:
    spec = make_spec(targets=[{"name": "cpu", "runtimes": list(RuntimeName)}])
    assert all(build.segments == (build,) for build in possible_builds(spec))
    lean = BuildPlan(name="lean", family=RuntimeName.OPENVINO, steps=steps(GRAPH, STATIC))
    assert lean.segments == (lean,)


@pytest.mark.usefixtures("apart")
def test_each_segment_works_on_what_the_one_before_it_made_and_all_are_one_candidate() -> None:
    world = chain(speeds={"lean-openvino": (3.0, 0.001)})
    world.settle()
    assert world.labels("build") == [FIRST, SECOND]
    first, second = tasks(world)
    assert (first.follows, second.follows) == (None, first.cache_key)
    assert second.portable == stored(first.plan.name, 300)
    assert (first.calibration is None, second.calibration is None) == (True, False)
    assert [image_of(task) for task in (first, second)] == [Image.OPTIMIZER, Image.OPTIMIZER_TORCH]
    assert {name: row.state for name, row in world.rows().items()} == {"lean-openvino": CandidateState.SELECTED}
    assert world.rows()["lean-openvino"].bytes == 300


@pytest.mark.usefixtures("apart")
def test_the_second_segment_waits_for_the_first() -> None:
    world = chain()
    world.look()
    world.finish("prepare")
    world.look()
    assert world.labels("build") == [FIRST]
    assert world.ready.message == "0 of 1 builds done"
    world.finish()
    world.look()
    assert world.labels("build") == [FIRST, SECOND]
    assert world.rows()["lean-openvino"].state == CandidateState.RUNNING


FAULTS = [
    (FIRST, failure(Reason.JOB_FAILED, "a library crashed"), [FIRST], CandidateState.FAILED, Reason.JOB_FAILED),
    (SECOND, failure(Reason.OUT_OF_MEMORY, "no room"), [FIRST, SECOND], CandidateState.FAILED, Reason.OUT_OF_MEMORY),
    (
        SECOND,
        BuildReport(name="x", cache_key="y", reason=Reason.RECIPE_NOT_APPLICABLE, message="nothing to quantize"),
        [FIRST, SECOND],
        CandidateState.REJECTED,
        Reason.RECIPE_NOT_APPLICABLE,
    ),
]


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(("label", "outcome", "started", "state", "reason"), FAULTS)
def test_the_candidate_has_the_reason_of_the_segment_that_fails(
    label: str, outcome: Any, started: list[str], state: CandidateState, reason: Reason
) -> None:
    world = chain(answer=lambda request: outcome if request.label == label else None)
    world.settle()
    assert world.labels("build") == started
    row = world.rows()["lean-openvino"]
    assert (row.state, row.reason) == (state, reason)
    assert row.message == outcome.message


@pytest.mark.usefixtures("apart")
def test_only_the_segment_that_failed_is_tried_again() -> None:
    broken = failure(Reason.STORE_UNREACHABLE, retryable=True)
    world = chain(answer=fails("build", broken, SECOND, until_attempt=1), speeds={"lean-openvino": (3.0, 0.001)})
    world.settle()
    assert world.labels("build") == [FIRST, SECOND, SECOND]
    assert world.rows()["lean-openvino"].state == CandidateState.SELECTED


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(("cached", "started"), [(FIRST, [SECOND]), (SECOND, [])])
def test_what_the_store_has_of_a_chain_is_not_built_again(cached: str, started: list[str]) -> None:
    name = cached.removeprefix("build ")
    world = chain(prepare={"cached": [name]}, speeds={"lean-openvino": (3.0, 0.001)})
    world.settle()
    assert world.labels("build") == started
    assert all((task.portable, task.follows) == (stored(name, 300), digest(name)) for task in tasks(world))
    assert world.rows()["lean-openvino"].state == CandidateState.SELECTED


def test_a_step_that_no_image_can_run_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    slim = ImageEntry(Image.OPTIMIZER, frozenset({"onnx", "onnxruntime", "openvino"}))
    monkeypatch.setattr(images, "IMAGES", (slim,))
    world = chain()
    world.settle()
    row = world.rows()["lean-openvino"]
    assert (row.state, row.reason) == (CandidateState.REJECTED, Reason.RECIPE_NOT_APPLICABLE)
    assert row.message == (
        "no image has nncf and openvino, which the step quantizeStatic of openvino needs: remove the step from recipe lean"
    )
    assert world.labels("build") == []
