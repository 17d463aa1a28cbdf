"""LightGBM: models that `save_model` wrote as text, converted by onnxmltools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fettle.api.reasons import Reason
from fettle.api.vocabulary import FormatName
from fettle.errors import ConversionError, SourceError
from fettle.optimizer.sources import newer, trees
from fettle.optimizer.sources.base import Inputs
from fettle.optimizer.sources.framework import FrameworkFormat, LoadedModel
from fettle.optimizer.sources.sklearn_onnx import TABLE
from fettle.runtimes.base import Array, Arrays

_FIRST_LINE, _LAST_LINE = b"tree", b"\nend of trees"
_VERSION = re.compile(rb"tree\s+version=v(\d{1,6})")  # of the format: LightGBM reads a file of any as one of its own
_READABLE = 4
_CLASSES = ("binary", "multiclass")
_NUMBERS = ("regression", "quantile", "huber", "poisson", "gamma", "tweedie", "lambdarank", "rank_xendcg")


class LightGBM(FrameworkFormat):
    """A booster."""

    name = FormatName.LIGHTGBM
    title = "LightGBM"
    framework = "LightGBM"
    modules = ("lightgbm", "onnxmltools")
    extra = "sklearn"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By its first two lines."""
        lines = head.split(b"\n")
        return len(lines) > 1 and lines[0].strip() == _FIRST_LINE and lines[1].startswith(b"version=")

    def load(self, path: Path, inputs: Inputs) -> LoadedModel:
        """See `FrameworkFormat.load`."""
        import lightgbm

        content = path.read_bytes()
        if b"\0" in content:  # LightGBM never gets past one
            message = f"{path.name} is damaged: it is a text file, and byte {content.index(0)} of it is a NUL"
            raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
        version = _VERSION.match(content)
        if version is not None and int(version[1]) > _READABLE:
            told = f"its format is v{int(version[1])}, and LightGBM {lightgbm.__version__} reads up to v{_READABLE}"
            raise newer.unreadable(path, self.framework, told)
        if _LAST_LINE not in content:  # LightGBM ends the process at a tree that is cut off
            message = f"{path.name} is damaged: it ends before its trees do"
            raise SourceError(message, reason=Reason.SOURCE_CORRUPTED)
        booster = lightgbm.Booster(model_file=str(path))
        return _Loaded(booster, str(booster.dump_model(num_iteration=1).get("objective", "")))


FORMATS = (LightGBM(),)


@dataclass(frozen=True)
class _Loaded:
    booster: Any
    objective: str

    def to_onnx(self) -> onnx.ModelProto:
        """See `LoadedModel.to_onnx`. Raises ConversionError for objectives and leaves that the converter does not know."""
        from onnxmltools import convert_lightgbm

        dump = self.booster.dump_model()
        if not self.objective.startswith((*_CLASSES, *_NUMBERS)):
            objective = self.objective or "a function of your own"
            known = ", ".join((*_CLASSES, *_NUMBERS))
            raise ConversionError(
                f"the objective of the LightGBM model is {objective}; those that can be converted are {known}"
            )
        for tree in dump["tree_info"]:
            for node in _nodes(tree["tree_structure"]):
                if node.get("leaf_coeff"):
                    raise ConversionError(
                        "the LightGBM model has linear models in its leaves (linear_tree), which trees in ONNX cannot have"
                    )
                if node.get("decision_type") == "<=":
                    node["threshold"] = below(float(node["threshold"]))
        types = trees.table_type(len(dump["feature_names"]))
        model: onnx.ModelProto = convert_lightgbm(
            _wrapped(dump, self.objective), initial_types=types, zipmap=False, target_opset=trees.OPSET
        )
        return model

    def run(self, inputs: Arrays) -> Sequence[Array]:
        """See `LoadedModel.run`."""
        answer = np.asarray(self.booster.predict(inputs[TABLE]))
        if self.objective.startswith("binary"):
            return [(answer > 0.5).astype(np.int64), np.column_stack([1 - answer, answer])]
        return [answer.argmax(axis=1), answer] if answer.ndim == 2 else [answer]


@dataclass(frozen=True)
class _Dump:
    """A booster's trees, as the converter asks a booster for them."""

    dump: dict[str, Any]
    is_mock: bool = True  # what the converter calls a booster that is asked for nothing but this

    def dump_model(self) -> dict[str, Any]:
        """The trees."""
        return self.dump


def _wrapped(dump: dict[str, Any], objective: str) -> Any:
    """The dump as the converter wraps a booster: its own wrapper takes fewer objectives than it converts."""
    from onnxmltools.convert.lightgbm._parse import WrappedBooster

    wrapped = WrappedBooster.__new__(WrappedBooster)
    wrapped.booster_ = _Dump(dump)
    wrapped.classes_ = np.arange(max(int(dump["num_class"]), 2))
    wrapped.n_features_ = len(dump["feature_names"])
    wrapped.operator_name = "LgbmClassifier" if objective.startswith(_CLASSES) else "LgbmRegressor"
    wrapped.boosting_type = "rf" if dump.get("average_output") else "gbdt"
    return wrapped


def _nodes(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [node[side] for side in ("left_child", "right_child") if side in node]


def below(threshold: float) -> float:
    """The largest float32 that is not above `threshold`: a float32 is below both or above both."""
    with np.errstate(over="ignore"):
        rounded = np.float32(threshold)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > threshold else rounded)
