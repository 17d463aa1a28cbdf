"""Mixed precision: which layers stay in floating point, and that no more do than must."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from tests.data import models
from tests.data.models import model, tensor
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.build.test_build import OPENVINO, ORT, plan, prepared, task
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import AgreementSpec, EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import QuantizeStep, RuntimeSettings
from fettle.api.report import BuildReport, PrepareReport
from fettle.api.signature import Signature, Tensor
from fettle.api.task import BuildPlan, LossBound
from fettle.api.vocabulary import AgreementMode, QuantizeMode, QuantizePreset, RuntimeName
from fettle.errors import RecipeError
from fettle.optimizer import stage
from fettle.optimizer.loss import Infer, Loss
from fettle.optimizer.measure import items
from fettle.optimizer.steps import Work, nncf_quantize
from fettle.optimizer.steps.layers import LayerChoice, Scheme, choose, grouped, judged_on, ranked_on
from fettle.optimizer.steps.onnx_switches import OnnxSwitches
from fettle.optimizer.steps.openvino_switches import OpenVinoSwitches
from fettle.runtimes import base

LAYERS = tuple(f"layer{number}" for number in range(8))
SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),),
    outputs=(Tensor(name="y", dtype="FP32", shape=(-1, 4), batch_axis=0),),
)
MODERATE = 1_000_000


class NoisyLayers:
    """A model that adds noise of a given size for each of its layers that is in int8."""

    layers = LAYERS
    products = frozenset(LAYERS)

    def __init__(self, sizes: Mapping[str, float]) -> None:
        self.sizes = sizes

    def infer(self, quantized: frozenset[str]) -> Infer:
        noise = sum(self.sizes.get(layer, 0.0) for layer in quantized)

        def run(feed: items.Answer) -> items.Answer:
            random = np.random.default_rng(int(np.abs(feed["x"]).sum() * 1e6) % 2**32)
            return {"y": feed["x"] + noise * random.standard_normal(feed["x"].shape).astype(np.float32)}

        return run


@pytest.fixture
def loss(tmp_path: Path) -> Loss:
    data = items.of({"x": np.random.default_rng(3).standard_normal((60, 4)).astype(np.float32)}, SIGNATURE)
    loss = Loss(tmp_path, data, EvaluationSpec(uri="-"), LossBound(max_loss=0.2, refused=0.2))
    loss.begin(lambda feed: {"y": feed["x"]}, len(data))
    return loss


def scheme(sizes: Mapping[str, float], truly: Mapping[str, float] | None = None, words: str = "") -> Scheme:
    """A way to quantize that loses as `sizes` say, and once it is built as `truly` says. Its files say what each layer adds."""

    def quantize(to: Path, kept: Sequence[str]) -> Path:
        entry = to / "noise.json"
        entry.write_text(json.dumps({name: size for name, size in (truly or sizes).items() if name not in kept}))
        return entry

    return Scheme(quantize, lambda _: NoisyLayers(sizes), words)


def load(entry: Path) -> Infer:
    return NoisyLayers(json.loads(entry.read_text())).infer(frozenset(LAYERS))


def chosen(loss: Loss, folder: Path, *schemes: Scheme) -> LayerChoice:
    return choose(schemes, loss, folder, load, MODERATE)


def test_only_the_layer_that_loses_much_stays_in_floating_point(loss: Loss, tmp_path: Path) -> None:
    assert chosen(loss, tmp_path, scheme({"layer5": 10.0, "layer1": 1e-4})).kept == (("layer5",),)


def test_the_error_of_each_layer_is_told_the_most_sensitive_first(loss: Loss, tmp_path: Path) -> None:
    choice = chosen(loss, tmp_path, scheme({"layer5": 10.0, "layer1": 1e-4}))
    first, second, *others = choice.errors
    assert (first.name, first.layers, first.kept) == ("layer5", 1, True)
    assert (second.name, second.kept) == ("layer1", False)
    assert first.error == pytest.approx(1e5 * second.error, rel=1e-3), "it grows with the noise"
    assert [layer.error for layer in others] == [0.0] * 6


def test_nothing_stays_where_int8_loses_little_and_no_layer_is_ranked(loss: Loss, tmp_path: Path) -> None:
    def ranked(_: Path) -> NoisyLayers:
        raise AssertionError("nothing is to be ranked")

    choice = chosen(loss, tmp_path, replace(scheme({"layer5": 1e-4}), switches=ranked))
    assert (choice.kept, choice.errors) == ((), ())
    assert choice.words == "all layers are quantized; 0 % of the answers to the calibration items differ"


def test_what_follows_a_product_belongs_to_it() -> None:
    layers = ["pool", "conv1", "relu1", "add1", "conv2", "conv3", "relu3"]
    groups = grouped(layers, frozenset({"conv1", "conv2", "conv3"}))
    assert groups == [("pool",), ("conv1", "relu1", "add1"), ("conv2",), ("conv3", "relu3")]


def test_another_way_to_quantize_is_tried_before_a_layer_is_ranked(loss: Loss, tmp_path: Path) -> None:
    ruined, good = scheme({"layer2": 10.0}), scheme({"layer2": 1e-4}, words="products only")
    choice = chosen(loss, tmp_path, ruined, good)
    assert (choice.scheme, choice.kept) == (good, ())
    assert choice.words == "products only: all layers are quantized; 0 % of the answers to the calibration items differ"


def test_layers_are_ranked_in_the_way_that_loses_least(loss: Loss, tmp_path: Path) -> None:
    worse, better = scheme(dict.fromkeys(LAYERS, 10.0)), scheme({"layer6": 0.05})
    choice = chosen(loss, tmp_path, worse, better)
    assert (choice.scheme, choice.kept) == (better, (("layer6",),))


def test_what_was_built_decides_not_what_was_simulated(loss: Loss, tmp_path: Path) -> None:
    simulated = {"layer2": 2e-3, "layer5": 1e-3}
    truly = {"layer2": 10.0, "layer5": 1e-4}
    assert chosen(loss, tmp_path, scheme(simulated, truly)).kept == (("layer2",),)


def test_a_model_of_which_most_layers_lose_much_is_no_case_for_int8(loss: Loss, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="even if 4 of 8 groups of layers stay in floating point"):
        chosen(loss, tmp_path, scheme(dict.fromkeys(LAYERS, 10.0)))


@pytest.mark.parametrize("products", [0, 10**6, 10**9, 10**11, 10**13])
@pytest.mark.parametrize("layers", [1, 60, 2000])
def test_ranking_and_judging_are_bounded_for_every_model(layers: int, products: int) -> None:
    count, width = ranked_on(layers, products)
    assert count >= 2 and width >= 1
    answers = count * -(-layers // width)
    assert answers <= max(2e11 / max(products, 1), 2) + count or products <= 10**6
    assert 10 <= judged_on(products) <= 256


def one_wide_layer() -> onnx.ModelProto:
    """Six products, of which the fourth takes a channel that is as large as it is useless: 8 bits for all channels leave none for the others."""
    random = np.random.default_rng(11)
    weights = [random.standard_normal((16, 16)).astype(np.float32) / 3 for _ in range(5)]
    weights.append(random.standard_normal((16, 4)).astype(np.float32))
    weights[2][:, 0] *= 3e4
    weights[3][0] = 0
    nodes, value = [], "x"
    for number in range(len(weights)):
        last = number == len(weights) - 1
        nodes.append(
            helper.make_node(
                "MatMul", [value, f"w{number}"], [f"m{number}" if not last else "scores"], name=f"product{number}"
            )
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number}"], name=f"relu{number}"))
        value = f"r{number}"
    initializers = [numpy_helper.from_array(weight, f"w{number}") for number, weight in enumerate(weights)]
    return model(nodes, [tensor("x", ["N", 16])], [tensor("scores", ["N", 4])], initializers)


DECISIONS = EvaluationSpec(uri="-", agreement=AgreementSpec(mode=AgreementMode.TOP_ONE))


def mixed(bound: float = 0.1, family: RuntimeName = OPENVINO) -> BuildPlan:
    loss = LossBound(max_loss=bound, refused=bound, evaluation=DECISIONS)
    return plan(family, QuantizeMode.MIXED).model_copy(update={"loss": loss})


def built(bench: Workbench, report: PrepareReport, wanted: BuildPlan) -> BuildReport:
    asked = task(report, wanted).model_copy(update={"evaluation": DECISIONS})
    answer = stage.run(asked, bench.mounts)
    assert isinstance(answer, BuildReport)
    return answer


@pytest.fixture
def report(bench: Workbench) -> PrepareReport:
    vectors = np.random.default_rng(5).standard_normal((300, 16)).astype(np.float32)
    return prepared(bench, one_wide_layer(), x=vectors)


def lost(bench: Workbench, report: PrepareReport, answer: BuildReport, family: RuntimeName) -> float:
    """Share of decisions that are other than the original's, on items that the build has not seen."""
    assert answer.built is not None, answer.message
    runtime, settings = base.get(family), RuntimeSettings(threads=1)
    original = bench.store.fetch_model(report.portable, bench.folder / "original")
    made = bench.store.fetch_model(answer.built, bench.folder / answer.built.digest)
    feed = {"x": np.random.default_rng(17).standard_normal((400, 16)).astype(np.float32)}
    expected, decided = (
        runtime.load(entry, settings, report.signature).infer(feed)["scores"].argmax(axis=1)
        for entry in (original, made)
    )
    return float((decided != expected).mean())


