"""TensorFlow Lite (LiteRT): flatbuffers for small devices, converted by tf2onnx, judged by LiteRT's own interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fettle.api.vocabulary import FormatName
from fettle.optimizer.sources import tensorflow
from fettle.optimizer.sources.base import Inputs, NamedArrays
from fettle.optimizer.sources.framework import FrameworkFormat, LoadedModel
from fettle.runtimes import cpu

_IDENTIFIER = b"TFL3"


class TFLite(FrameworkFormat):
    """One file with its weights."""

    name = FormatName.TFLITE
    title = "TensorFlow Lite"
    framework = "LiteRT"
    modules = ("ai_edge_litert", "tensorflow", "tf2onnx")
    extra = "tensorflow"

    def recognises(self, path: Path, head: bytes) -> bool:
        """By the flatbuffer's identifier."""
        return head[4:8] == _IDENTIFIER

    def load(self, path: Path, inputs: Inputs) -> LoadedModel:
        """See `FrameworkFormat.load`."""
        tensorflow.quiet()
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=cpu.usable_cores())
        interpreter.allocate_tensors()
        return _Loaded(path, interpreter)


FORMATS = (TFLite(),)


@dataclass(frozen=True)
class _Loaded:
    path: Path
    interpreter: Any

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`."""
        from tf2onnx import convert

        made, _ = convert.from_tflite(str(self.path), opset=tensorflow.OPSET)
        return tensorflow.known(made)

    def run(self, inputs: NamedArrays) -> NamedArrays:
        """See `LoadedModel.run`."""
        details = {_plain(detail["name"]): detail for detail in self.interpreter.get_input_details()}
        given = {details[_plain(name)]["index"]: array for name, array in inputs.items()}
        self._resize(given, list(details.values()))
        for index, array in given.items():
            self.interpreter.set_tensor(index, array)
        self.interpreter.invoke()
        outputs = self.interpreter.get_output_details()
        return {detail["name"]: self.interpreter.get_tensor(detail["index"]).copy() for detail in outputs}

    def _resize(self, given: Mapping[int, Any], details: list[Any]) -> None:
        """A batch of another size needs tensors of another size."""
        changed = [one for one in details if tuple(one["shape"]) != np.shape(given[one["index"]])]
        for one in changed:
            self.interpreter.resize_tensor_input(one["index"], np.shape(given[one["index"]]), strict=True)
        if changed:
            self.interpreter.allocate_tensors()


def _plain(name: str) -> str:
    return name.removesuffix(":0")
