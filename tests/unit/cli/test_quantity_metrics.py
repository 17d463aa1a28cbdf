"""What a model is for decides what int8 may change: the whole of `fettle optimize` on quantities and on tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.data import models
from tests.unit.cli import in_process
from tests.unit.cli.test_misfits import let_through

from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.vocabulary import Evidence, Metric
from fettle.store.arrays import Array

ITEMS, INPUTS, HIDDEN, OUTPUTS = 300, 12, 48, 3


def network(ruined: bool, sigmoid: bool) -> tuple[Any, Array, Array]:
    """A small network, items and its answers. Where it is to be `ruined` by int8, an input that it does not look at is huge."""
    random = np.random.default_rng(5)
    first = (random.standard_normal((INPUTS, HIDDEN)) / np.sqrt(INPUTS)).astype(np.float32)
    first[0] = 0
    second = (random.standard_normal((HIDDEN, OUTPUTS)) * 3 / np.sqrt(HIDDEN)).astype(np.float32)
    items = random.standard_normal((ITEMS, INPUTS)).astype(np.float32)
    items[:, 0] *= 3000 if ruined else 1
    answers = np.maximum(items @ first, 0) @ second
    bias = (-np.median(answers, axis=0)).astype(np.float32)
    answers = answers + bias
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["d"]),
        helper.make_node("Sigmoid" if sigmoid else "Identity", ["d"], ["y"]),
    ]
    weights = [models.stored("first", first), models.stored("second", second), models.stored("bias", bias)]
    made = models.model(
        nodes, [models.tensor("x", ["N", INPUTS])], [models.tensor("y", ["N", OUTPUTS], TensorProto.FLOAT)], weights
    )
    return made, items, 1 / (1 + np.exp(-answers)) if sigmoid else answers


async def optimized(folder: Path, metric: Metric, ruined: bool, labelled: bool) -> OptimizedModelStatus:
    """The whole run, with one int8 candidate. Labels are what the original answers, and a little otherwise."""
    made, items, answers = network(ruined, sigmoid=metric == Metric.MULTI_LABEL)
    random = np.random.default_rng(9)
    if metric == Metric.MULTI_LABEL:
        labels = (answers > 0.5) ^ (random.random(answers.shape) < 0.05)
    else:
        labels = answers + random.normal(0, 0.3, answers.shape)
    given = {"x": items, **({"labels": labels} if labelled else {})}
    return await in_process.quantized(folder, made, given, 0.1, metric=metric)


@pytest.mark.parametrize("labelled", [False, True], ids=["no labels", "labels"])
@pytest.mark.parametrize("metric", [Metric.REGRESSION, Metric.MULTI_LABEL])
async def test_an_int8_build_that_says_the_same_passes(metric: Metric, labelled: bool, tmp_path: Path) -> None:
    status = await optimized(tmp_path, metric, ruined=False, labelled=labelled)
    (int8,) = (row for row in status.candidates if row.recipe == "int8")
    assert int8.accuracy is not None and int8.accuracy.metric == metric and int8.accuracy.value > 0.85, int8
    assert let_through(status) == [int8.name]
    assert int8.evidence == (Evidence.LABELS if labelled else Evidence.AGREEMENT)
    assert status.baselines[0].answers is not None and " y" in status.baselines[0].answers


@pytest.mark.parametrize("labelled", [False, True], ids=["no labels", "labels"])
@pytest.mark.parametrize("metric", [Metric.REGRESSION, Metric.MULTI_LABEL])
async def test_a_build_that_int8_ruined_is_refused(metric: Metric, labelled: bool, tmp_path: Path) -> None:
    status = await optimized(tmp_path, metric, ruined=True, labelled=labelled)
    (int8,) = (row for row in status.candidates if row.recipe == "int8")
    assert let_through(status) == []
    assert int8.accuracy is not None and int8.accuracy.metric == metric
