"""What TensorFlow's converter makes for LiteRT: as it is and quantized, with the names and the answers of the source; or a reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.toolchains.tensorflow import examples
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RecipeStep, RuntimeSettings
from fettle.api.report import BuildReport, PrepareReport
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer import build
from fettle.plan.run.planned import Execution, planned_candidate
from fettle.plan.run.tasks import BuildInput, build_task
from fettle.runtimes import base
from fettle.store.arrays import Array

ONE = RuntimeSettings(threads=1)
LITERT = RuntimeName.LITERT
STEPS = {
    "float32": {},
    "float16": {"quantize": {"mode": "Float16"}},
    "dynamic": {"quantize": {"mode": "Dynamic"}},
    "static": {"quantize": {"mode": "Static"}},
}
Items = Mapping[str, Array]


def planned(*steps: dict[str, Any]) -> Any:
    """The build of a recipe with these steps."""
    given = tuple(RecipeStep.model_validate(step) for step in steps if step)
    plan = planned_candidate("made", LITERT, Execution(ONE), steps=given).build
    assert plan is not None
    return plan


def built(bench: Workbench, file: str, items: Items, *steps: dict[str, Any]) -> tuple[PrepareReport, BuildReport]:
    """What prepare and the build of these steps report."""
    plan = planned(*steps)
    evaluation = EvaluationSpec(uri=bench.data("items", **items))
    source = SourceSpec(uri=f"pvc://claim/{file}")
    report = bench.prepare(bench.task(source=source, evaluation=evaluation, builds=[plan]))
    task = build_task(plan, report.builds[0], BuildInput(report.portable), report, "pvc://claim/store")
    return report, build.run(task, bench.store)


def made(bench: Workbench, report: PrepareReport, answer: BuildReport) -> tuple[Path, base.Session]:
    """The file, and a session of it."""
    assert answer.built is not None, answer.message
    assert (answer.built.format, answer.cache_key) == ("TFLite", report.builds[0].cache_key)
    entry = bench.store.fetch_model(answer.built, bench.folder / "made")
    return entry, base.get(LITERT).load(entry, ONE, report.signature)


def dense(folder: Path) -> tuple[keras.Model, str, Items]:
    """A network with layers that are large enough for the converter to quantize their weights, its file, and items."""
    keras.utils.set_random_seed(0)
    sizes = [keras.layers.Dense(256, activation="relu"), keras.layers.Dense(8, activation="softmax")]
    model = keras.Sequential([keras.Input((64,), name="x"), *sizes])
    items = {"x": np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)}
    return model, examples.save_keras(model, folder), items


@pytest.mark.parametrize(
    ("step", "int8", "tolerance"),
    [("float32", 0, 1e-5), ("float16", 0, 2e-3), ("dynamic", 2, 0.05), ("static", 2, 0.1)],
)
def test_the_answers_are_those_of_the_source(bench: Workbench, step: str, int8: int, tolerance: float) -> None:
    model, file, items = dense(bench.folder)
    report, answer = built(bench, file, items, STEPS[step])
    assert LITERT in report.portable_runtimes
    entry, session = made(bench, report, answer)
    (found,) = session.infer(items).values()
    np.testing.assert_allclose(found, model.predict(items["x"], verbose=0), atol=tolerance)
    executed = base.get(LITERT).executed(entry, ONE, items, report.signature)
    assert (executed.int8, executed.total) == (int8, 2)


def test_quantized_files_are_smaller(bench: Workbench) -> None:
    _, file, items = dense(bench.folder)
    sizes = {}
    for name, step in STEPS.items():
        _, answer = built(bench, file, items, step)
        assert answer.built is not None, answer.message
        sizes[name] = answer.built.bytes
    assert sizes["float32"] > 1.7 * sizes["float16"]
    assert sizes["float16"] > 1.5 * max(sizes["dynamic"], sizes["static"])


@pytest.mark.parametrize("saver", ["Keras", "h5", "SavedModel"])
def test_several_inputs_and_outputs_keep_their_names(bench: Workbench, saver: str) -> None:
    keras.utils.set_random_seed(1)
    left, right = keras.Input((3,), name="Left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([right, left])
    outputs = {"sum": keras.layers.Dense(1, name="sum")(joined), "kind": keras.layers.Dense(2, name="kind")(joined)}
    model = keras.Model([left, right], outputs)
    random = np.random.default_rng(0)
    items = {name: random.normal(size=(20, size)).astype(np.float32) for name, size in (("Left", 3), ("right", 2))}
    report, answer = built(bench, examples.SAVERS[saver](model, bench.folder), items)
    _, session = made(bench, report, answer)
    found, wanted = session.infer(items), model([items["Left"], items["right"]])
    for name in ("sum", "kind"):
        np.testing.assert_allclose(found[name], wanted[name].numpy(), rtol=1e-4, atol=1e-5)


def test_the_named_signature_of_a_saved_model_is_converted(bench: Workbench) -> None:
    examples.save_module(bench.folder, "scaled", "summed")
    plan = planned()
    items = {"x": np.ones((8, 4), np.float32) * np.arange(8, dtype=np.float32)[:, None]}
    evaluation = EvaluationSpec(uri=bench.data("items", **items))
    source = SourceSpec(uri="pvc://claim/saved", signature="summed")
    report = bench.prepare(bench.task(source=source, evaluation=evaluation, builds=[plan]))
    task = build_task(plan, report.builds[0], BuildInput(report.portable), report, "pvc://claim/store")
    _, session = made(bench, report, build.run(task, bench.store))
    np.testing.assert_allclose(session.infer(items)["sum"].ravel(), 4 * np.arange(8))


def test_the_same_build_twice_has_the_same_key_and_the_same_file(bench: Workbench) -> None:
    file, items = examples.save_keras(examples.convolutional(), bench.folder), {"image": examples.pictures()}
    _, first = built(bench, file, items, STEPS["static"])
    again, second = built(bench, file, items, STEPS["static"])
    assert (first.cache_key, first.built) == (second.cache_key, second.built)
    assert again.builds[0].built == first.built, "prepare finds it in the store"


def test_a_model_that_nobody_wants_in_litert_is_not_saved_for_it(bench: Workbench) -> None:
    file, items = examples.save_keras(examples.convolutional(), bench.folder), {"image": examples.pictures()}
    evaluation = EvaluationSpec(uri=bench.data("items", **items))
    task = bench.task(source=SourceSpec(uri=f"pvc://claim/{file}"), evaluation=evaluation)
    report = bench.prepare(task)
    assert (report.native, LITERT in report.portable_runtimes) == (None, False)
    asked = bench.prepare(task.model_copy(update={"builds": (planned(),)}))
    assert asked.native is not None, "the earlier report does not answer for it"
    assert bench.prepare(task).native == asked.native, "and its own answers for both"


def test_an_operator_that_litert_lacks_is_named(bench: Workbench) -> None:
    x = keras.Input((4,), name="x")
    file = examples.save_keras(keras.Model(x, keras.ops.tan(keras.layers.Dense(2)(x))), bench.folder)
    items = {"x": np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32) * 0.1}
    _, answer = built(bench, file, items)
    assert (answer.built, answer.reason) == (None, Reason.RECIPE_NOT_APPLICABLE)
    assert answer.message == "LiteRT has no counterpart for these operators of the model: Tan"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([STEPS["static"], STEPS["dynamic"]], "converts and quantizes in one step"),
        ([{"quantize": {"mode": "Dynamic", "operators": ["Conv"]}}], "every operator that it can"),
        ([{"quantize": {"mode": "Static", "preset": "Transformer"}}], "every operator that it can"),
    ],
)
def test_a_recipe_that_asks_for_what_the_converter_has_not_is_refused(
    bench: Workbench, steps: list[dict[str, Any]], words: str
) -> None:
    file, items = examples.save_keras(examples.convolutional(), bench.folder), {"image": examples.pictures()}
    _, answer = built(bench, file, items, *steps)
    assert (answer.built, answer.reason) == (None, Reason.RECIPE_NOT_APPLICABLE)
    assert words in answer.message
