"""Inputs with a default value: real inputs where somebody gives them, weights where nobody does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.data import models
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import CalibrationSpec, EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.report import PrepareReport
from fettle.api.source import InputSpec
from fettle.errors import FettleError
from fettle.runtimes.base import Array

RANDOM = np.random.default_rng(17)
WEIGHTS = RANDOM.standard_normal((8, 4)).astype(np.float32)
X = RANDOM.standard_normal((40, 8)).astype(np.float32)
GAIN = RANDOM.choice([-1.0, 1.0], (40, 1, 4)).astype(np.float32)
FOLDED = ["x"]


def with_gain(rows: int | str = "N", ir: int = 8, *, all_weights: bool = False) -> onnx.ModelProto:
    """logits = (x w) gain, where `gain` is an input whose default is one. `all_weights`: `w` is listed as an input too."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Mul", ["m", "gain"], ["logits"])]
    inputs = [models.tensor("x", ["N", 8]), models.tensor("gain", [rows, 4])]
    inputs += [models.tensor("w", [8, 4])] if all_weights else []
    weights = [models.stored("w", WEIGHTS), models.stored("gain", np.ones((1, 4)))]
    made = models.model(nodes, inputs, [models.tensor("logits", ["N", 4])], weights)
    made.ir_version = ir
    return made


def prepared(bench: Workbench, inputs: tuple[InputSpec, ...] = (), **arrays: Array) -> PrepareReport:
    evaluation = EvaluationSpec(uri=bench.data("items", **arrays)) if arrays else None
    return bench.prepare(bench.task(evaluation=evaluation, inputs=inputs))


def names(report: PrepareReport) -> list[str]:
    return [tensor.name for tensor in report.signature.inputs]


def answers(bench: Workbench, report: PrepareReport, index: int) -> tuple[Array, Array]:
    """What the portable form answers to a stored item, and its label."""
    from fettle.optimizer.onnx.session import session

    stored = arrays_in(bench.store, report.items.sha256)
    feed = {
        tensor.name: stored[tensor.name][index : index + 1]
        if tensor.batch_axis is not None
        else stored[tensor.name][index]
        for tensor in report.signature.inputs
    }
    opened = session(bench.store.fetch_model(report.portable, bench.folder / "portable"), report.signature)
    return opened.infer(feed)["logits"].reshape(-1), stored["labels"][index]


@pytest.mark.parametrize(("rows", "axis"), [("N", 0), (1, None)])
@pytest.mark.parametrize("all_weights", [False, True])
def test_an_input_with_a_default_that_the_items_give_is_an_input_like_any_other(
    bench: Workbench, rows: int | str, axis: int | None, all_weights: bool
) -> None:
    bench.put(with_gain(rows, 3 if all_weights else 8, all_weights=all_weights))
    labels = ((X @ WEIGHTS) * GAIN[:, 0]).argmax(1)
    report = prepared(bench, x=X, gain=GAIN, labels=labels)
    assert names(report) == ["x", "gain"]
    assert [tensor.batch_axis for tensor in report.signature.inputs] == [axis, axis]
    for index in range(report.items.items):
        found, label = answers(bench, report, index)
        assert found.argmax() == label
    assert not [note for note in report.notes if "neither inputs nor labels" in note]
    assert [value.name for value in bench.portable(report, "again").graph.input] == ["x", "gain"]
    assert not {"gain"} & {tensor.name for tensor in bench.portable(report, "again").graph.initializer}


def test_a_default_that_nobody_overrides_stays_and_the_note_says_so(bench: Workbench) -> None:
    bench.put(with_gain())
    report = prepared(bench, x=X, labels=(X @ WEIGHTS).argmax(1))
    assert names(report) == ["x"]
    assert [note for note in report.notes if "keep their default value" in note and "gain" in note]
    found, label = answers(bench, report, 0)
    assert found.argmax() == label


def test_weights_that_an_old_file_lists_among_its_inputs_are_weights(bench: Workbench) -> None:
    bench.put(with_gain(ir=3, all_weights=True))
    report = prepared(bench, x=X)
    assert names(report) == ["x"]
    assert not [note for note in report.notes if "default" in note]
    assert [value.name for value in bench.portable(report).graph.input] == ["x"]


def test_an_input_with_a_default_is_one_where_source_inputs_names_it(bench: Workbench) -> None:
    bench.put(with_gain())
    assert names(prepared(bench, (InputSpec(name="gain"),))) == ["x", "gain"]
    with pytest.raises(FettleError, match=r"no array for the inputs \['gain'\]") as caught:
        prepared(bench, (InputSpec(name="gain"),), x=X)
    assert caught.value.reason == Reason.DATA_INVALID


def test_source_inputs_freeze_an_input_with_a_default_at_another_value(bench: Workbench) -> None:
    bench.put(with_gain(1))
    report = prepared(bench, (InputSpec(name="gain", value=-1),), x=X, labels=(X @ WEIGHTS).argmin(1))
    assert names(report) == ["x"]
    found, label = answers(bench, report, 3)
    assert found.argmax() == label


def test_calibration_items_must_give_what_evaluation_items_give(bench: Workbench) -> None:
    bench.put(with_gain())
    calibration = CalibrationSpec(uri=bench.data("calibration", x=X))
    with pytest.raises(FettleError, match=r"calibration.npz: no array for the inputs \['gain'\]"):
        bench.prepare(
            bench.task(calibration=calibration, evaluation=EvaluationSpec(uri=bench.data("items", x=X, gain=GAIN)))
        )


def test_asked_again_after_the_items_came_to_give_an_input_it_is_one(bench: Workbench) -> None:
    bench.put(with_gain())
    without = prepared(bench, x=X)
    assert prepared(bench, x=X) == without
    given = prepared(bench, x=X, gain=GAIN)
    assert names(given) == ["x", "gain"]
    assert prepared(bench, x=X, gain=GAIN) == given
    assert names(prepared(bench, x=X)) == ["x"]
