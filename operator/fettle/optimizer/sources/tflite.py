"""TensorFlow Lite (LiteRT): flatbuffers for small devices, converted by tf2onnx. The runtime `litert` judges them, and serves them as they came."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from fettle.api.reasons import Reason
from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import FormatName, ModelFormat, RuntimeName
from fettle.errors import RuntimeFailure
from fettle.optimizer.sources import newer, tensorflow
from fettle.optimizer.sources.base import Inputs, Original, Plain, RunnableModel, failure_of
from fettle.optimizer.sources.framework import FrameworkFormat, LoadedModel
from fettle.runtimes import base, cpu
from fettle.runtimes.base import Arrays, Session

_IDENTIFIER = b"TFL3"


class TFLite(FrameworkFormat):
    """One file with its weights."""

    name = FormatName.TFLITE
    title = "TensorFlow Lite"
    framework = "LiteRT"
    modules = ("ai_edge_litert", "tensorflow", "tf2onnx")
    extra = "tensorflow"
    stored: ModelFormat = "TFLite"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By the flatbuffer's identifier."""
        return head[4:8] == _IDENTIFIER

    def load(self, path: Path, inputs: Inputs) -> LoadedModel:
        """See `FrameworkFormat.load`."""
        return _opened(path)

    def original(self, path: Path, plain: Plain, inputs: Inputs, folder: Path) -> Original:
        """The file as it came, unless its boundary was changed: then its portable form is the baseline, as it is with other frameworks."""
        original = super().original(path, plain, inputs, folder)
        why = "litert runs the file only as it came" if plain.changes else _refusal(path, plain.signature)
        if why is not None:
            return replace(original, notes=(*original.notes, why))
        return replace(original, untouched=True, foreign=False, notes=())

    def unconverted(self, path: Path, inputs: Inputs) -> RunnableModel | None:
        """LiteRT runs and serves what ONNX has no operators for."""
        opened = _opened(path)
        return RunnableModel(opened.signature, {}, opened.session.infer)


FORMATS = (TFLite(),)


@dataclass(frozen=True)
class _Loaded:
    path: Path
    signature: Signature
    session: Session

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`."""
        from tf2onnx import convert

        made, _ = convert.from_tflite(str(self.path), opset=tensorflow.OPSET)
        return tensorflow.known(made)

    def run(self, inputs: Arrays) -> Arrays:
        """See `LoadedModel.run`."""
        names = {_plain(tensor.name): tensor.name for tensor in self.signature.inputs}
        return self.session.infer({names[_plain(name)]: array for name, array in inputs.items()})


def _opened(path: Path) -> _Loaded:
    """The file in LiteRT. Raises SourceError."""
    tensorflow.quiet()
    from fettle.runtimes import litert

    try:
        signature = litert.boundary(path)
        return _Loaded(path, signature, _session(path, signature))
    except RuntimeFailure as error:
        failure = failure_of(error)
        if (told := newer.said(failure)) is not None:
            known = failure.reason == Reason.UNSUPPORTED_OPERATOR
            reason = failure.reason if known else Reason.UNSUPPORTED_MODEL
            raise newer.unreadable(path, "TensorFlow Lite", told, reason) from error
        raise failure from error


def _session(path: Path, signature: Signature) -> Session:
    settings = RuntimeSettings(threads=cpu.usable_cores(), graph_optimization=False)
    return base.get(RuntimeName.LITERT).load(path, settings, signature)


def _refusal(path: Path, signature: Signature) -> str | None:
    """Why LiteRT does not serve the file with the inputs and outputs of its portable form; None if it does."""
    try:
        _session(path, signature).close()
    except RuntimeFailure as error:
        return f"litert: {error.message}"
    return None


def _plain(name: str) -> str:
    return name.removesuffix(":0")
