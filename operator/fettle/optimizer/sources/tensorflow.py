"""TensorFlow: SavedModels, of which one signature is the model; converted by tf2onnx, judged by TensorFlow."""

from __future__ import annotations

import functools
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.api.vocabulary import FormatName
from fettle.errors import ConversionError, SourceError
from fettle.optimizer.onnx import operators
from fettle.optimizer.sources.base import Beside, Inputs
from fettle.optimizer.sources.framework import FrameworkFormat
from fettle.runtimes.base import Arrays

ENTRY = "saved_model.pb"
OPSET = 18  # the newest that tf2onnx writes
SERVING = "serving_default"
_PARTS = ("variables/", "assets/", "assets.extra/")
log = logging.getLogger(__name__)


class SavedModel(FrameworkFormat):
    """A folder with a graph, its variables and its assets."""

    name = FormatName.SAVED_MODEL
    title = "TensorFlow SavedModel"
    framework = "TensorFlow"
    modules = ("tensorflow", "tf2onnx")
    extra = "tensorflow"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By its name: a protobuf has no first bytes of its own."""
        return path.name == ENTRY

    def companions(self, path: Path, beside: Beside) -> Sequence[str]:
        """Variables and assets."""
        return [name for name in beside() if name.startswith(_PARTS) or name == "fingerprint.pb"]

    def load(self, path: Path, inputs: Inputs) -> _Loaded:
        """See `FrameworkFormat.load`."""
        quiet()
        import tensorflow

        know_optimizers()
        try:
            loaded = tensorflow.saved_model.load(str(path.parent))
        except Exception as error:  # NotFoundError, FileNotFoundError: by the part of the library that looks
            known = unknown_operator(path, error)
            if known is None:
                raise
            raise known from error
        name = _signature(list(loaded.signatures), inputs.signature, path)
        return _Loaded(path.parent, name, loaded, loaded.signatures[name])

    def native(self, path: Path, inputs: Inputs, folder: Path) -> Path | None:
        """See `SourceFormat.native`: the one signature that is the model."""
        return self.load(path, inputs).to_saved_model(folder)


FORMATS = (SavedModel(),)


def quiet() -> None:
    """TensorFlow says what CPU it found, and which GPU it did not, on standard error."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@functools.cache
def know_optimizers() -> None:
    """Let TensorFlow load what Keras 2 saved with the state of its optimizer, which it otherwise can only with Keras 2 beside it."""
    from tensorflow.python.keras.optimizer_v2.optimizer_v2 import RestoredOptimizer
    from tensorflow.python.saved_model import revived_types

    restored = revived_types.VersionedTypeRegistration(
        object_factory=lambda _: RestoredOptimizer(),
        version=1,
        min_producer_version=1,
        min_consumer_version=1,
        setter=RestoredOptimizer._set_hyper,
    )
    revived_types.register_revived_type("optimizer", lambda _: False, versions=[restored])


def unknown_operator(path: Path, error: Exception) -> SourceError | None:
    """What is told of a graph with an operator that this TensorFlow does not have; None for an error about something else."""
    import tensorflow

    named = re.search(r"(?:not registered|No op named) '?(\w+)", str(error))
    if named is None:
        return None
    message = (
        f"TensorFlow {tensorflow.__version__} has no operator {named[1]}, which {path.name} uses: it is of a newer version or of a package of its "
        "own; save the model without it, or export it to ONNX where it was made"
    )
    return SourceError(message, reason=Reason.UNSUPPORTED_OPERATOR)


