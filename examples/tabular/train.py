"""Makes the model and the data of the tabular example: is a breast mass malignant?

    python examples/tabular/train.py

The 569 patients of scikit-learn's breast_cancer data (UCI "Breast Cancer Wisconsin (Diagnostic)", CC BY 4.0), 30 measured features
each, split once, stratified: half trains, half evaluates. A scaler and gradient-boosted trees, brought to ONNX by skl2onnx with its
defaults: one output is the label, the other a sequence of maps (ZipMap), as most scikit-learn models in ONNX have. Needs scikit-learn
and skl2onnx.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent
SEED = 20


def main() -> None:
    data = load_breast_cancer()
    features, labels = data.data.astype(np.float32), data.target.astype(np.int64)
    train, held_out, known, wanted = train_test_split(
        features, labels, test_size=0.5, stratify=labels, random_state=SEED
    )
    model = make_pipeline(
        StandardScaler(), GradientBoostingClassifier(n_estimators=200, max_depth=3, random_state=SEED)
    )
    model.fit(train, known)
    proto = to_onnx(model, train[:1], target_opset={"": 18, "ai.onnx.ml": 3})
    (HERE / "model.onnx").write_bytes(proto.SerializeToString())
    np.savez_compressed(HERE / "evaluation.npz", X=held_out, labels=wanted)
    print(f"accuracy {model.score(held_out, wanted):.4f} on {len(wanted)} patients held out")


if __name__ == "__main__":
    main()
