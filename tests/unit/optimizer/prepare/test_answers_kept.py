"""A conversion or a step that changes the answers is found out by running it, on tools that really do so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.source import InputSpec
from fettle.api.task import StoredModel
from fettle.api.vocabulary import RuntimeName
from fettle.errors import ConversionError
from fettle.runtimes import base
from fettle.runtimes.base import Array

MOVED = "the converted model's outputs differ from the original's: the output 'output' differs by up to 1"
NUMBERS = np.arange(-80, 0, dtype=np.int64).reshape(20, 4)


def answers(
    bench: Workbench, report: PrepareReport, model: StoredModel, runtime: RuntimeName, inputs: dict[str, Array]
) -> dict[str, Array]:
    """What a stored model answers, as it came."""
    entry = bench.store.fetch_model(model, bench.folder / f"{runtime}-{model.entry}")
    settings = RuntimeSettings(threads=1, graph_optimization=False)
    return dict(base.get(runtime).load(entry, settings, report.signature).infer(inputs))


# --------------------------------------------------------------------------------------------------------- conversions


def buckets(folder: Path) -> str:
    """A script that divides integers; the exporter rounds those below zero the other way. Its address."""
    from tests.data import torch_kinds

    torch_kinds.save_script("Buckets", folder / "model.pt")
    return "pvc://claim/model.pt"


def number(name: str, *shape: int | str, value: float | None = None) -> InputSpec:
    return InputSpec(name=name, dtype="INT64", shape=shape, value=value)


def test_a_conversion_that_answers_otherwise_is_not_taken_and_pytorch_goes_on_alone(bench: Workbench) -> None:
    start = np.zeros((20, 1), np.int64)
    evaluation = EvaluationSpec(uri=bench.data("items", x=NUMBERS, start=start))
    inputs = (number("x", "N", 4), number("start", "N", 1))
    report = bench.prepare(bench.task(uri=buckets(bench.folder), inputs=inputs, evaluation=evaluation))
    fault = report.conversion_fault
    assert fault is not None
    assert (fault.reason, fault.message) == (Reason.NUMERICAL_MISMATCH, MOVED)
    assert (report.portable, report.portable_runtimes) == (report.original, (RuntimeName.TORCHSCRIPT,))
    found = answers(bench, report, report.original, RuntimeName.TORCHSCRIPT, {"x": NUMBERS, "start": start})
    np.testing.assert_array_equal(found["output"], NUMBERS // 3)


def test_where_only_the_conversion_can_be_served_one_that_answers_otherwise_ends_the_run(bench: Workbench) -> None:
    evaluation = EvaluationSpec(uri=bench.data("items", x=NUMBERS))
    inputs = (number("x", "N", 4), number("start", 1, 1, value=2))  # a frozen input is the conversion's alone
    with pytest.raises(ConversionError) as caught:
        bench.prepare(bench.task(uri=buckets(bench.folder), inputs=inputs, evaluation=evaluation))
    assert (caught.value.reason, caught.value.message) == (Reason.NUMERICAL_MISMATCH, MOVED)
    assert not caught.value.retryable


# --------------------------------------------------------------------------------------------------------------- steps


def enlarging() -> onnx.ModelProto:
    """[N, 1, 3, 3] -> [N, 1, 6, 6]: opset 10's Resize, whose pixels onnx's converter (1.23) moves on the way to opset 11."""
    nodes = [onnx.helper.make_node("Resize", ["image", "scales"], ["large"], mode="linear")]
    inputs, outputs = models.tensor("image", ["N", 1, 3, 3]), models.tensor("large", ["N", 1, 6, 6])
    scales = models.stored("scales", np.array([1, 1, 2, 2]), "float32")
    return models.model(nodes, [inputs], [outputs], [scales], opset=10, ir=5)


def test_a_step_that_changes_the_answers_is_left_out_and_the_graph_before_it_is_kept(bench: Workbench) -> None:
    bench.put(enlarging())
    report = bench.prepare()
    (note,) = [note for note in report.notes if "was skipped" in note]
    assert note.startswith("the step 'raise the opset' was skipped: the output 'large' differs by up to ")
    assert report.traits.opset == 10
    image = np.random.default_rng(0).standard_normal((2, 1, 3, 3)).astype(np.float32)
    wanted, found = (
        answers(bench, report, model, RuntimeName.ONNXRUNTIME, {"image": image})
        for model in (report.original, report.portable)
    )
    np.testing.assert_allclose(found["large"], wanted["large"], rtol=1e-5, atol=1e-6)


def test_the_steps_after_one_that_was_left_out_are_still_taken(bench: Workbench) -> None:
    made = enlarging()
    made.graph.node[0].output[0] = "before"
    # Two constants to fold: what folding leaves of them is one.
    made.graph.initializer.extend(models.stored(name, np.array([2.0]), "float32") for name in ("a", "b"))
    made.graph.node.append(onnx.helper.make_node("Mul", ["a", "b"], ["four"]))
    made.graph.node.append(onnx.helper.make_node("Mul", ["before", "four"], ["large"]))
    bench.put(made)
    report = bench.prepare()
    assert any("'raise the opset' was skipped" in note for note in report.notes)
    assert [node.op_type for node in bench.portable(report).graph.node] == ["Resize", "Mul"]
