"""What the training bench makes of its runs: which items nobody saw, what a technique gained, and which techniques it tries."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from bench import train
from bench.train_tasks import PLAIN, RECIPES, TASKS
from rich.console import Console

from fettle.api import catalog
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.recipe import RecipeStep
from fettle.api.vocabulary import PruneUnit

SPEEDUP = {"value": 3.0, "low": 2.8, "high": 3.2}
ROW: train.Row = {
    "model": "digits", "recipe": "pruned", "runtime": "openvino", "metric": "Accuracy", "maxDrop": 0.02, "speedup": SPEEDUP,
    "drop": {"value": 0.004, "low": -0.002, "high": 0.011}, "gain": None, "bytes": 4000, "state": "Selected", "reason": None, "message": None,
    "unseenDrop": 0.01, "unseen": 200, "promiseHeld": None,
}  # fmt: skip


def test_no_item_is_in_two_parts() -> None:
    parts = train.split({"x": np.arange(100), "labels": np.arange(100)})
    assert [len(part["x"]) for part in parts.values()] == [45, 40, 15]
    assert sorted(np.concatenate([part["x"] for part in parts.values()])) == list(range(100))
    assert all(np.array_equal(part["x"], part["labels"]) for part in parts.values())


def test_a_gain_refers_to_the_same_runtime_and_its_interval_covers_the_worst_of_both() -> None:
    plain = {**ROW, "recipe": PLAIN, "speedup": {"value": 1.5, "low": 1.4, "high": 1.6}}
    assert train.gain(ROW, plain) == pytest.approx({"value": 2.0, "low": 1.75, "high": 3.2 / 1.4})
    assert train.gain(plain, plain) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert train.gain(ROW, None) is None
    assert train.gain({**ROW, "speedup": None}, plain) is None


@pytest.mark.parametrize(
    ("row", "held"),
    [
        ({}, True),
        ({"unseenDrop": 0.021}, False),
        ({"drop": {"value": 0.01, "low": 0.0, "high": 0.021}}, None),
        ({"drop": None}, None),
    ],
    ids=["lost little", "lost too much", "not certified", "not measured"],
)
def test_only_what_was_certified_made_a_promise(row: dict[str, Any], held: bool | None) -> None:
    assert train.keeps({**ROW, **row}) is held


def test_scores_are_the_share_of_right_classes_and_the_negated_squared_error() -> None:
    assert train.accuracy(np.eye(4)[[0, 1, 2, 2]], np.arange(4)) == 0.75
    assert train.exact(np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])) == -2


def test_rows_of_other_tasks_stay_in_the_order_of_the_tasks() -> None:
    before = [{**ROW, "model": "words"}, ROW, {**ROW, "model": "gone"}]
    found = train.merged(before, [{**ROW, "recipe": "chain"}])
    assert [(row["model"], row["recipe"]) for row in found] == [("digits", "chain"), ("words", "pruned")]


def test_every_technique_that_trains_is_tried_on_some_task() -> None:
    tried = [
        RecipeStep.model_validate(step) for task in TASKS.values() for name in task.recipes for step in RECIPES[name]
    ]
    kinds = {step.parameters.kind for step in tried if step.parameters is not None}
    assert {entry.kind for entry in catalog.STEPS if entry.trains} <= kinds
    pruned = [step.prune for step in tried if step.prune is not None]
    assert {step.unit for step in pruned} == set(PruneUnit)
    assert any(step.distill is not None and step.distill.features is not None for step in tried)
    assert set(RECIPES) == {name for task in TASKS.values() for name in task.recipes}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_an_optimized_model_that_the_api_takes(name: str) -> None:
    task = TASKS[name]
    spec = OptimizedModelSpec.model_validate(train.specification(task)["spec"])
    assert [recipe.name for recipe in spec.recipes] == list(task.recipes)
    assert PLAIN in task.recipes, "what gains refer to"


def test_the_table_has_what_is_known_of_a_row() -> None:
    out = io.StringIO()
    unknown = {
        **ROW,
        "recipe": "low-rank",
        "speedup": None,
        "drop": None,
        "state": "Rejected",
        "reason": "RecipeNotApplicable",
    }
    Console(file=out, width=250).print(train.table([{**ROW, "promiseHeld": True}, unknown]))
    first, second = out.getvalue().splitlines()[1:]
    assert "3.00 [2.80, 3.20]" in first
    assert "held" in first
    assert "Rejected RecipeNotApplicable" in second
