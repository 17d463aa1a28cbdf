"""XGBoost: models that `save_model` wrote as JSON or UBJSON, converted by onnxmltools."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fettle.api.reasons import Reason
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer.sources import newer, trees
from fettle.optimizer.sources.base import Inputs
from fettle.optimizer.sources.framework import FrameworkFormat, LoadedModel
from fettle.optimizer.sources.sklearn_onnx import TABLE
from fettle.runtimes.base import Array, Arrays

_UBJSON = b"{L"  # an object whose first key has a length of 64 bits
_OLD = b"binf"
_BEGIN = 256
# What stands at the end of a file, in JSON and in UBJSON: the version that saved it.
_SAVED_BY = (
    re.compile(rb'"version"\s*:\s*\[\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,'),
    re.compile(rb"version\[#L\0{7}\x03i(.)i(.)", re.DOTALL),
)


class XGBoost(FrameworkFormat):
    """A booster, or the estimator around one."""

    name = FormatName.XGBOOST
    title = "XGBoost"
    framework = "XGBoost"
    modules = ("xgboost", "onnxmltools")
    extra = "sklearn"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By its outermost key. Raises SourceError (UnsupportedFormat) for XGBoost's old binary format."""
        if head.startswith(_OLD):
            message = f"{path.name} is in XGBoost's old binary format: load it in the version that wrote it, and save_model('model.ubj')"
            raise SourceError(message, reason=Reason.UNSUPPORTED_FORMAT)
        if not head.startswith(b"{"):
            return False
        with path.open("rb") as stream:
            begin = stream.read(_BEGIN)
        if head.startswith(_UBJSON):
            return b"learner" in begin[:32]
        return "".join(begin.decode(errors="replace").split()).startswith('{"learner"')

    def load(self, path: Path, inputs: Inputs) -> LoadedModel:
        """See `FrameworkFormat.load`."""
        import xgboost

        content = bytearray(path.read_bytes())  # of a file, XGBoost goes by the name
        with newer.reading(path, self.framework, _saved_by(content), xgboost.__version__):
            booster = xgboost.Booster(model_file=content)
        objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
        classifies = objective.startswith(("binary:", "multi:"))
        estimator = xgboost.XGBClassifier() if classifies else xgboost.XGBRegressor()
        estimator.load_model(content)
        estimator.get_booster().feature_names = None  # onnxmltools knows them by number
        return _Loaded(estimator, objective, booster.num_features())


FORMATS = (XGBoost(),)


def _saved_by(content: bytes | bytearray) -> str:
    """The version that saved the file; empty where it does not say."""
    text, binary = (pattern.search(content) for pattern in _SAVED_BY)
    if content.startswith(_UBJSON):
        return ".".join(str(part[0]) for part in binary.groups()) if binary is not None else ""
    return ".".join(part.decode() for part in text.groups()) if text is not None else ""


@dataclass(frozen=True)
class _Loaded:
    estimator: Any
    objective: str
    columns: int

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`."""
        from onnxmltools import convert_xgboost

        types = trees.table_type(self.columns)
        model: onnx.ModelProto = convert_xgboost(self.estimator, initial_types=types, target_opset=trees.OPSET)
        return model

    def run(self, inputs: Arrays) -> Sequence[Array]:
        """See `LoadedModel.run`."""
        table = inputs[TABLE]
        predicted = np.asarray(self.estimator.predict(table))
        if not hasattr(self.estimator, "predict_proba"):
            return [predicted]
        if self.objective == "multi:softmax":  # its own answer is the class; the scores are what the converter keeps
            return [predicted, np.asarray(self.estimator.predict(table, output_margin=True))]
        return [predicted, np.asarray(self.estimator.predict_proba(table))]
