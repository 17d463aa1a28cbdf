"""Models of Keras, TensorFlow and TFLite: prepared, and answering as their own framework does; or refused with a reason."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from tests.toolchains.tensorflow import examples
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import PrepareReport
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import Basis, FormatName, RuntimeName
from fettle.runtimes import base
from fettle.store.arrays import Array

FORMATS = {"h5": "Keras"}


def answers(bench: Workbench, report: PrepareReport, inputs: dict[str, Array]) -> dict[str, Array]:
    """What the portable form answers."""
    entry = bench.store.fetch_model(report.portable, bench.folder / "portable")
    session = base.get(RuntimeName.ONNXRUNTIME).load(entry, RuntimeSettings(threads=1), report.signature)
    return session.infer(inputs)


@pytest.mark.parametrize("saver", examples.SAVERS)
def test_one_network_answers_alike_from_every_format(bench: Workbench, saver: str) -> None:
    model, items = examples.convolutional(), examples.pictures()
    file = examples.SAVERS[saver](model, bench.folder)
    name = "serving_default_image:0" if saver == "TFLite" else "image"
    evaluation = EvaluationSpec(uri=bench.data("items", **{name: items}))
    report = bench.prepare(bench.task(source=SourceSpec(uri=f"pvc://claim/{file}"), evaluation=evaluation))
    basis = Basis.SOURCE_RUNTIME if saver == "TFLite" else Basis.PORTABLE_FORM
    assert (report.source.format, report.basis) == (FormatName(FORMATS.get(saver, saver)), basis)
    (tensor,) = report.signature.inputs
    assert (tensor.name, tensor.shape, tensor.batch_axis) == (name, (-1, 12, 12, 3), 0), "the layout is the user's"
    (found,) = answers(bench, report, {name: items}).values()
    np.testing.assert_allclose(found, model.predict(items, verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("saver", ["Keras", "h5", "SavedModel"])
def test_inputs_and_outputs_keep_their_names(bench: Workbench, saver: str) -> None:
    model = examples.two_inputs()
    source = SourceSpec(uri=f"pvc://claim/{examples.SAVERS[saver](model, bench.folder)}")
    random = np.random.default_rng(0)
    items = {
        "words": random.integers(0, 20, (8, 6)).astype(np.int32),
        "more": random.normal(size=(8, 3)).astype(np.float32),
    }
    report = bench.prepare(bench.task(source=source, evaluation=EvaluationSpec(uri=bench.data("items", **items))))
    assert sorted(tensor.name for tensor in report.signature.inputs) == ["more", "words"]
    found = answers(bench, report, items)
    wanted = model([items["words"], items["more"]])
    for name in ("kind", "value"):
        np.testing.assert_allclose(found[name], wanted[name].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "signature", "output"),
    [(("scaled",), None, "y"), (("scaled", "summed"), "summed", "sum")],
    ids=["the only one", "the named one"],
)
def test_a_signature_is_the_model(bench: Workbench, names: tuple[str, ...], signature: str | None, output: str) -> None:
    examples.save_module(bench.folder, *names)
    report = bench.prepare(bench.task(source=SourceSpec(uri="pvc://claim/saved", signature=signature)))
    assert [tensor.name for tensor in report.signature.outputs] == [output]
    assert report.source.format == FormatName.SAVED_MODEL


def test_a_table_of_words_is_converted(bench: Workbench) -> None:
    examples.save_module(bench.folder, "looked_up")
    words = np.array(["cat", "dog", "bird"] * 10)
    evaluation = EvaluationSpec(uri=bench.data("items", word=words))
    report = bench.prepare(bench.task(source=SourceSpec(uri="pvc://claim/saved"), evaluation=evaluation))
    assert answers(bench, report, {"word": words.astype(object)})["number"].tolist() == [1, 2, 0] * 10


@pytest.mark.parametrize(
    ("names", "signature", "reason", "words"),
    [
        (("scaled", "summed"), None, Reason.INVALID_SPEC, "select one with source.signature"),
        (("scaled",), "other", Reason.INVALID_SPEC, "has the signatures ['scaled']"),
        ((), None, Reason.UNSUPPORTED_MODEL, "has no signature to call"),
        (("exotic",), None, Reason.UNSUPPORTED_OPERATOR, "Igamma"),
    ],
)
def test_a_saved_model_that_cannot_be_taken_says_why(
    bench: Workbench, names: tuple[str, ...], signature: str | None, reason: Reason, words: str
) -> None:
    examples.save_module(bench.folder, *names)
    error = bench.refused(source=SourceSpec(uri="pvc://claim/saved", signature=signature))
    assert (error.reason, words in error.message) == (reason, True), error.message


def test_a_saved_model_without_its_variables_is_damaged(bench: Workbench) -> None:
    examples.save_module(bench.folder, "scaled")
    for path in (bench.folder / "saved/variables").iterdir():
        path.unlink()
    error = bench.refused(source=SourceSpec(uri="pvc://claim/saved"))
    assert error.reason == Reason.SOURCE_CORRUPTED, error.message


def with_code(folder: Path, file: str) -> None:
    """A model with a Lambda layer."""
    image = keras.Input((4,), name="x")
    keras.Model(image, keras.layers.Lambda(lambda x: x * 2, name="twice", output_shape=(4,))(image)).save(folder / file)


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_a_layer_with_code_is_refused_by_name_unless_it_is_trusted(bench: Workbench, file: str) -> None:
    with_code(bench.folder, file)
    error = bench.refused(source=SourceSpec(uri=f"pvc://claim/{file}"))
    assert error.reason == Reason.UNSAFE_CODE
    assert "the Lambda layer 'twice'" in error.message
    report = bench.prepare(bench.task(source=SourceSpec(uri=f"pvc://claim/{file}", trusted=True)))
    assert answers(bench, report, {"x": np.ones((2, 4), np.float32)}).popitem()[1].tolist() == [[2.0] * 4] * 2


def test_weights_alone_are_no_model(bench: Workbench) -> None:
    examples.convolutional().save_weights(bench.folder / "model.weights.h5")
    error = bench.refused(source=SourceSpec(uri="pvc://claim/model.weights.h5"))
    assert error.reason == Reason.UNSUPPORTED_FORMAT
    assert "contains only weights" in error.message


def test_a_layer_of_ones_own_is_named(bench: Workbench) -> None:
    path = bench.folder / examples.save_keras(examples.convolutional(), bench.folder)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"][1].update(class_name="Fancy", module="my.layers", registered_name="My>Fancy")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (parts | {"config.json": json.dumps(config).encode()}).items():
            archive.writestr(name, content)
    error = bench.refused(source=SourceSpec(uri="pvc://claim/model.keras"))
    assert error.reason == Reason.UNSUPPORTED_MODEL
    assert "Fancy" in error.message


@pytest.mark.parametrize("integers", [False, True], ids=["float boundary", "uint8 boundary"])
def test_a_quantized_file_answers_as_litert_does_to_a_step_or_two(bench: Workbench, integers: bool) -> None:
    (bench.folder / "model.tflite").write_bytes(examples.int8(integers))
    items = examples.pictures()
    if integers:
        items = np.random.default_rng(0).integers(0, 256, items.shape).astype(np.uint8)
    evaluation = EvaluationSpec(uri=bench.data("items", **{"serving_default_image:0": items}))
    report = bench.prepare(bench.task(source=SourceSpec(uri="pvc://claim/model.tflite"), evaluation=evaluation))
    assert report.signature.inputs[0].dtype == ("UINT8" if integers else "FP32")
    assert report.traits.quantized
    assert (report.basis, report.original.format) == (Basis.SOURCE_RUNTIME, "TFLite")
    assert RuntimeName.LITERT in report.portable_runtimes


def test_what_litert_runs_and_onnx_has_no_operators_for_goes_on_as_it_came(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, items = examples.save_tflite(examples.convolutional(), bench.folder), examples.pictures()
    monkeypatch.setattr("tf2onnx.convert.from_tflite", lambda *given, **named: 1 / 0)  # the library fails on the model
    evaluation = EvaluationSpec(uri=bench.data("items", **{"serving_default_image:0": items}))
    report = bench.prepare(bench.task(source=SourceSpec(uri=f"pvc://claim/{file}"), evaluation=evaluation))
    assert report.conversion_fault is not None
    assert (report.portable_runtimes, report.portable.format) == ((RuntimeName.LITERT,), "TFLite")
    assert report.signature.batchable
