"""scikit-learn models as the files that their users would hand in. For `bench/model_catalog.py`, which imports this late."""

from __future__ import annotations

from pathlib import Path

import onnx
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def perceptron(_: Path, folder: Path) -> Path:
    """A perceptron with two hidden layers, trained on scikit-learn's table of tumours, and converted as its users would."""
    table = load_breast_cancer()
    layers = MLPClassifier((512, 512), max_iter=60, random_state=1)
    fitted = make_pipeline(StandardScaler(), layers).fit(table.data, table.target)
    path = folder / "model.onnx"
    onnx.save(to_onnx(fitted, initial_types=[("x", FloatTensorType([None, 30]))], options={"zipmap": False}), path)
    return path