def int8_products(bench: Workbench, report: PrepareReport, answer: BuildReport, family: RuntimeName) -> int:
    assert answer.built is not None
    path = bench.store.fetch_model(answer.built, bench.folder / f"{answer.built.digest}-executed")
    feed = {"x": np.random.default_rng(17).standard_normal((1, 16)).astype(np.float32)}
    return base.get(family).executed(path, RuntimeSettings(threads=1), feed, report.signature).int8


@pytest.mark.parametrize("family", [OPENVINO, ORT])
def test_one_layer_that_int8_ruins_stays_in_floating_point_and_the_others_run_in_int8(
    bench: Workbench, report: PrepareReport, family: RuntimeName
) -> None:
    whole, partial = built(bench, report, plan(family)), built(bench, report, mixed(0.2, family))
    assert lost(bench, report, whole, family) > 0.2
    assert lost(bench, report, partial, family) < 0.1
    assert "layers stay in floating point (" in partial.message
    assert partial.layers[0].kept and partial.layers[0].error > partial.layers[-1].error
    assert whole.layers == ()
    kept, everything = (int8_products(bench, report, answer, family) for answer in (partial, whole))
    assert 3 <= kept < everything


def test_switches_that_are_all_off_give_the_answers_of_the_original(bench: Workbench, report: PrepareReport) -> None:
    original = bench.store.fetch_model(report.portable, bench.folder / "original")
    answer = built(bench, report, plan(OPENVINO))
    assert answer.built is not None
    whole = bench.store.fetch_model(answer.built, bench.folder / "whole")
    core = ov.Core()
    switches = OpenVinoSwitches(core.read_model(whole), core.read_model(original))
    feed = {"x": np.random.default_rng(23).standard_normal((40, 16)).astype(np.float32)}
    expected = base.get(ORT).load(original, RuntimeSettings(threads=1), report.signature).infer(feed)["scores"]
    np.testing.assert_allclose(switches.infer(frozenset())(feed)["scores"], expected, rtol=1e-3, atol=1e-3)


