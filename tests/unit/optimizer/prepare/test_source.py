"""The source as it is handed in: found, recognized, pinned, or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import rfc8785
from tests.data import models
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason
from fettle.api.source import InputSpec, SourceSpec
from fettle.errors import SourceError
from fettle.optimizer.sources import newer
from fettle.store.beside import not_there
from fettle.store.uris import Mounts, locate


def test_a_file_is_known_by_its_own_digest(bench: Workbench) -> None:
    path = bench.put(models.dynamic_batch())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert bench.prepare(bench.task(sha256=sha256)).source.sha256 == sha256


def test_a_set_is_known_by_the_digest_of_its_list(bench: Workbench) -> None:
    path = bench.put(models.dynamic_batch(), external=True)
    (path.parent / "README.md").write_text("not part of the model")
    names = ("model.onnx", "weights.bin")
    listed = [[name, hashlib.sha256((path.parent / name).read_bytes()).hexdigest()] for name in names]
    assert bench.prepare().source.sha256 == hashlib.sha256(rfc8785.dumps(listed)).hexdigest()


def test_another_file_than_the_pinned_one_is_refused(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    error = bench.refused(sha256="0" * 64)
    assert error.reason == Reason.DIGEST_MISMATCH
    assert "found" in error.message


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("pvc://claim/nowhere.onnx", "does not exist"),
        ("pvc://other/model.onnx", "the claim 'other' is not mounted"),
        ("ftp://host/model.onnx", "expected pvc://"),
        ("pvc://claim/empty", "contains no model (.onnx, .pt, "),
        ("pvc://claim/several", "contains several models (a.onnx, b.onnx)"),
    ],
)
def test_a_source_that_is_not_there_is_not_found(bench: Workbench, uri: str, words: str) -> None:
    (bench.folder / "empty").mkdir()
    for name in ("a", "b"):
        models.save(models.dynamic_batch(), bench.folder / f"several/{name}.onnx")
    error = bench.refused(uri=uri)
    assert (error.reason, words in error.message) == (Reason.SOURCE_NOT_FOUND, True), error.message


@pytest.mark.parametrize(
    ("file", "uri", "named"),
    [
        ("model.mlmodel", "pvc://claim/mine/model.mlmodel", "model.mlmodel"),
        ("model.mlmodel", "pvc://claim/mine", "model.mlmodel"),
        ("model.mlpackage/Manifest.json", "pvc://claim/mine/model.mlpackage", "model.mlpackage"),
        ("Model.mlpackage/Manifest.json", "pvc://claim/mine/", "Model.mlpackage"),
    ],
)
def test_a_model_in_core_ml_is_refused_by_what_it_is(bench: Workbench, file: str, uri: str, named: str) -> None:
    path = bench.folder / "mine" / file
    path.parent.mkdir(parents=True)
    # Specification 7, with an input.
    path.write_bytes(b"\x08\x07\x12\x11\n\x0f\n\x05image\x1a\x06*\x04\x10\xa0\x80\x04")
    error = bench.refused(uri=uri)
    assert error.reason == Reason.UNSUPPORTED_FORMAT
    assert (
        f"{named} is a Core ML model, which only Apple's systems can run: provide the model that it was"
        in error.message
    )


def test_of_an_address_where_nothing_is_the_names_beside_it_are_told_the_most_alike_first(bench: Workbench) -> None:
    (bench.folder / "mine").mkdir()
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", "items.npz", "model.onnx", ".hidden"):
        (bench.folder / "mine" / name).write_bytes(b"1")
    told = bench.refused(uri="pvc://claim/mine/modle.onnx").message
    expected = "pvc://claim/mine/modle.onnx does not exist; its folder has model.onnx, a.txt, b.txt, c.txt, d.txt; "
    assert told.startswith(expected), told
    assert "copy the file there with `fettle push` and run `kubectl fettle retry om/NAME`" in told
    expected = "pvc://claim/mien/sub/model.onnx does not exist; pvc://claim has mine; "
    assert bench.refused(uri="pvc://claim/mien/sub/model.onnx").message.startswith(expected)


def test_without_a_cluster_no_command_for_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"1")
    mounts = Mounts({"claim": tmp_path}, allow_files=True)
    told = not_there(locate("pvc://claim/modle.onnx", mounts), mounts)
    assert told == "pvc://claim/modle.onnx does not exist; its folder has model.onnx"


def test_what_was_prepared_before_is_told_again(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    assert bench.prepare() == bench.prepare()


def test_a_configuration_beside_the_only_model_is_no_second_model(bench: Workbench) -> None:
    (bench.folder / "trees").mkdir()
    for name in ("config.json", "trees.json"):
        (bench.folder / "trees" / name).write_text("{}")
    assert bench.refused(uri="pvc://claim/trees").message.startswith("trees.json is JSON")


@pytest.mark.parametrize(
    ("name", "content", "reason", "words"),
    [
        ("model.pt", b"PK\x03\x04 something", Reason.SOURCE_CORRUPTED, "is a damaged zip archive"),
        ("model.pkl", b"\x80\x02c__main__\nThing\n.", Reason.UNSAFE_PICKLE, "needs __main__.Thing"),
        ("model.onnx", b"version https://git-lfs.github.com/spec/v1\n", Reason.UNSUPPORTED_FORMAT, "git lfs pull"),
        ("model.tflite", b"\x1c\0\0\0TFL3", Reason.UNSUPPORTED_FORMAT, "TensorFlow Lite"),
        ("model.onnx", b"<!DOCTYPE html>", Reason.UNSUPPORTED_FORMAT, "an HTML page"),
        ("model.bin", b"whatever this is", Reason.UNSUPPORTED_FORMAT, "was not recognized"),
        ("model.pb", b"\nA text of two lines\nand one word\n", Reason.UNSUPPORTED_FORMAT, "was not recognized"),
        (
            "model.onnx",
            b"id,label\n1,cat\n",
            Reason.UNSUPPORTED_FORMAT,
            "it is a text file, which starts with 'id,label'",
        ),
        ("model.onnx", b"", Reason.SOURCE_CORRUPTED, "it is empty"),
        ("model.onnx", b"\x08\x08\x12\xff\xff", Reason.SOURCE_CORRUPTED, "is damaged"),
    ],
)
def test_what_is_no_model_says_what_it_is(
    bench: Workbench, name: str, content: bytes, reason: Reason, words: str
) -> None:
    (bench.folder / name).write_bytes(content)
    error = bench.refused(uri=f"pvc://claim/{name}")
    assert (error.reason, words in error.message) == (reason, True), error.message


def test_outputs_are_named_for_frozen_graphs_only(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    error = bench.refused(source=SourceSpec(uri="pvc://claim/model/model.onnx", outputs=("scores",)))
    assert error.reason == Reason.INVALID_SPEC
    assert "source.outputs is for frozen graphs of TensorFlow, and model.onnx is ONNX" in error.message


@pytest.mark.parametrize(
    ("field", "words"),
    [("opset_import", "opset_import"), ("ir_version", "ir_version"), ("graph", "it has no graph")],
)
def test_what_a_file_lacks_is_named(bench: Workbench, field: str, words: str) -> None:
    made = models.dynamic_batch()
    made.ClearField(field)
    bench.put(made)
    error = bench.refused()
    assert error.reason == Reason.SOURCE_CORRUPTED
    assert words in error.message


def test_a_file_that_was_cut_off_is_damaged(bench: Workbench) -> None:
    path = bench.put(models.dynamic_batch())
    path.write_bytes(path.read_bytes()[:2000])
    assert bench.refused().reason == Reason.SOURCE_CORRUPTED


def test_a_graph_that_does_not_hold_together_is_damaged(bench: Workbench) -> None:
    made = models.dynamic_batch()
    made.graph.node[2].input[0] = "nobody makes this"
    bench.put(made)
    assert bench.refused().reason == Reason.SOURCE_CORRUPTED


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin"])
def test_weights_outside_the_models_folder_are_never_read(bench: Workbench, location: str) -> None:
    path = bench.put(models.dynamic_batch(), external=True)
    made = onnx.load(str(path), load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(made.SerializeToString())
    (bench.folder / "secret.bin").write_bytes(b"x" * 4096)
    error = bench.refused()
    assert error.reason == Reason.UNSUPPORTED_MODEL
    assert location in error.message


def test_weights_behind_a_link_out_of_the_folder_are_never_read(bench: Workbench, tmp_path: Path) -> None:
    path = bench.put(models.dynamic_batch(), external=True)
    (path.parent / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (path.parent / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    error = bench.refused()
    assert error.reason == Reason.UNSUPPORTED_MODEL
    assert "symbolic link" in error.message


def test_missing_weights_are_named(bench: Workbench) -> None:
    path = bench.put(models.dynamic_batch(), external=True)
    (path.parent / "weights.bin").unlink()
    error = bench.refused()
    assert error.reason == Reason.SOURCE_NOT_FOUND
    assert "weights.bin" in error.message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (InputSpec(name="picture"), "the model has the inputs ['image']"),
        (InputSpec(name="image", dtype="INT8"), "in the model it is FP32"),
        (InputSpec(name="image", shape=("N", 3, 16, 16)), "in the model it is [-1, 1, 16, 16]"),
    ],
)
def test_what_the_spec_says_of_inputs_may_not_contradict_the_file(
    bench: Workbench, spec: InputSpec, words: str
) -> None:
    bench.put(models.dynamic_batch())
    error = bench.refused(inputs=[spec])
    assert (error.reason, words in error.message) == (Reason.INVALID_SPEC, True), error.message


def test_a_rank_that_the_file_does_not_tell_comes_from_the_spec(bench: Workbench) -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    bench.put(models.model(nodes, [models.tensor("x", None)], [models.tensor("y", None)]))
    assert "set source.inputs[].shape" in bench.refused().message
    report = bench.prepare(bench.task(inputs=[InputSpec(name="x", shape=("N", 3))]))
    assert report.signature.inputs[0].shape == (-1, 3)
    assert report.signature.outputs[0].shape == (-1, 3)
    assert report.signature.batchable


def test_ranges_bound_what_is_generated(bench: Workbench) -> None:
    bench.put(models.dynamic_batch())
    spec = InputSpec.model_validate({"name": "image", "range": {"min": 5, "max": 6}})
    arrays = arrays_in(bench.store, bench.prepare(bench.task(inputs=[spec])).items.sha256)
    assert np.all((arrays["image"] >= 5) & (arrays["image"] <= 6))


def test_a_version_that_is_no_version_leaves_room_for_what_to_do() -> None:
    with (
        pytest.raises(SourceError, match=r"^m\.keras .* export the model to ONNX where it was made$") as caught,
        newer.reading(Path("m.keras"), "Keras", "99.\n" + "9" * 10_000, "3.1"),
    ):
        pass
    assert len(caught.value.message) < 300
