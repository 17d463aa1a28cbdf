"""Source formats: recognized, opened, converted to ONNX. One module a format; a line here registers it.

A format also has its row in `api/formats.py` (what the operator must know before a Job runs: image, suffixes, libraries, runtime) and its
name in `api/vocabulary.py`. docs/design/where.md has the whole list.
"""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from fettle.api.reasons import Reason
from fettle.api.text import joined
from fettle.api.vocabulary import FormatName
from fettle.errors import ConversionError, FettleError
from fettle.optimizer.onnx import model
from fettle.optimizer.sources import (
    catboost,
    frozen_graph,
    huggingface,
    keras,
    lightgbm,
    onnx,
    sklearn,
    tensorflow,
    tflite,
    torch,
    torch_module,
    xgboost,
)
from fettle.optimizer.sources.base import Inputs, SourceFormat

FORMATS: tuple[SourceFormat, ...] = (
    *onnx.FORMATS,
    *sklearn.FORMATS,  # before PyTorch, which takes every other pickle for its own
    *torch.FORMATS,
    *huggingface.FORMATS,
    *xgboost.FORMATS,
    *lightgbm.FORMATS,
    *catboost.FORMATS,
    *keras.FORMATS,
    *tensorflow.FORMATS,
    *frozen_graph.FORMATS,
    *tflite.FORMATS,
    *torch_module.FORMATS,
)
_BY_NAME = {one.name: one for one in FORMATS}


def of(name: FormatName) -> SourceFormat:
    """The format of that name."""
    return _BY_NAME[name]


def readable() -> str:
    """The formats that are read, for a person."""
    return f"this version reads {joined(one.title for one in FORMATS)}"


def graph(format: SourceFormat, path: Path, inputs: Inputs, folder: Path) -> ModelProto:
    """The source's graph in ONNX, and what the format's module promises of it held. Raises SourceError, ConversionError."""
    before = _state(path)
    made = format.convert(path, inputs, folder)
    if _state(path) != before:
        raise RuntimeError(
            f"the conversion of {format.name} changed the source {path.name}: it must only write into its own folder"
        )
    try:
        return model.load(made)
    except FettleError as error:
        if made == path:
            raise
        message = f"the conversion of {format.name} wrote no usable ONNX file: {error.message}"
        raise ConversionError(message, reason=Reason.UNSUPPORTED_MODEL) from error


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
