"""MLflow's model directories, as mlflow writes them: the model in one is a source like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import mlflow
import mlflow.catboost
import mlflow.lightgbm
import mlflow.pyfunc
import mlflow.sklearn
import mlflow.xgboost
import pytest
import xgboost
from sklearn.linear_model import LogisticRegression
from tests.toolchains.sklearn.examples import cancer
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.reasons import Reason
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import FormatName

TABLE, LABELS = cancer()
REQUIREMENTS: dict[str, Any] = {"pip_requirements": []}  # nothing of the environment is looked for


def with_xgboost(folder: Path) -> None:
    model = xgboost.XGBClassifier(n_estimators=5).fit(TABLE, LABELS)
    mlflow.xgboost.save_model(model, str(folder), **REQUIREMENTS)


def with_lightgbm(folder: Path) -> None:
    data = lightgbm.Dataset(TABLE, LABELS)
    mlflow.lightgbm.save_model(
        lightgbm.train({"objective": "binary", "verbosity": -1}, data, 5), str(folder), **REQUIREMENTS
    )


def with_catboost(folder: Path) -> None:
    model = catboost.CatBoostClassifier(iterations=5, depth=3, allow_writing_files=False).fit(
        TABLE, LABELS, verbose=False
    )
    mlflow.catboost.save_model(model, str(folder), **REQUIREMENTS)


def with_sklearn(folder: Path) -> None:
    model = LogisticRegression(max_iter=3000).fit(TABLE, LABELS)
    mlflow.sklearn.save_model(model, str(folder), serialization_format="pickle", **REQUIREMENTS)


class Code(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A model that is code."""

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        """Nothing but its input."""
        return model_input


FLAVOURS = [
    (with_xgboost, FormatName.XGBOOST, False),
    (with_lightgbm, FormatName.LIGHTGBM, False),
    (with_catboost, FormatName.CATBOOST, False),
    (with_sklearn, FormatName.SCIKIT_LEARN, True),
]


@pytest.mark.parametrize("wanted", [FormatName.AUTO, FormatName.MLFLOW])
@pytest.mark.parametrize(("save", "format", "trusted"), FLAVOURS, ids=[format for _, format, _ in FLAVOURS])
def test_the_model_in_the_directory_is_prepared(
    bench: Workbench, save: Callable[[Path], None], format: FormatName, trusted: bool, wanted: FormatName
) -> None:
    save(bench.folder / "model")
    source = SourceSpec(uri="pvc://claim/model", format=wanted, trusted=trusted)
    report = bench.prepare(bench.task(source=source))
    assert report.source.format == format
    assert [tensor.name for tensor in report.signature.inputs] == ["X"]


def test_a_directory_of_code_is_refused_with_what_works(bench: Workbench) -> None:
    mlflow.pyfunc.save_model(str(bench.folder / "model"), python_model=Code(), **REQUIREMENTS)
    error = bench.refused(source=SourceSpec(uri="pvc://claim/model"))
    assert error.reason == Reason.UNSUPPORTED_MODEL
    assert "expected one of onnx, sklearn, xgboost" in error.message
