"""Each of other people's models ends prepared, or refused with a reason that is true."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.data import loop_models, models, sound_models
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.source import InputSpec
from fettle.api.vocabulary import Basis, RuntimeName
from fettle.optimizer.measure import items
from fettle.runtimes import base

ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO
BOTH = (ORT, OPENVINO)


@dataclass(frozen=True)
class Expected:
    """What preparing must say. `axis`: the batch axis of the first input; None = not batchable."""

    axis: int | None = 0
    runtimes: tuple[RuntimeName, ...] = BOTH
    basis: Basis = Basis.SOURCE_RUNTIME
    quantized: bool = False
    recurrent: bool = False
    transformer: bool = False
    opset: int = 17
    inputs: tuple[InputSpec, ...] = ()


PREPARED = {
    "dynamic_batch": Expected(),
    "fixed_batch": Expected(axis=None),
    "old_opset": Expected(opset=21),
    "newest_opset": Expected(opset=21, basis=Basis.PORTABLE_FORM),
    "two_inputs_two_outputs": Expected(),
    "tokens": Expected(),
    "texts": Expected(runtimes=(ORT,)),
    "conditional": Expected(axis=None),
    "whole_batch_output": Expected(axis=None),
    "squeezed_output": Expected(axis=None),
    "recurrent": Expected(axis=1, recurrent=True),
    "ruined_by_int8": Expected(),
    "frozen_flag": Expected(basis=Basis.PORTABLE_FORM, inputs=(InputSpec(name="gain", value=2.0),)),
    "written_out": Expected(opset=21, transformer=True),
    "with_zip_map": Expected(runtimes=(ORT,), basis=Basis.PORTABLE_FORM),
}
REFUSED = {
    "custom_operator": (Reason.UNSUPPORTED_OPERATOR, "SecretSauce (domain com.example)"),
    "sequence_output": (Reason.UNSUPPORTED_MODEL, "'parts' is of type sequence"),
    "float8_input": (Reason.UNSUPPORTED_MODEL, "'x' is a tensor of FLOAT8E4M3FN"),
    "carried_state": (Reason.UNSUPPORTED_MODEL, "'stateN' looks like the next value of the input 'state'"),
    "random_output": (Reason.UNSUPPORTED_MODEL, "gives different outputs for the same input"),
}


def test_no_model_is_left_out() -> None:
    assert set(PREPARED) | set(REFUSED) == set(models.BY_NAME)


def evaluation_of(bench: Workbench, **arrays: np.ndarray[Any, Any]) -> EvaluationSpec:
    return EvaluationSpec(uri=bench.data("items", **arrays))


def check(report: PrepareReport, expected: Expected) -> None:
    assert report.signature.inputs[0].batch_axis == expected.axis
    assert report.signature.batchable == (expected.axis is not None)
    assert report.portable_runtimes == expected.runtimes
    assert report.basis == expected.basis
    traits = report.traits
    found = (traits.quantized, traits.recurrent, traits.transformer, traits.opset)
    assert found == (expected.quantized, expected.recurrent, expected.transformer, expected.opset)
    assert report.generated
    assert report.items.items == 64


@pytest.mark.parametrize("name", PREPARED)
def test_a_model_is_prepared_and_answers_as_before(bench: Workbench, name: str) -> None:
    expected = PREPARED[name]
    bench.put(models.BY_NAME[name]())
    report = bench.prepare(bench.task(inputs=expected.inputs))
    check(report, expected)
    answers_alike(bench, report, expected)


@pytest.mark.parametrize(
    ("name", "size"), [("whole_batch_output", -1), ("squeezed_output", 1), ("conditional", -1), ("dynamic_batch", -1)]
)
def test_an_input_has_a_batch_of_1_where_the_model_does_not_answer_several_items(
    bench: Workbench, name: str, size: int
) -> None:
    bench.put(models.BY_NAME[name]())
    report = bench.prepare(bench.task())
    assert report.signature.inputs[0].shape[0] == size
    portable = onnx.load(str(bench.store.fetch_model(report.portable, bench.folder / "portable")))
    assert (portable.graph.input[0].type.tensor_type.shape.dim[0].dim_value or -1) == size


def answers_alike(bench: Workbench, report: PrepareReport, expected: Expected) -> None:
    """Original and portable form, run by hand on the items that were stored."""
    stored = items.of(arrays_in(bench.store, report.items.sha256), report.signature)
    paths = [
        bench.store.fetch_model(model, bench.folder / name)
        for name, model in (("a", report.original), ("b", report.portable))
    ]
    for runtime in expected.runtimes:
        settings = RuntimeSettings(threads=1)
        original, portable = (
            base.get(each).load(path, settings, report.signature)
            for each, path in zip((ORT, runtime), paths, strict=True)
        )
        for index in range(3):
            wanted, found = original.infer(stored.feed([index])), portable.infer(stored.feed([index]))
            for tensor in report.signature.outputs:
                assert tensor.name in found
                if tensor.dtype.startswith("FP"):
                    np.testing.assert_allclose(found[tensor.name], wanted[tensor.name], rtol=1e-3, atol=1e-5)
                else:
                    assert (found[tensor.name] == wanted[tensor.name]).all()


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_prepared_says_why(bench: Workbench, name: str) -> None:
    bench.put(models.BY_NAME[name]())
    reason, words = REFUSED[name]
    error = bench.refused()
    assert error.reason == reason
    assert words in error.message
    assert not error.retryable


def test_a_quantized_model_keeps_its_pairs(bench: Workbench, tmp_path: Path) -> None:
    made = models.quantized(tmp_path)
    bench.put(made)
    report = bench.prepare()
    check(report, Expected(quantized=True))
    kinds = [node.op_type for node in bench.portable(report).graph.node]
    assert kinds.count("DequantizeLinear") == [node.op_type for node in made.graph.node].count("DequantizeLinear")


def test_weights_in_a_file_of_their_own_belong_to_the_model(bench: Workbench) -> None:
    bench.put(models.dynamic_batch(), external=True)
    report = bench.prepare(bench.task(uri="pvc://claim/model"))
    check(report, Expected())
    assert [file.path for file in report.original.files] == ["model.onnx", "weights.bin"]
    answers_alike(bench, report, Expected())


def test_a_shape_that_depends_on_a_tensor_outside_the_file_does_not_stop_a_model(bench: Workbench) -> None:
    bench.put(models.two_inputs_two_outputs(), external=True)
    report = bench.prepare()
    assert report.basis == Basis.PORTABLE_FORM
    assert [file.path for file in report.portable.files] == ["model.onnx"]
    assert any("external tensors were embedded" in note for note in report.notes)


def test_weights_too_large_for_one_file_stay_outside(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fettle.optimizer.onnx.model.INLINE_LIMIT", 100)
    bench.put(models.old_opset(), external=True)
    report = bench.prepare()
    assert [file.path for file in report.portable.files] == ["model.onnx", "weights.bin"]
    assert report.traits.opset == 21
    answers_alike(bench, report, Expected())


@pytest.mark.skipif("FETTLE_LARGE_TESTS" not in os.environ, reason="takes minutes, 10 GB of memory and 15 GB of disk")
@pytest.mark.timeout(900)
def test_a_model_above_two_gigabytes_is_prepared(bench: Workbench) -> None:
    (bench.folder / "model").mkdir()
    models.above_two_gigabytes(bench.folder / "model")
    report = bench.prepare()
    check(report, Expected(opset=21))
    assert [file.path for file in report.portable.files] == ["model.onnx", "weights.bin"]


def test_folding_leaves_only_standard_operators(bench: Workbench) -> None:
    bench.put(models.written_out())
    kinds = [(node.domain, node.op_type) for node in bench.portable(bench.prepare()).graph.node]
    assert [kind for _, kind in kinds] == ["MatMul", "Gelu", "LayerNormalization"]
    assert {domain for domain, _ in kinds} <= {"", "ai.onnx"}


@pytest.mark.parametrize("scale_first", [False, True])
def test_a_hard_swish_that_was_written_out_is_one_node(bench: Workbench, scale_first: bool) -> None:
    bench.put(models.hard_swish(scale_first))
    report = bench.prepare()
    assert [node.op_type for node in bench.portable(report).graph.node] == ["MatMul", "HardSwish", "Add"]
    answers_alike(bench, report, Expected())


def test_a_hard_swish_that_folding_takes_apart_is_one_node_again(bench: Workbench) -> None:
    made = models.hard_swish()
    product, total = (node for node in made.graph.node if node.output[0] in ("h", "y"))
    swish = onnx.helper.make_node("HardSwish", ["h"], ["swished"])
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (product, swish, total)]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    bench.put(made)
    report = bench.prepare()
    assert [node.op_type for node in bench.portable(report).graph.node] == ["MatMul", "HardSwish", "Add"]
    answers_alike(bench, report, Expected())


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("one_sided", [False, True])
def test_a_short_time_fourier_transform_is_a_convolution(bench: Workbench, channels: bool, one_sided: bool) -> None:
    bench.put(sound_models.spectrum(channels, one_sided))
    report = bench.prepare()
    kinds = {node.op_type for node in bench.portable(report).graph.node}
    assert "Conv" in kinds and "STFT" not in kinds
    answers_alike(bench, report, Expected())


def test_a_transform_of_frames_that_vary_stays(bench: Workbench) -> None:
    made = sound_models.spectrum()
    made.graph.initializer.pop()
    made.graph.node.insert(0, onnx.helper.make_node("Cos", ["angles"], ["window"]))
    made.graph.input.append(models.tensor("angles", [48]))
    bench.put(made)
    assert "STFT" in {node.op_type for node in bench.portable(bench.prepare()).graph.node}


def test_a_loop_does_not_carry_weights_and_multiplies_a_sequence_before_it(bench: Workbench) -> None:
    bench.put(loop_models.carried_weights())
    report = bench.prepare()
    graph = bench.portable(report).graph
    loop = next(node for node in graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    assert (len(loop.input), len(body.input), len(body.output), len(loop.output)) == (4, 4, 3, 2)
    assert [node.op_type for node in body.node].count("MatMul") == 1, "the product with the state"
    assert [node.op_type for node in graph.node].count("MatMul") == 3, "that of the sequence among them"
    answers_alike(bench, report, Expected(runtimes=(ORT,)))


def test_what_only_looks_like_a_hard_swish_stays(bench: Workbench) -> None:
    made = models.hard_swish()
    made.graph.output.append(models.tensor("clipped", ["N", 8]))
    bench.put(made)
    assert "HardSwish" not in {node.op_type for node in bench.portable(bench.prepare()).graph.node}


def test_batch_normalization_is_folded_and_constant_branches_are_gone(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    assert "BatchNormalization" not in {node.op_type for node in bench.portable(bench.prepare()).graph.node}
    bench.put(models.conditional())
    kinds = [node.op_type for node in bench.portable(bench.prepare(), "second").graph.node]
    assert kinds.count("If") == 1


def test_generated_tokens_stay_inside_the_table(bench: Workbench) -> None:
    bench.put(models.tokens())
    arrays = arrays_in(bench.store, bench.prepare().items.sha256)
    assert arrays["input_ids"].min() >= 0 and arrays["input_ids"].max() < 37
    assert (arrays["attention_mask"] == 1).all()


def test_generated_words_are_those_the_model_knows(bench: Workbench) -> None:
    bench.put(models.texts())
    words = set(arrays_in(bench.store, bench.prepare().items.sha256)["word"].reshape(-1))
    assert words == {"yes", "no", "perhaps"}


def test_preparing_twice_in_two_places_writes_the_same(tmp_path: Path) -> None:
    reports = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        bench = Workbench(tmp_path / name)
        bench.put(models.dynamic_batch())
        reports.append(bench.prepare())
    assert reports[0].portable == reports[1].portable
    assert reports[0].items == reports[1].items


def test_a_filter_is_not_taken_for_a_state(bench: Workbench) -> None:
    nodes = [onnx.helper.make_node("Tanh", ["audio"], ["audio_out"])]
    bench.put(models.model(nodes, [models.tensor("audio", ["N", 4])], [models.tensor("audio_out", ["N", 4])]))
    assert bench.prepare().signature.batchable


def test_what_is_only_handed_on_is_not_taken_for_a_state(bench: Workbench) -> None:
    nodes = [
        onnx.helper.make_node("Identity", ["mask"], ["handed_on"]),
        onnx.helper.make_node("Identity", ["handed_on"], ["mask_out"]),
        onnx.helper.make_node("Mul", ["x", "mask"], ["y"]),
    ]
    x, mask, y, mask_out = (models.tensor(name, ["N", 4]) for name in ("x", "mask", "y", "mask_out"))
    bench.put(models.model(nodes, [x, mask], [y, mask_out]))
    assert bench.prepare().signature.batchable


def test_a_dimension_called_n_is_not_the_batch_where_another_is_called_batch(bench: Workbench) -> None:
    nodes = [onnx.helper.make_node("ReduceMax", ["samples", "last"], ["loudest"], keepdims=0)]
    shapes = models.tensor("samples", ["batch_size", "N"]), models.tensor("loudest", ["batch_size"])
    last = models.stored("last", np.array([1]), "int64")
    bench.put(models.model(nodes, [shapes[0]], [shapes[1]], [last], opset=18, ir=8))
    report = bench.prepare(bench.task(evaluation=evaluation_of(bench, samples=np.random.rand(20, 50))))
    assert report.signature.inputs[0].batch_axis == 0
    assert arrays_in(bench.store, report.items.sha256)["samples"].shape == (16, 50)


def test_neighbours_that_seldom_matter_are_found_out(bench: Workbench) -> None:
    bench.put(models.conditional())
    quiet = np.zeros((40, 4), np.float32) + np.arange(40, dtype=np.float32)[:, np.newaxis] / 100
    quiet[10:, 0] = 9  # only items behind the first few turn the branch
    report = bench.prepare(bench.task(evaluation=evaluation_of(bench, x=quiet)))
    assert not report.signature.batchable
    assert (
        "one item at a time, because no batch axis could be verified: the output 'y' for several items differs"
        in "".join(report.notes)
    )


def test_two_different_items_are_enough_to_prove_a_batch_axis_one_is_not(bench: Workbench) -> None:
    bench.put(models.texts())
    for words, batchable in ((["yes", "no"], True), (["yes", "yes"], False)):
        report = bench.prepare(bench.task(evaluation=evaluation_of(bench, word=np.array(words)[:, np.newaxis])))
        assert report.signature.batchable == batchable


def test_a_frozen_input_is_no_input_any_more(bench: Workbench) -> None:
    bench.put(models.frozen_flag())
    report = bench.prepare(bench.task(inputs=[InputSpec(name="gain", value=2.0)]))
    assert [tensor.name for tensor in report.signature.inputs] == ["x"]


def test_functions_of_the_model_itself_are_put_in_place(bench: Workbench) -> None:
    made = models.dynamic_batch()
    body = [onnx.helper.make_node("Mul", ["a", "a"], ["b"])]
    made.functions.append(
        onnx.helper.make_function("mine", "Square", ["a"], ["b"], body, [onnx.helper.make_opsetid("", 17)])
    )
    made.graph.node[-1].output[0] = "before"
    made.graph.node.append(onnx.helper.make_node("Square", ["before"], ["scores"], domain="mine"))
    made.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    bench.put(made)
    report = bench.prepare()
    check(report, Expected())
    assert not bench.portable(report).functions
