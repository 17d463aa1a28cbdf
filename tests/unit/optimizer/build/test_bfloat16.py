"""bfloat16 where it holds: layers that lose too much stay in float32."""

from __future__ import annotations

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import helper, numpy_helper
from tests.data.models import model, tensor
from tests.unit.optimizer.build.test_build import OPENVINO, ORT, plan, prepared
from tests.unit.optimizer.build.test_mixed import built, mixed
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import BuildReport, PrepareReport
from fettle.api.task import BuildPlan
from fettle.api.vocabulary import Precision, QuantizeMode
from fettle.optimizer.steps.openvino_bfloat16 import Roundings
from fettle.runtimes import base

COMPUTED = Precision.BFLOAT16 in base.get(OPENVINO).capabilities()
with_bfloat16 = pytest.mark.skipif(not COMPUTED, reason="this CPU has no bfloat16")


def cancelling() -> onnx.ModelProto:
    """Five products. The third takes the difference of numbers that the second made a thousand times as large: 8 bits of mantissa leave nothing."""
    random = np.random.default_rng(11)
    large, small = 1000 * random.standard_normal((16, 16)), random.standard_normal((16, 16)) / 3
    weights = [random.standard_normal((16, 16)) / 3 for _ in range(2)]
    products = {
        "first": weights[0],
        "large": np.concatenate([large, large + small], axis=1),
        "difference": np.concatenate([-np.eye(16), np.eye(16)]),
        "fourth": weights[1],
        "last": random.standard_normal((16, 4)),
    }
    nodes, value = [], "x"
    for name in products:
        made = "scores" if name == "last" else f"{name}_sums"
        nodes.append(helper.make_node("MatMul", [value, f"{name}_weights"], [made], name=name))
        value = made
        if name in ("first", "difference", "fourth"):
            nodes.append(helper.make_node("Relu", [made], [f"{name}_relu"], name=f"{name}_relu"))
            value = f"{name}_relu"
    stored = [
        numpy_helper.from_array(weight.astype(np.float32), f"{name}_weights") for name, weight in products.items()
    ]
    return model(nodes, [tensor("x", ["N", 16])], [tensor("scores", ["N", 4])], stored)


def vectors(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


@pytest.fixture
def report(bench: Workbench) -> PrepareReport:
    return prepared(bench, cancelling(), x=vectors(5, 300))


def wanted(bound: float = 0.2) -> BuildPlan:
    asked = plan(OPENVINO, QuantizeMode.BFLOAT16)
    return asked.model_copy(update={"loss": mixed(bound).loss})


def changed(bench: Workbench, report: PrepareReport, answer: BuildReport, precision: Precision) -> float:
    """Share of decisions that are other than the original's, on items that the build has not seen."""
    assert answer.built is not None, answer.message
    feed = {"x": vectors(17, 400)}
    original = bench.store.fetch_model(report.portable, bench.folder / "original")
    made = bench.store.fetch_model(answer.built, bench.folder / f"{answer.built.digest}-{precision}")
    expected = base.get(ORT).load(original, RuntimeSettings(threads=1), report.signature).infer(feed)["scores"]
    settings = RuntimeSettings(threads=1, precision=precision)
    found = base.get(OPENVINO).load(made, settings, report.signature).infer(feed)["scores"]
    return float((expected.argmax(axis=1) != found.argmax(axis=1)).mean())


@with_bfloat16
def test_layers_that_bfloat16_ruins_stay_in_float32_and_the_others_run_in_it(
    bench: Workbench, report: PrepareReport
) -> None:
    answer = built(bench, report, wanted())
    assert "layers stay in float32 (" in answer.message
    assert {layer.name for layer in answer.layers if layer.kept} == {"large", "difference"}
    assert changed(bench, report, answer, Precision.BFLOAT16) < 0.1
    assert changed(bench, report, answer, Precision.FLOAT32) == 0
    assert answer.built is not None
    entry = bench.store.fetch_model(answer.built, bench.folder / "executed")
    settings = RuntimeSettings(threads=1, precision=Precision.BFLOAT16)
    executed = base.get(OPENVINO).executed(entry, settings, {"x": vectors(3, 1)}, report.signature)
    assert (executed.bf16, executed.f32) == (3, 2)


@with_bfloat16
def test_where_bfloat16_throughout_holds_nothing_is_made_because_the_setting_does_the_same(
    bench: Workbench, report: PrepareReport
) -> None:
    answer = built(bench, report, wanted(bound=1.0))
    if answer.built is None:
        assert answer.reason == Reason.RECIPE_NOT_APPLICABLE
        assert "BFloat16 throughout" in answer.message


@pytest.mark.skipif(COMPUTED, reason="this CPU has bfloat16")
def test_on_a_cpu_without_bfloat16_the_recipe_does_not_apply(bench: Workbench, report: PrepareReport) -> None:
    answer = built(bench, report, wanted())
    assert answer.reason == Reason.RECIPE_NOT_APPLICABLE
    assert "does not compute BFloat16" in answer.message


def test_roundings_that_are_all_off_change_nothing_and_all_on_round_as_bfloat16_does(
    bench: Workbench, report: PrepareReport
) -> None:
    entry = bench.store.fetch_model(report.portable, bench.folder / "given")
    roundings = Roundings(ov.Core().read_model(entry))
    # OpenVINO calls the last one as its output.
    assert roundings.products == {"first", "large", "difference", "fourth", "scores"}
    feed = {"x": vectors(23, 40)}
    expected = base.get(ORT).load(entry, RuntimeSettings(threads=1), report.signature).infer(feed)["scores"]
    exact = roundings.infer(frozenset())(feed)["scores"]
    np.testing.assert_allclose(exact, expected, rtol=1e-2, atol=1e-2)
    last = roundings.infer(frozenset({"scores"}))(feed)["scores"]
    assert 0 < np.abs(last - exact).max() < 0.05 * np.abs(exact).max()
    everything = roundings.infer(frozenset(roundings.layers))(feed)["scores"]
    assert np.abs(everything - exact).max() > 0.05 * np.abs(exact).max()
