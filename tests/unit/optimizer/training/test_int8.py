"""What was trained for int8 is written in int8 by the quantizer of each runtime: one training for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.data import trainable
from tests.unit.optimizer.training.course import Course

from fettle.api.recipe import RecipeStep, RuntimeSettings, completed
from fettle.api.report import BuildReport
from fettle.api.task import BuildPlan, BuildTask
from fettle.api.vocabulary import RuntimeName
from fettle.optimizer import build
from fettle.runtimes import base

AWARE = {"quantize": {"mode": "Aware"}}


@pytest.fixture(scope="module")
def aware(course: Course) -> BuildReport:
    """The trained net, in float32."""
    return course.build(AWARE, epochs=2)


def in_qdq(path: Path) -> bool:
    """Whether an ONNX file rounds what goes into its convolutions."""
    graph = onnx.load(str(path)).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    return all(
        {made_by.get(name) for name in node.input[:2]} == {"DequantizeLinear"}
        for node in graph.node
        if node.op_type == "Conv"
    )


def in_int8(path: Path) -> bool:
    """Whether OpenVINO's form stores weights in int8, and rounds what they are multiplied with."""
    text = path.read_text()
    return 'element_type="i8"' in text and 'type="FakeQuantize"' in text


@pytest.mark.parametrize(
    ("family", "quantized"), [(RuntimeName.ONNXRUNTIME, in_qdq), (RuntimeName.OPENVINO, in_int8)], ids=["QDQ", "IR"]
)
def test_what_was_trained_for_int8_is_int8_in_each_runtime_and_answers_as_well(
    course: Course, aware: BuildReport, family: RuntimeName, quantized: Callable[[Path], bool]
) -> None:
    assert aware.built is not None, aware.message
    _, static = completed((RecipeStep.model_validate(AWARE),))
    task = BuildTask(
        store="pvc://claim/store",
        plan=BuildPlan(name=f"aware-{family}", family=family, steps=(static,)),
        cache_key="0" * 64,
        portable=aware.built,
        signature=course.prepared.signature,
        calibration=course.prepared.calibration,
        follows=aware.cache_key,
    )
    report = build.run(task, course.store)
    assert report.built is not None, report.message
    path = course.path(report.built)
    assert quantized(path)
    items = trainable.digits()["evaluation"]
    session = base.get(family).load(path, RuntimeSettings(threads=1), course.prepared.signature)
    answers = session.infer({"image": items["image"]})["output"]
    session.close()
    right = float(np.mean(answers.argmax(1) == items["labels"]))
    assert right > course.accuracy(aware.built) - 0.01


@pytest.mark.parametrize(("hurt", "trains"), [(False, False), (True, True)], ids=["loses nothing", "loses too much"])
def test_a_training_for_int8_that_nobody_asked_for_is_skipped_where_int8_loses_little(
    tmp_path: Path, hurt: bool, trains: bool
) -> None:
    net = trainable.learned()
    course = Course.of(tmp_path, trainable.Outlying(net).eval() if hurt else net)
    task = course.task(AWARE, epochs=1)
    assert task.plan.training is not None
    unasked = task.plan.training.model_copy(update={"tolerated": 0.05})
    task = task.model_copy(update={"plan": task.plan.model_copy(update={"training": unasked})})
    report = build.run(task, course.store)
    assert (report.training is not None) == trains, report.message
    if not trains:
        assert (
            "of the original's answers to training items, and the default plan trains only if it changes more than 5.00 %"
            in report.message
        )
