"""Steps that train: builds of their own that all families share, on data that must be there, in front of everything else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.plan.optimize.world import ORT, World, digest, make_spec, stored

from fettle.api.images import Image
from fettle.api.progress import TrainingStatus
from fettle.api.reasons import Reason
from fettle.api.recipe import RecipeStep
from fettle.api.task import BuildPlan, BuildTask, StoredData, TrainingPlan, task_hash
from fettle.api.vocabulary import Augmentation, CandidateState, RuntimeName
from fettle.plan.run.candidates import possible_builds
from fettle.plan.run.images import image_of

PRUNE, DISTILL, STATIC = {"prune": {"ratio": 0.5}}, {"distill": {}}, {"quantize": {"mode": "Static"}}
DATA = {"evaluation": {"uri": "pvc://models/evaluation.npz"}, "training": {"uri": "pvc://models/training.npz"}}
ITEMS = StoredData(sha256=digest("training"), items=800, labelled=True)


def run(*steps: dict[str, Any], data: dict[str, Any] = DATA, **fields: Any) -> World:
    """A run of one recipe, settled; its candidates are fast and lose nothing."""
    recipe = {"name": "lean", "steps": list(steps), "train": {"epochs": 3}}
    prepare = {"training": ITEMS} if "training" in data else {}
    world = World(make_spec(data=data, recipes=[recipe], **fields), prepare=prepare)
    world.settle()
    return world


def tasks(world: World) -> list[BuildTask]:
    """The build tasks that were started, in order."""
    return [request.task for request in world.started if isinstance(request.task, BuildTask)]


def test_each_step_that_trains_is_a_build_of_its_own_and_every_family_has_them_in_common() -> None:
    world = run(PRUNE, DISTILL, STATIC)
    assert world.labels("build") == [
        "build lean-torchscript-1-of-2",
        "build lean-torchscript-2-of-2",
        "build lean-onnxruntime-3-of-3",
        "build lean-openvino-3-of-3",
    ]
    first, second, *last = tasks(world)
    assert (first.plan.family, first.follows, first.training) == (RuntimeName.TORCHSCRIPT, None, ITEMS)
    assert (second.follows, second.training) == (digest("lean-torchscript-1-of-2"), ITEMS)
    assert first.plan.training is not None
    assert first.plan.training.spec.epochs == 3
    assert image_of(first) is Image.OPTIMIZER_TORCH
    assert [task.training for task in last] == [None, None]
    assert [task.plan.training for task in last] == [None, None]
    assert {task.portable for task in last} == {stored("lean-torchscript-2-of-2", 300)}
    assert {row.name: row.state for row in world.status.candidates}["lean-openvino"] != CandidateState.REJECTED


GPU = {
    "name": "gpu",
    "runtimes": ["onnxruntime-cuda", "tensorrt"],
    "device": {"kind": "nvidia", "architecture": "sm89"},
}


@pytest.mark.parametrize(
    ("steps", "behind"),
    [
        ([PRUNE], {"build lean-tensorrt-float32-sm89-batch1-2-of-2": "gpu"}),
        (
            [PRUNE, STATIC],
            {
                "build lean-onnxruntime-2-of-2": None,
                "build lean-openvino-2-of-2": None,
                "build lean-onnxruntime-cuda-2-of-2": None,
                "build lean-tensorrt-float32-sm89-batch1-2-of-2": "gpu",
            },
        ),
    ],
    ids=["trained only", "trained and quantized"],
)
def test_a_training_serves_targets_with_and_without_gpus_and_occupies_none(
    steps: list[dict[str, Any]], behind: dict[str, str | None]
) -> None:
    world = run(*steps, targets=[{"name": "cpu", "threads": 2}, {**GPU, "threads": 2}])
    builds = [request for request in world.started if isinstance(request.task, BuildTask)]
    on = {request.label: request.target.name if request.target is not None else None for request in builds}
    assert on == {"build lean-torchscript": None, **behind}
    first, *last = tasks(world)
    assert (first.plan.form, image_of(first)) == (None, Image.OPTIMIZER_TORCH)
    assert [task.plan.form is not None for task in last] == [target is not None for target in behind.values()]
    assert all(row.state != CandidateState.REJECTED for row in world.rows("gpu").values() if row.recipe == "lean")


def test_a_renamed_secret_of_the_items_repeats_no_training() -> None:
    def hashes(secret: str) -> list[str]:
        beside = {name: {"uri": f"s3://data/{name}.npz", "secretName": secret} for name in DATA}
        world = run(PRUNE, STATIC, data=beside)
        return [request.task_hash for request in world.started if request.stage == "build"]

    assert hashes("minio") == hashes("renamed") != []


def test_a_renamed_secret_of_a_loss_of_ones_own_repeats_no_training_and_other_code_does() -> None:
    def hashes(secret: str, code: str) -> list[str]:
        custom = {"uri": "s3://code/loss.py", "secretName": secret}
        recipe = {"name": "lean", "steps": [PRUNE], "train": {"loss": "Custom", "custom": custom}}
        prepare = {"training": ITEMS, "loss_code": {"s3://code/loss.py": code}}
        world = World(make_spec(data=DATA, recipes=[recipe]), prepare=prepare)
        world.settle()
        return [request.task_hash for request in world.started if request.stage == "build"]

    assert hashes("minio", "a") == hashes("renamed", "a") != []
    assert hashes("minio", "a") != hashes("minio", "b")


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([PRUNE], "recipe lean trains, and there is no training data: set data.training"),
        ([STATIC, PRUNE], "recipe lean has a step that trains after one that does not: put the steps that train first"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused_with_what_it_lacks(steps: list[dict[str, Any]], told: str) -> None:
    world = run(*steps, data={"evaluation": DATA["evaluation"]} if steps == [PRUNE] else DATA)
    row = world.rows()["lean-onnxruntime"]
    assert (row.state, row.reason) == (CandidateState.REJECTED, Reason.RECIPE_NOT_APPLICABLE)
    assert row.message is not None
    assert told in row.message
    assert not world.labels("build")


def test_pytorch_itself_is_not_said_to_run_what_was_trained() -> None:
    targets = [{"name": "cpu", "runtimes": ["onnxruntime", "torchscript"]}]
    world = World(
        make_spec(data=DATA, recipes=[{"name": "lean", "steps": [PRUNE]}], targets=targets),
        prepare={"training": ITEMS, "portable_runtimes": (ORT, RuntimeName.TORCHSCRIPT)},
    )
    world.settle()
    row = world.rows()["lean-torchscript"]
    assert (row.state, row.message) == (
        CandidateState.REJECTED,
        "torchscript only runs the source, or what is converted from it, not the result of a recipe that trains",
    )


def test_prepare_is_asked_for_builds_that_train_only_where_there_are_training_data() -> None:
    recipes = [{"name": "lean", "steps": [PRUNE]}, {"name": "thin", "steps": [{"lowRank": {}}]}]
    with_data = {build.name for build in possible_builds(make_spec(data=DATA, recipes=recipes))}
    without = {build.name for build in possible_builds(make_spec(recipes=recipes))}
    assert without == {"thin-onnxruntime", "thin-openvino"}
    assert with_data == without | {"lean-onnxruntime", "lean-openvino"}


LOW_RANK = {"lowRank": {"rank": 0.5}}


def test_without_training_data_a_factorization_gets_the_calibration_items() -> None:
    (alone,) = tasks(run(LOW_RANK, data={"evaluation": DATA["evaluation"]}))
    assert (alone.calibration, alone.training) == (StoredData(sha256=digest("calibration"), items=200), None)
    (trained,) = tasks(run(LOW_RANK))
    assert (trained.calibration, trained.training) == (None, ITEMS)


def test_a_factorization_without_items_to_look_at_is_refused() -> None:
    recipe = {"name": "thin", "steps": [LOW_RANK]}
    data = {"evaluation": DATA["evaluation"]}
    world = World(make_spec(data=data, recipes=[recipe]), prepare={"calibration": 4})
    world.settle()
    row = world.rows()["thin-onnxruntime"]
    assert (row.state, row.reason) == (CandidateState.REJECTED, Reason.CALIBRATION_TOO_SMALL)
    assert row.message is not None
    assert row.message.startswith("lowRank without training data needs 10 calibration items or more, found 4")


def test_a_recipe_of_one_step_that_trains_has_a_build_without_a_number() -> None:
    plan = BuildPlan(
        name="lean-openvino",
        family=RuntimeName.OPENVINO,
        steps=(RecipeStep.model_validate(PRUNE),),
        training=TrainingPlan.model_validate({"spec": {}}),
    )
    assert [segment.name for segment in plan.segments] == ["lean-torchscript"]


def test_status_shows_how_far_a_training_has_come_until_it_is_over() -> None:
    recipe = {"name": "lean", "steps": [PRUNE, STATIC], "train": {"epochs": 20}}
    world = World(make_spec(data=DATA, recipes=[recipe]), prepare={"training": ITEMS})
    world.look()
    world.finish("prepare")
    world.look()
    (request,) = [request for request in world.started if request.stage == "build"]
    before = world.rows()["lean-onnxruntime"]
    assert (before.state, before.training, before.message) == (CandidateState.RUNNING, None, None)
    come = TrainingStatus(
        epoch=3, epochs=20, loss=0.4, validation_loss=0.5, validation_score=0.9, best_epoch=3, seconds=9
    )
    running = world.tasks[request.task_hash]
    world.tasks[request.task_hash] = replace(running, training=come)
    world.look()
    for name in ("lean-onnxruntime", "lean-openvino"):
        row = world.rows()[name]
        assert (row.state, row.training, row.message) == (CandidateState.RUNNING, come, come.words)
    world.settle()
    assert {row.training for row in world.status.candidates} == {None}


def test_images_are_changed_for_builds_that_train_and_for_no_other() -> None:
    def built(*names: str) -> list[BuildTask]:
        return tasks(run(PRUNE, STATIC, data={**DATA, "training": {**DATA["training"], "augment": list(names)}}))

    first, *last = built("Noise", "Crop")
    assert first.plan.training is not None
    assert first.plan.training.augment == (Augmentation.CROP, Augmentation.NOISE)
    (again, *_), (plain, *others) = built("Crop", "Noise"), built()
    assert task_hash(first) == task_hash(again), "their order says nothing"
    assert task_hash(first) != task_hash(plain)
    assert [task.plan.digest for task in last] == [task.plan.digest for task in others]
