"""Building: what each recipe makes of a real model, what it refuses, and that it makes the same each time."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.data import loop_models, models
from tests.data.stored import arrays as arrays_in
from tests.pod_environment import POD_ENVIRONMENT
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.images import Image, ImageEntry
from fettle.api.reasons import Reason
from fettle.api.recipe import DequantizeStep, OptimizeGraphStep, QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.report import BuildReport, PrepareReport, Termination, unframe
from fettle.api.task import BuildPlan, BuildTask, encode_task, task_hash
from fettle.api.vocabulary import QuantizeMode, QuantizePreset, RuntimeName
from fettle.optimizer import stage
from fettle.optimizer.measure import items
from fettle.optimizer.onnx import model
from fettle.optimizer.steps.onnx_scope import keep_apart
from fettle.runtimes import base
from fettle.store.cache import read_build

ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO
STATIC, DYNAMIC = QuantizeMode.STATIC, QuantizeMode.DYNAMIC


def plan(
    family: RuntimeName,
    mode: QuantizeMode = STATIC,
    operators: tuple[str, ...] = (),
    preset: QuantizePreset = QuantizePreset.DEFAULT,
) -> BuildPlan:
    step = RecipeStep(quantize=QuantizeStep(mode=mode, operators=operators, preset=preset))
    return BuildPlan(name="int8", family=family, steps=(step,))


def prepared(bench: Workbench, made: onnx.ModelProto, **arrays: base.Array) -> PrepareReport:
    bench.put(made)
    return bench.prepare(bench.task(evaluation=EvaluationSpec(uri=bench.data("items", **arrays))))


def images(bench: Workbench, made: onnx.ModelProto | None = None) -> PrepareReport:
    return prepared(bench, made or models.dynamic_batch(), image=models.images(40))


def task(report: PrepareReport, wanted: BuildPlan) -> BuildTask:
    return BuildTask(
        store="pvc://claim/store",
        plan=wanted,
        cache_key="0" * 64,
        portable=report.portable,
        signature=report.signature,
        calibration=report.calibration,
    )


def built(bench: Workbench, report: PrepareReport, wanted: BuildPlan) -> BuildReport:
    answer = stage.run(task(report, wanted), bench.mounts)
    assert isinstance(answer, BuildReport)
    return answer


def kinds(bench: Workbench, report: BuildReport) -> Counter[str]:
    assert report.built is not None, report.message
    path = bench.store.fetch_model(report.built, bench.folder / report.built.digest)
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def quantized_products(bench: Workbench, report: BuildReport) -> dict[str, bool]:
    """Of each MatMul by name: whether it takes what a DequantizeLinear made."""
    assert report.built is not None, report.message
    graph = onnx.load(str(bench.store.fetch_model(report.built, bench.folder / report.built.digest))).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    return {n.name: made.get(n.input[0]) == "DequantizeLinear" for n in graph.node if n.op_type == "MatMul"}


def test_a_static_file_runs_its_convolutions_in_int8(bench: Workbench) -> None:
    report = images(bench)
    answer = built(bench, report, plan(ORT))
    assert answer.built is not None and answer.built.format == "ONNX"
    path = bench.store.fetch_model(answer.built, bench.folder / "int8")
    feed = items.of(arrays_in(bench.store, report.items.sha256), report.signature).feed([0])
    for name in (ORT, OPENVINO):
        executed = base.get(name).executed(path, RuntimeSettings(threads=1), feed, report.signature)
        assert executed.int8 >= 2, name
    assert set(answer.libraries) == {"onnx", "onnxruntime"}


def test_what_a_branch_reads_stays_clamped(bench: Workbench) -> None:
    x = np.random.default_rng(43).standard_normal((40, 8)).astype(np.float32)
    report = prepared(bench, models.clamped_for_a_branch(), x=x)
    answer = built(bench, report, plan(ORT))
    assert answer.built is not None, answer.message
    feed = items.of(arrays_in(bench.store, report.items.sha256), report.signature).feed([0])
    path = bench.store.fetch_model(answer.built, bench.folder / "int8")
    original = bench.store.fetch_model(report.portable, bench.folder / "float32")
    int8, float32 = (
        base.get(ORT).load(entry, RuntimeSettings(threads=1), report.signature) for entry in (path, original)
    )
    assert np.abs(int8.infer(feed)["y"] - float32.infer(feed)["y"]).max() < 0.1 * np.abs(float32.infer(feed)["y"]).max()


def test_nncf_writes_openvinos_own_format(bench: Workbench) -> None:
    report = images(bench)
    answer = built(bench, report, plan(OPENVINO))
    assert answer.built is not None
    assert (answer.built.format, answer.built.entry) == ("OpenVINO", "model.xml")
    assert [file.path for file in answer.built.files] == ["model.bin", "model.xml"]
    path = bench.store.fetch_model(answer.built, bench.folder / "int8")
    feed = items.of(arrays_in(bench.store, report.items.sha256), report.signature).feed([0, 1, 2])
    session = base.get(OPENVINO).load(path, RuntimeSettings(threads=1), report.signature)
    assert session.infer(feed)["scores"].shape == (3, 4)
    assert base.get(OPENVINO).executed(path, RuntimeSettings(threads=1), feed).int8 >= 2


def test_only_the_named_operators_are_quantized(bench: Workbench) -> None:
    answer = built(bench, images(bench), plan(ORT, operators=("Gemm",)))
    found = kinds(bench, answer)
    assert found["Conv"] == 2
    assert found["QuantizeLinear"] <= 3


def test_dynamic_quantization_leaves_convolutions_alone(bench: Workbench) -> None:
    found = kinds(bench, built(bench, images(bench), plan(ORT, DYNAMIC, ("Conv", "MatMul", "Gemm"))))
    assert (found["Conv"], found["ConvInteger"], found["MatMulInteger"]) == (2, 0, 1)


def test_of_lstm_layers_that_are_named_only_those_behind_others_are_quantized(bench: Workbench) -> None:
    frames = np.random.default_rng(0).standard_normal((40, 5, 6)).astype(np.float32)
    report = prepared(bench, loop_models.stacked(), frames=frames)
    assert report.traits.lstm_time_share > 0
    answer = built(bench, report, plan(ORT, DYNAMIC, ("LSTM",)))
    found = kinds(bench, answer)
    assert (found["LSTM"], found["DynamicQuantizeLSTM"], found["MatMul"]) == (1, 1, 1)
    assert answer.built is not None
    graph = onnx.load(str(bench.folder / answer.built.digest / "model.onnx")).graph
    assert [node.name for node in graph.node if node.op_type == "LSTM"] == ["first"]


def test_an_lstm_layer_that_takes_what_the_model_is_given_is_not_quantized(bench: Workbench) -> None:
    frames = np.random.default_rng(0).standard_normal((40, 5, 6)).astype(np.float32)
    report = prepared(bench, models.recurrent(), frames=frames)
    assert report.traits.lstm_time_share == 0
    answer = built(bench, report, plan(ORT, DYNAMIC, ("LSTM",)))
    assert (answer.built, answer.reason) == (None, Reason.RECIPE_NOT_APPLICABLE)


def test_nothing_that_feeds_a_recurrent_node_is_quantized(bench: Workbench) -> None:
    frames = np.random.default_rng(0).standard_normal((40, 5, 6)).astype(np.float32)
    report = prepared(bench, models.recurrent(), frames=frames)
    assert quantized_products(bench, built(bench, report, plan(ORT))) == {"before": False, "after": True}
    found = kinds(bench, built(bench, report, plan(ORT, DYNAMIC)))
    assert (found["MatMul"], found["MatMulInteger"], found["LSTM"]) == (1, 1, 1)
    answer = built(bench, report, plan(OPENVINO))
    assert answer.built is not None
    path = bench.store.fetch_model(answer.built, bench.folder / "int8")
    feed = items.of(arrays_in(bench.store, report.items.sha256), report.signature).feed([0])
    executed = base.get(OPENVINO).executed(path, RuntimeSettings(threads=1), feed)
    assert (executed.int8, executed.total) == (1, 3)


@pytest.mark.parametrize(
    ("made", "wanted", "words"),
    [
        ("dynamic_batch", plan(ORT, operators=("LSTM",)), "the model has no LSTM to quantize"),
        ("dynamic_batch", plan(ORT, DYNAMIC, ("Conv",)), "would be slower"),
        ("dynamic_batch", plan(OPENVINO, operators=("LSTM",)), "the model has no LSTM to quantize"),
        ("dynamic_batch", plan(OPENVINO, DYNAMIC), "does not offer this step"),
        ("quantized", plan(ORT), "already quantized"),
        ("quantized", plan(OPENVINO), "already quantized"),
    ],
)
def test_a_recipe_that_does_not_fit_is_an_answer_not_an_error(
    bench: Workbench, tmp_path: Path, made: str, wanted: BuildPlan, words: str
) -> None:
    report = images(bench, models.quantized(tmp_path) if made == "quantized" else None)
    answer = built(bench, report, wanted)
    assert answer.built is None
    assert (answer.reason, words in answer.message) == (Reason.RECIPE_NOT_APPLICABLE, True), answer.message


DEQUANTIZE = RecipeStep(dequantize=DequantizeStep())


@pytest.mark.parametrize("family", [ORT, OPENVINO])
def test_a_source_that_came_quantized_is_put_into_float32_and_quantized_as_its_runtime_likes_it(
    bench: Workbench, tmp_path: Path, family: RuntimeName
) -> None:
    report = images(bench, models.quantized(tmp_path))
    plain = built(bench, report, BuildPlan(name="dequantized", family=family, steps=(DEQUANTIZE,)))
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds(bench, plain))
    again = built(bench, report, BuildPlan(name="requantized", family=family, steps=(DEQUANTIZE, *plan(family).steps)))
    assert again.built is not None, again.message
    path = bench.store.fetch_model(again.built, bench.folder / "requantized")
    feed = items.of(arrays_in(bench.store, report.items.sha256), report.signature).feed([0])
    assert base.get(family).executed(path, RuntimeSettings(threads=1), feed).int8


def test_a_model_that_is_not_quantized_is_not_dequantized(bench: Workbench) -> None:
    answer = built(bench, images(bench), BuildPlan(name="dequantized", family=ORT, steps=(DEQUANTIZE,)))
    assert (answer.reason, answer.message) == (Reason.RECIPE_NOT_APPLICABLE, "the model is not quantized")


def test_a_quantized_form_that_is_not_known_is_named(bench: Workbench) -> None:
    report = images(bench, models.with_cast_integers())
    answer = built(bench, report, BuildPlan(name="dequantized", family=ORT, steps=(DEQUANTIZE,)))
    assert answer.reason == Reason.RECIPE_NOT_APPLICABLE
    assert answer.message == "the model has QuantizeLinear, which this step cannot put into float32"


def test_names_that_the_tool_would_confuse_are_kept_apart(bench: Workbench) -> None:
    # The tool calls the second copy of a shared bias `bias2`; here a convolution's result has that name already.
    made = models.dynamic_batch()
    for node in made.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = {"b3": "logits_", "logits": "logits_2"}.get(name, name)
    next(weight for weight in made.graph.initializer if weight.name == "b3").name = "logits_"
    scope = model.read(bench.put(made)).graph
    keep_apart(scope)
    names = {weight.name for weight in scope.initializer}
    assert "logits_" not in names and "logits__weight" in names
    assert any("logits__weight" in node.input for node in scope.node)
    assert built(bench, images(bench, made), plan(ORT)).built is not None


def test_a_bias_with_two_axes_is_no_obstacle(bench: Workbench) -> None:
    made = models.dynamic_batch()
    bias = next(weight for weight in made.graph.initializer if weight.name == "b3")
    bias.dims.insert(0, 1)
    report = images(bench, made)
    assert [1, 4] in [list(weight.dims) for weight in bench.portable(report).graph.initializer]
    assert built(bench, report, plan(ORT)).built is not None


def test_a_toolchain_that_fails_on_a_model_is_one_rejected_row(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ValueError("the truth value of an array\nis ambiguous")

    monkeypatch.setattr("fettle.optimizer.steps.onnxruntime_quantize.quantize_static", broken)
    answer = built(bench, images(bench), plan(ORT))
    words = "the quantizer of onnxruntime fails on this model: ValueError: the truth value of an array is ambiguous"
    assert (answer.built, answer.reason, answer.message) == (None, Reason.RECIPE_NOT_APPLICABLE, words)


def test_the_portable_form_is_optimized_already(bench: Workbench) -> None:
    report = images(bench)
    wanted = BuildPlan(name="graph", family=ORT, steps=(RecipeStep(optimize_graph=OptimizeGraphStep()),))
    assert built(bench, report, wanted).built == report.portable


def test_a_build_is_remembered_under_its_key(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    data = EvaluationSpec(uri=bench.data("items", image=models.images(40)))
    wanted = plan(ORT)
    report = bench.prepare(bench.task(evaluation=data, builds=[wanted]))
    answer = built(bench, report, wanted)
    assert read_build(bench.store, report.builds[0].cache_key) == answer.built


def run(bench: Workbench, asked: BuildTask) -> BuildReport:
    """As a Job runs it: a process, its last line, its termination message."""
    log = bench.folder / "termination"
    environment = {
        **POD_ENVIRONMENT,
        "FETTLE_TASK": encode_task(asked, limit=16),
        "FETTLE_TERMINATION_LOG": str(log),
        **bench.mounts.to_environment(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "fettle.optimizer"], env=environment, capture_output=True, text=True, check=False
    )
    termination = Termination.model_validate_json(log.read_text())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "stdout is for the result alone"
    assert termination.result_sha256 is not None
    report = unframe(done.stdout, termination.result_sha256)
    assert isinstance(report, BuildReport)
    return report


@pytest.mark.parametrize("family", [ORT, OPENVINO])
def test_fresh_processes_write_the_same_bytes(bench: Workbench, family: RuntimeName) -> None:
    report = images(bench)
    asked = task(report, plan(family))
    first = run(bench, asked)
    root = bench.store.root.local
    assert root is not None
    (root / f"results/{task_hash(asked)}.json").unlink()
    second = run(bench, asked)
    assert second.seconds != first.seconds  # it did build again
    assert second.built == first.built is not None


def test_a_chain_of_builds_is_found_in_the_store_segment_by_segment(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = ImageEntry(Image.OPTIMIZER, frozenset({"onnx", "onnxruntime", "openvino"}))
    quantizes = ImageEntry(Image.OPTIMIZER_TORCH, frozenset({"nncf", "openvino"}))
    monkeypatch.setattr("fettle.api.images.IMAGES", (graphs, quantizes))
    quantize = RecipeStep(quantize=QuantizeStep(mode=STATIC))
    lean = BuildPlan(name="lean", family=OPENVINO, steps=(RecipeStep(optimize_graph=OptimizeGraphStep()), quantize))
    bench.put(models.dynamic_batch())
    asked = bench.task(evaluation=EvaluationSpec(uri=bench.data("items", image=models.images(40))), builds=[lean])

    def in_store() -> list[bool]:
        return [entry.built is not None for entry in bench.prepare(asked).builds]

    report = bench.prepare(asked)
    assert [entry.name for entry in report.builds] == ["lean-1-of-2", "lean-2-of-2"]
    assert in_store() == [False, False]
    first = built(bench, report, lean.segments[0])
    assert (first.cache_key, first.built) == (report.builds[0].cache_key, report.portable)
    assert in_store() == [True, False]
    given = {"portable": first.built, "follows": first.cache_key}
    second = stage.run(task(report, lean.segments[1]).model_copy(update=given), bench.mounts)
    assert isinstance(second, BuildReport)
    assert second.cache_key == report.builds[1].cache_key
    assert second.built is not None and second.built.format == "OpenVINO"
    assert in_store() == [True, True]
