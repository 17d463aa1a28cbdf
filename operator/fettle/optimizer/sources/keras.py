"""Keras: models in files of Keras 3 (.keras) and in HDF5 (.h5), converted through TensorFlow's graph of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from fettle.api.reasons import Reason
from fettle.api.text import quoted
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer.sources import archive, newer, tensorflow
from fettle.optimizer.sources.base import Inputs
from fettle.optimizer.sources.framework import FrameworkFormat, require_modules
from fettle.runtimes.base import Arrays

_HDF5 = b"\x89HDF\r\n\x1a\n"
_CONFIG, _WEIGHTS, _METADATA = "config.json", "model.weights.h5", "metadata.json"
# Layers whose configuration is code, or leads to some; and what stands in it for a function in Python's bytecode.
_CODE = ("Lambda", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer")
_BYTECODE = "__lambda__"


class Keras(FrameworkFormat):
    """A model with its architecture."""

    name = FormatName.KERAS
    title = "Keras"
    framework = "Keras"
    modules = ("keras", "tensorflow", "tf2onnx", "h5py")
    extra = "tensorflow"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By the table of contents of the archive, or by HDF5's first bytes."""
        if head.startswith(archive.ZIP):
            return {_CONFIG, _WEIGHTS} <= set(archive.names(path))
        return head.startswith(_HDF5)

    def require(self, path: Path, trusted: bool) -> None:
        """See `SourceFormat.require`."""
        require_modules(path, self)
        found = sorted(set(_code(_config(path))))
        if found and not trusted:
            message = (
                f"{path.name} holds Python code in {', '.join(found[:5])}, which would run when it is loaded, so it was not loaded; express it "
                "with Keras's own layers, or set source.trusted: true if you made this file yourself"
            )
            raise SourceError(message, reason=Reason.UNSAFE_CODE)

    def load(self, path: Path, inputs: Inputs) -> _Loaded:
        """See `FrameworkFormat.load`."""
        tensorflow.quiet()
        import keras

        try:
            with newer.reading(path, self.framework, _saved_by(path), keras.__version__):
                model = keras.saving.load_model(path, compile=False, safe_mode=not inputs.trusted)
        except (TypeError, ValueError) as error:
            raise _refusal(path, error) from error
        if not (model.built and getattr(model, "inputs", None)):
            message = (
                f"{path.name} is a subclassed Keras model, which does not record its inputs: save it as a SavedModel with "
                "model.export(folder)"
            )
            raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
        return _Loaded(model)

    def native(self, path: Path, inputs: Inputs, folder: Path) -> Path | None:
        """See `SourceFormat.native`."""
        return self.load(path, inputs).to_saved_model(folder)


FORMATS = (Keras(),)


def _refusal(path: Path, error: Exception) -> SourceError:
    """Why Keras does not load a file whose configuration can be read."""
    whole, said = str(error), quoted(error)
    if "Could not locate" in whole or "Unknown layer" in whole or "Unrecognized keyword" in whole:
        message = f"{path.name} needs a class that this version of Keras does not have (a custom class, or one of another version): {said}"
        return SourceError(message, reason=Reason.UNSUPPORTED_MODEL)
    return SourceError(f"{path.name} is damaged: {said}", reason=Reason.SOURCE_CORRUPTED)


def _config(path: Path) -> Any:
    """The architecture, as it is written in the file. Raises SourceError."""
    if archive.is_zip(path):
        archive.check(path)
        with zipfile.ZipFile(path) as opened:
            return _parsed(path, opened.read(_CONFIG))
    import h5py

    try:
        with h5py.File(path, "r") as opened:
            text = opened.attrs.get("model_config")
    except Exception as error:  # the library raises what it likes for a damaged file
        raise SourceError(f"{path.name} is damaged: {error}", reason=Reason.SOURCE_CORRUPTED) from error
    if text is None:
        message = f"{path.name} contains only weights, without the model that they belong to: save the model with model.save('model.keras')"
        raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
    return _parsed(path, text)


def _saved_by(path: Path) -> str:
    """The version of Keras that saved the file, which `_config` has read; empty where it does not say."""
    if archive.is_zip(path):
        if _METADATA not in archive.names(path):
            return ""
        with zipfile.ZipFile(path) as opened:
            found = _parsed(path, opened.read(_METADATA))
        return str(found.get("keras_version", "")) if isinstance(found, dict) else ""
    import h5py

    with h5py.File(path, "r") as opened:
        return str(opened.attrs.get("keras_version", ""))


def _parsed(path: Path, text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:  # in a damaged HDF5, not even text
        message = f"{path.name} is damaged: its configuration is not JSON: {error}"
        raise SourceError(message, reason=Reason.SOURCE_CORRUPTED) from error


def _code(node: Any) -> Iterator[str]:
    """Layers of a configuration that hold code, by class and name."""
    waiting = [node]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, list):
            waiting += inner
        if not isinstance(inner, dict):
            continue
        kind, config = inner.get("class_name"), inner.get("config")
        if kind in _CODE:
            name = config.get("name") if isinstance(config, dict) else None
            yield f"the {kind} layer {name!r}" if name else f"a {kind} layer"
        elif kind == _BYTECODE:
            yield "a function in bytecode"
        waiting += inner.values()


class _Loaded:
    def __init__(self, model: Any) -> None:
        import tensorflow as tf

        self._model = model
        self._graph = getattr(model, "_functional", None) or model  # of a Sequential, the model of its layers
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in model.inputs]
        self._specs = specs
        self._function = tf.function(self._call, input_signature=specs, autograph=False)

    def _call(self, *tensors: Any) -> dict[str, Any]:
        """The answers by name: those of the output layers, in the order of the model's outputs."""
        import keras

        given = keras.tree.pack_sequence_as(self._graph._inputs_struct, list(tensors))
        answers = keras.tree.flatten(self._model(given, training=False))
        return dict(zip(_distinct(list(self._graph.output_names), len(answers)), answers, strict=True))

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`."""
        return tensorflow.converted(self._function, self._specs)

    def to_saved_model(self, folder: Path) -> Path:
        """See `SourceFormat.native`."""
        import keras

        archive = keras.export.ExportArchive()
        archive.track(self._model)
        archive.add_endpoint(tensorflow.SERVING, self._call, input_signature=self._specs)
        archive.write_out(str(folder), verbose=False)
        return folder / tensorflow.ENTRY

    def run(self, inputs: Arrays) -> Arrays:
        """See `LoadedModel.run`."""
        import tensorflow as tf

        tensors = [tf.constant(inputs[spec.name], dtype=spec.dtype) for spec in self._specs]
        return {name: value.numpy() for name, value in self._function(*tensors).items()}


def _distinct(names: list[str], count: int) -> list[str]:
    return names if len(set(names)) == len(names) == count else [f"output_{index}" for index in range(count)]