def switched(original: Path, quantized: Path, feeds: Iterator[dict[str, base.Array]]) -> OnnxSwitches:
    """Switches of `original`, which is quantized as mixed precision does it."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, base.Array] | None:
            return next(feeds, None)

    options = {"QDQKeepRemovableActivations": True}
    quantize_static(str(original), str(quantized), Reader(), per_channel=True, extra_options=options)
    return OnnxSwitches(quantized, original, original.parent / "switches.onnx")


def test_switches_of_a_qdq_file_that_are_all_off_give_the_answers_of_the_original(tmp_path: Path) -> None:
    original, quantized = tmp_path / "original.onnx", tmp_path / "quantized.onnx"
    onnx.save(one_wide_layer(), original)
    feeds = iter(
        [{"x": np.random.default_rng(number).standard_normal((1, 16)).astype(np.float32)} for number in range(20)]
    )

    switches = switched(original, quantized, feeds)
    feed = {"x": np.random.default_rng(23).standard_normal((40, 16)).astype(np.float32)}
    expected, int8 = (
        base.get(ORT).load(entry, RuntimeSettings(threads=1)).infer(feed)["scores"] for entry in (original, quantized)
    )
    np.testing.assert_allclose(switches.infer(frozenset())(feed)["scores"], expected, rtol=1e-4, atol=1e-4)
    simulated = switches.infer(frozenset(switches.layers))(feed)["scores"]
    assert np.abs(simulated - int8).mean() < 0.1 * np.abs(expected - int8).mean()


def test_mixed_precision_needs_to_know_what_may_be_lost(bench: Workbench, report: PrepareReport) -> None:
    for wanted in (mixed(0.0), mixed(0.0, ORT), plan(OPENVINO, QuantizeMode.MIXED)):
        answer = built(bench, report, wanted)
        assert answer.reason == Reason.RECIPE_NOT_APPLICABLE
        assert "requires constraints.accuracy.maxDrop above 0" in answer.message


def test_another_bound_is_another_build(bench: Workbench, report: PrepareReport) -> None:
    keys = {built(bench, report, mixed(bound)).cache_key for bound in (0.1, 0.2)}
    assert len(keys) == 2


def test_the_same_layers_are_chosen_every_time(bench: Workbench, report: PrepareReport) -> None:
    first, second = (built(bench, report, mixed()) for _ in range(2))
    assert first.built is not None and first.built == second.built


@pytest.mark.parametrize("family", [OPENVINO, ORT])
def test_what_feeds_a_recurrent_layer_is_quantized_where_the_answers_allow_it(
    bench: Workbench, family: RuntimeName
) -> None:
    frames = np.random.default_rng(0).standard_normal((80, 5, 6)).astype(np.float32)
    report = prepared(bench, models.recurrent(), frames=frames)
    runtime, feed = base.get(family), items.of(arrays_in(bench.store, report.items.sha256), report.signature).feed([0])
    int8 = []
    for wanted in (plan(family), mixed(0.9, family)):
        answer = built(bench, report, wanted)
        assert answer.built is not None, answer.message
        path = bench.store.fetch_model(answer.built, bench.folder / answer.built.digest)
        int8.append(runtime.executed(path, RuntimeSettings(threads=1), feed, report.signature).int8)
    assert int8 == [1, 2]  # behind it alone, and in front of it too


def with_biases() -> onnx.ModelProto:
    """Two convolutions and a Gemm, each with a bias, and a LayerNormalization, which has no name of its own in OpenVINO."""
    random = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 3, name)

    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="second"),
        helper.make_node("Flatten", ["c1"], ["flat"], name="flatten"),
        helper.make_node("LayerNormalization", ["flat", "scale"], ["normed"], name="norm"),
        helper.make_node("Gemm", ["normed", "w2", "b2"], ["scores"], name="last"),
    ]
    weights = [weight("w0", 4, 1, 3, 3), weight("b0", 4), weight("w1", 4, 4, 3, 3), weight("b1", 4)]
    weights += [weight("scale", 144), weight("w2", 144, 3), weight("b2", 3)]
    return model(nodes, [tensor("image", ["N", 1, 8, 8])], [tensor("scores", ["N", 3])], weights)


def test_biases_are_switched_like_weights(tmp_path: Path) -> None:
    original, quantized = tmp_path / "original.onnx", tmp_path / "quantized.onnx"
    onnx.save(with_biases(), original)
    random = np.random.default_rng(3)
    feeds = iter([{"image": random.standard_normal((1, 1, 8, 8)).astype(np.float32)} for _ in range(20)])

    switches = switched(original, quantized, feeds)
    feed = {"image": random.standard_normal((5, 1, 8, 8)).astype(np.float32)}
    expected = base.get(ORT).load(original, RuntimeSettings(threads=1)).infer(feed)["scores"]
    np.testing.assert_allclose(switches.infer(frozenset())(feed)["scores"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("preset", list(QuantizePreset))
def test_layers_without_a_name_stay_when_they_are_chosen_and_smoothed_weights_are_left_alone(
    bench: Workbench, preset: QuantizePreset
) -> None:
    report = prepared(
        bench, with_biases(), image=np.random.default_rng(5).standard_normal((60, 1, 8, 8)).astype(np.float32)
    )
    entry = bench.store.fetch_model(report.portable, bench.folder / "given")
    data = items.of(arrays_in(bench.store, report.items.sha256), report.signature)
    work = Work(entry, bench.folder, QuantizeStep(mode=QuantizeMode.MIXED, preset=preset), calibration=data)
    original = ov.Core().read_model(entry)
    switches = OpenVinoSwitches(nncf_quantize._quantized(work, original.clone(), work.step.preset, ()), original)
    feed = data.feed([0])
    expected = base.get(OPENVINO).load(entry, RuntimeSettings(threads=1), report.signature).infer(feed)["scores"]
    tolerance = 1e-3 if preset is QuantizePreset.DEFAULT else 0.1 * float(np.abs(expected).max())
    np.testing.assert_allclose(switches.infer(frozenset())(feed)["scores"], expected, rtol=1e-3, atol=tolerance)
    kept = nncf_quantize._quantized(work, original.clone(), work.step.preset, switches.layers[:-1])
    quantized = {fake.get_friendly_name() for fake in kept.get_ops() if fake.get_type_name() == "FakeQuantize"}
    everything = nncf_quantize._quantized(work, original.clone(), work.step.preset, ())
    assert len(quantized) < len([fake for fake in everything.get_ops() if fake.get_type_name() == "FakeQuantize"])


def test_an_answer_that_is_none_is_a_loss_of_everything_and_the_farthest_from_the_original(loss: Loss) -> None:
    for broken in (np.full((1, 4), np.nan, np.float32), np.zeros((1, 3), np.float32)):

        def run(feed: items.Answer, answer: base.Array = broken) -> items.Answer:
            return {"y": np.repeat(answer, len(feed["x"]), axis=0)}

        assert loss.of(run) == 1.0
        assert loss.noise(run, 3) == pytest.approx(1e12)
    assert loss.noise(lambda feed: {"y": feed["x"]}, 3) == 0


def test_a_refusal_of_another_class_of_cpu_is_no_answer_here(
    bench: Workbench, report: PrepareReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = stage.cpu.detect()
    elsewhere = here.model_copy(update={"vnni": not here.vnni})
    refused = built(bench, report, mixed(0.0))
    assert refused.built is None
    assert built(bench, report, mixed(0.0)).seconds == refused.seconds, "answered from the store"
    monkeypatch.setattr(stage.cpu, "detect", lambda: elsewhere)
    assert built(bench, report, mixed(0.0)).cache_key != refused.cache_key
