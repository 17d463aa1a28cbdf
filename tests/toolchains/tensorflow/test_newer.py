"""Files that a newer Keras or TensorFlow wrote: refused, with a sentence that has both versions."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.lite.tools import flatbuffer_utils
from tests.toolchains.tensorflow import examples
from tests.toolchains.tensorflow.test_frozen_graph import network, put
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason

Whole = Callable[[Path], str]


def of_keras(major: int, minor: int, layer: str | None = None) -> Whole:
    """`layer`: a class that only the newer version has, in the place of the last one's."""

    def saved(folder: Path) -> str:
        path = folder / examples.save_keras(examples.convolutional(), folder)
        with zipfile.ZipFile(path) as opened:
            files = {name: opened.read(name) for name in opened.namelist()}
        files["metadata.json"] = json.dumps({"keras_version": f"{major}.{minor}.0"}).encode()
        if layer is not None:
            config = json.loads(files["config.json"])
            config["config"]["layers"][-1]["class_name"] = layer
            files["config.json"] = json.dumps(config).encode()
        with zipfile.ZipFile(path, "w") as made:
            for name, content in files.items():
                made.writestr(name, content)
        return path.name

    return saved


def of_keras_in_hdf5(folder: Path) -> str:
    file = examples.save_h5(examples.convolutional(), folder)
    with h5py.File(folder / file, "r+") as opened:
        opened.attrs["keras_version"] = "99.0.0"
    return file


def tflite(change: Callable[[object], None]) -> Whole:
    def saved(folder: Path) -> str:
        file = examples.save_tflite(examples.convolutional(), folder)
        model = flatbuffer_utils.read_model(str(folder / file))
        change(model)
        flatbuffer_utils.write_model(model, str(folder / file))
        return file

    return saved


def newer_schema(model: object) -> None:
    model.version = 9  # type: ignore[attr-defined]


def newer_operator(model: object) -> None:
    model.operatorCodes[0].version = 99  # type: ignore[attr-defined]


def newer_graph(folder: Path) -> str:
    put(network, folder)
    path = folder / "graph.pb"
    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    graph.versions.min_consumer = 99999
    path.write_bytes(graph.SerializeToString())
    return path.name


MAJOR = int(keras.__version__.partition(".")[0])
SAID = f"installed is {keras.__version__}"
CASES = [
    (of_keras(99, 0), "Keras", f"saved by 99.0.0, {SAID}"),
    (of_keras_in_hdf5, "Keras", f"saved by 99.0.0, {SAID}"),
    (of_keras(MAJOR, 99, "LayerOfTomorrow"), "Keras", f"saved by {MAJOR}.99.0, {SAID}: "),
    (tflite(newer_schema), "TensorFlow Lite", "schema version 9 not equal to supported version 3"),
    (tflite(newer_operator), "TensorFlow Lite", "version '99'"),
    (newer_graph, "TensorFlow", "min consumer version 99999"),
]


@pytest.mark.parametrize(("saved", "framework", "words"), CASES)
def test_a_file_of_a_newer_framework_says_so(bench: Workbench, saved: Whole, framework: str, words: str) -> None:
    error = bench.refused(uri=f"pvc://claim/{saved(bench.folder)}")
    expected = Reason.UNSUPPORTED_OPERATOR if "'99'" in words else Reason.UNSUPPORTED_MODEL
    assert error.reason == expected, error.message
    assert f" was saved by another version of {framework}, which the one installed here cannot read (" in error.message
    assert words in error.message


def test_what_a_slightly_newer_keras_saved_is_prepared_if_it_loads(bench: Workbench) -> None:
    report = bench.prepare(bench.task(uri=f"pvc://claim/{of_keras(MAJOR, 99)(bench.folder)}"))
    assert report.source.format == "Keras"


def test_an_operator_of_a_newer_tensorflow_is_named(bench: Workbench) -> None:
    examples.save_module(bench.folder, "scaled")
    path = bench.folder / "saved/saved_model.pb"
    document = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    nodes = [node for function in document.meta_graphs[0].graph_def.library.function for node in function.node_def]
    next(node for node in nodes if node.op == "Mul").op = "OperatorOfTomorrow"
    path.write_bytes(document.SerializeToString())
    error = bench.refused(uri="pvc://claim/saved")
    assert error.reason == Reason.UNSUPPORTED_OPERATOR, error.message
    assert f"TensorFlow {tf.__version__} has no operator OperatorOfTomorrow, which saved_model.pb uses" in error.message
