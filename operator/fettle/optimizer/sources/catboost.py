"""CatBoost: its own binary models (.cbm), converted by its own exporter."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fettle.api.reasons import Reason
from fettle.api.vocabulary import FormatName
from fettle.errors import ConversionError
from fettle.optimizer.onnx.portable import strip_zip_map
from fettle.optimizer.sources.base import Inputs
from fettle.optimizer.sources.framework import FrameworkFormat, LoadedModel
from fettle.optimizer.sources.sklearn_onnx import TABLE
from fettle.runtimes.base import Array, Arrays

_BEGIN = b"CBM1"
_NUMBERS = "predictions"


class CatBoost(FrameworkFormat):
    """A model of CatBoost. What its exporter wrote as ONNX is an ONNX source."""

    name = FormatName.CATBOOST
    title = "CatBoost"
    framework = "CatBoost"
    modules = ("catboost",)
    extra = "sklearn"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By its first bytes."""
        return head.startswith(_BEGIN)

    def load(self, path: Path, inputs: Inputs) -> LoadedModel:
        """See `FrameworkFormat.load`."""
        import catboost

        model = catboost.CatBoost()
        model.load_model(str(path))
        if not any(_other_features(model).values()):
            model.predict(np.zeros((1, len(model.feature_names_)), np.float32))  # damage that only computing shows
        return _Loaded(model)


FORMATS = (CatBoost(),)


@dataclass(frozen=True)
class _Loaded:
    model: Any

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`. Raises ConversionError for features that CatBoost's exporter does not take."""
        named = self.model.feature_names_
        for kind, places in _other_features(self.model).items():
            if places:
                message = (
                    f"CatBoost exports no {kind} features to ONNX, and this model has {', '.join(named[place] for place in places[:5])}: "
                    "train it on numbers, for instance with the categories one-hot encoded in a scikit-learn pipeline"
                )
                raise ConversionError(message, reason=Reason.UNSUPPORTED_OPERATOR)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            self.model.save_model(str(path), format="onnx")
            return _named(strip_zip_map(onnx.load(str(path))))

    def run(self, inputs: Arrays) -> Sequence[Array]:
        """See `LoadedModel.run`."""
        table = inputs[TABLE]
        if not len(self.model.classes_):
            return [np.asarray(self.model.predict(table))]
        labels = np.asarray(self.model.predict(table, prediction_type="Class")).reshape(-1)
        return [labels, np.asarray(self.model.predict(table, prediction_type="Probability"))]


def _other_features(model: Any) -> dict[str, Sequence[int]]:
    """Places of the features that are no numbers, by their kind."""
    return {
        "categorical": model.get_cat_feature_indices(),
        "text": model.get_text_feature_indices(),
        "embedding": model.get_embedding_feature_indices(),
    }


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the input called as that of every other table is, and numbers in the shape that they have."""
    (value,) = model.graph.input
    for output in model.graph.output:
        if output.name == _NUMBERS:
            targets = next((a.i for node in model.graph.node for a in node.attribute if a.name == "n_targets"), 1)
            output.CopyFrom(onnx.helper.make_tensor_value_info(_NUMBERS, onnx.TensorProto.FLOAT, ["N", targets]))
    for node in model.graph.node:
        node.input[:] = [TABLE if name == value.name else name for name in node.input]
    value.name = TABLE
    return model