def _signature(known: list[str], wanted: str | None, path: Path) -> str:
    """Which signature is the model. Raises SourceError."""
    if wanted is not None and wanted not in known:
        message = f"source.signature is {wanted!r}; the SavedModel has the signatures {sorted(known)}"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    callable_ones = [name for name in known if not name.startswith("__")]
    if wanted is not None:
        return wanted
    if SERVING in callable_ones:
        return SERVING
    if len(callable_ones) == 1:
        return callable_ones[0]
    if callable_ones:
        message = f"the SavedModel has the signatures {sorted(callable_ones)}: select one with source.signature"
        raise SourceError(message, reason=Reason.INVALID_SPEC)
    message = (
        f"the SavedModel {path.parent.name} has no signature to call: save it with "
        "tf.saved_model.save(model, folder, signatures=function), or model.export(folder) of Keras"
    )
    raise SourceError(message, reason=Reason.UNSUPPORTED_MODEL)


@dataclass(frozen=True)
class _Loaded:
    folder: Path
    name: str
    owner: Any  # holds the variables that the function uses
    function: Any

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`. Raises ConversionError."""
        import tensorflow as tf

        _, named = self.function.structured_input_signature
        specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in named.items()]
        function = tf.function(lambda *given: self.function(**dict(zip(named, given, strict=True))), autograph=False)
        try:
            return converted(function, specs)
        except Exception as error:  # noqa: BLE001 - tf2onnx raises what it likes; its own reader of SavedModels knows tables of words
            log.info("reading the SavedModel with tf2onnx: %s", error)
            return read_by_tf2onnx("--saved-model", str(self.folder), "--signature_def", self.name)

    def to_saved_model(self, folder: Path) -> Path:
        """See `SourceFormat.native`."""
        import tensorflow

        tensorflow.saved_model.save(self.owner, str(folder), signatures={SERVING: self.function})
        return folder / ENTRY

    def run(self, inputs: Arrays) -> Arrays:
        """See `LoadedModel.run`."""
        import tensorflow

        given = {name: tensorflow.constant(array) for name, array in inputs.items()}
        return {name: value.numpy() for name, value in self.function(**given).items()}


def converted(function: Any, specs: Sequence[Any]) -> onnx.ModelProto:
    """A function of TensorFlow in ONNX, inputs called as `specs` call them. Raises ConversionError, or whatever tf2onnx raises."""
    from tf2onnx import convert

    made, _ = convert.from_function(function, input_signature=list(specs), opset=OPSET)
    _keep_constants(made, function.get_concrete_function(*specs))
    return known(made)


def _keep_constants(model: onnx.ModelProto, function: Any) -> None:
    """Tensors that the function holds on to, and that are no variables, are inputs to tf2onnx: they become constants with their values."""
    held = {inner.name: outer for outer, inner in function.graph.captures if inner.dtype.name != "resource"}
    for tensor in [tensor for tensor in model.graph.input if tensor.name in held]:
        model.graph.input.remove(tensor)
        model.graph.initializer.append(onnx.numpy_helper.from_array(held[tensor.name].numpy(), tensor.name))


def read_by_tf2onnx(*words: str) -> onnx.ModelProto:
    """What tf2onnx makes of a file, which `words` of its command line name, in a process of its own. Raises ConversionError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        command = [sys.executable, "-m", "tf2onnx.convert", *words, "--output", str(path), "--opset", str(OPSET)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        log.info("tf2onnx: %s", done.stderr[-2000:])
        if done.returncode or not path.exists():
            raise _unconvertible(done.stderr)
        return known(onnx.load(str(path)))


def known(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, if all of its operators are ONNX's. Raises ConversionError naming those that are TensorFlow's."""
    unknown = operators.unknown(model)
    if unknown:
        message = f"ONNX has no counterpart for these operators of the model: {'; '.join(unknown[:5])}"
        raise ConversionError(message, reason=Reason.UNSUPPORTED_OPERATOR)
    return model


def _unconvertible(said: str) -> ConversionError:
    """What tf2onnx said of a model that it cannot convert."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line.partition("ERROR - ")[2] for line in lines if "is not supported" in line and "ERROR - " in line]
    what = "; ".join(dict.fromkeys(named)) or (lines[-1] if lines else "it said nothing")
    return ConversionError(f"tf2onnx could not convert the model: {clip(what, 400)}")
