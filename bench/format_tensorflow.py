"""Models of Keras, TensorFlow and TFLite that others trained, out of packages of the toolchain's environment.

`bench/format_cases.py` imports this late.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from bench.format_case import Answers, Brought
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from fettle.optimizer.sources.tensorflow import know_optimizers
from fettle.store.arrays import Arrays

# Not imported above: the types of its neighbors, which derive from TensorFlow's classes, are not looked at.
OTHERS: Any = import_module("tests.toolchains.tensorflow.test_models_of_others")
RUNTIMES = ("onnxruntime", "openvino", "litert")
EMOTIONS, PITCHES = "emotion_model.hdf5", "icassp_2022/nmp/saved_model.pb"
GRAPH = "graph.pb"
ROUNDS = 4  # of the few items that a test takes


def _model(path: str) -> Any:
    return next(model for model in OTHERS.MODELS if model.path == path)


def _items(model: Any) -> Arrays:
    rounds = [model.items(np.random.default_rng(seed)) for seed in range(ROUNDS)]
    return {name: np.concatenate([items[name] for items in rounds]) for name in rounds[0]}


def _as_it_came(path: str, folder: Path, framework: Callable[[Path], Callable[[Arrays], Answers]]) -> Brought:
    model = _model(path)
    name = OTHERS.put(model, folder).rpartition("/")[2]
    return Brought(name, _items(model), framework(folder / name), runtimes=RUNTIMES)


def _litert(path: Path) -> Callable[[Arrays], Answers]:
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()

    def answers(item: Arrays) -> Answers:
        for tensor in interpreter.get_input_details():
            interpreter.set_tensor(tensor["index"], item[tensor["name"]])
        interpreter.invoke()
        return {tensor["name"]: interpreter.get_tensor(tensor["index"]) for tensor in interpreter.get_output_details()}

    return answers


def _keras(path: Path) -> Callable[[Arrays], Answers]:
    model = keras.saving.load_model(path, compile=False)
    return lambda item: [tensor.numpy() for tensor in keras.tree.flatten(model(*item.values(), training=False))]


def _saved_model(path: Path) -> Callable[[Arrays], Answers]:
    know_optimizers()  # else TensorFlow without Keras 2 does not load it at all
    loaded = tf.saved_model.load(str(path))

    def answers(item: Arrays) -> Answers:
        function = loaded.signatures["serving_default"]
        found = function(**{name: tf.constant(array) for name, array in item.items()})
        return {name: tensor.numpy() for name, tensor in found.items()}

    return answers


def faces(folder: Path, _: Path) -> Brought:
    """Faces in a picture."""
    return _as_it_came("face_detection_front.tflite", folder, _litert)


def pitches_tflite(folder: Path, _: Path) -> Brought:
    """Notes in a sound, in TFLite."""
    return _as_it_came("icassp_2022/nmp.tflite", folder, _litert)


def pitches(folder: Path, _: Path) -> Brought:
    """Notes in a sound, as a SavedModel."""
    return _as_it_came(PITCHES, folder, _saved_model)


def emotions(folder: Path, _: Path) -> Brought:
    """What a face shows, in the HDF5 of an early Keras."""
    return _as_it_came(EMOTIONS, folder, _keras)


def emotions_keras(folder: Path, _: Path) -> Brought:
    """The same, saved again by the Keras of today."""
    model = _model(EMOTIONS)
    name = OTHERS.put(model, folder).rpartition("/")[2]
    keras.saving.load_model(folder / name, compile=False).save(folder / "model.keras")
    (folder / name).unlink()
    return Brought("model.keras", _items(model), _keras(folder / "model.keras"), runtimes=RUNTIMES)


def emotions_frozen(folder: Path, _: Path) -> Brought:
    """What a face shows, frozen as TensorFlow 1 had it."""
    model = _model(EMOTIONS)
    place = folder / OTHERS.put(model, folder).rpartition("/")[2]
    network, items = keras.saving.load_model(place, compile=False), _items(model)
    place.unlink()
    ((name, faces),) = items.items()
    spec = tf.TensorSpec([None, *faces.shape[1:]], faces.dtype, name)
    function = tf.function(lambda face: network(face, training=False), input_signature=[spec], autograph=False)
    frozen = convert_variables_to_constants_v2(function.get_concrete_function())
    (folder / GRAPH).write_bytes(frozen.graph.as_graph_def().SerializeToString())
    (given,), outputs = frozen.inputs, [tensor.name for tensor in frozen.outputs]
    source = {"outputs": [output.removesuffix(":0") for output in outputs]}
    return Brought(GRAPH, {given.op.name: faces}, _session(folder / GRAPH, outputs), source=source)


def _session(path: Path, outputs: list[str]) -> Callable[[Arrays], Answers]:
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(path.read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    session = tf.compat.v1.Session(graph=graph)
    fetches = {name.removesuffix(":0"): name for name in outputs}

    def answers(item: Arrays) -> Answers:
        found: Answers = session.run(fetches, {f"{name}:0": array for name, array in item.items()})
        return found

    return answers
