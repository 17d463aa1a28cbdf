"""Models of scikit-learn and of boosted trees, fitted on scikit-learn's own data, as their users save them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catboost
import joblib
import lightgbm
import numpy as np
import pandas
import skops.io
import xgboost
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from fettle.store.arrays import Array, Arrays

CANCER, IRIS, DIABETES = load_breast_cancer(), load_iris(), load_diabetes()
CITIES = np.array(["Bern", "Oslo", "Rome"])


@dataclass(frozen=True)
class Example:
    """A fitted model's file, items for it, and the answers that its own framework gives, by the name of the output."""

    file: str
    items: Arrays
    answers: Arrays
    trusted: bool = False


def cancer() -> tuple[Array, Array]:
    return CANCER.data.astype(np.float32), CANCER.target


def iris() -> tuple[Array, Array]:
    return IRIS.data.astype(np.float32), IRIS.target


def diabetes() -> tuple[Array, Array]:
    return DIABETES.data.astype(np.float32), DIABETES.target


def holes(table: Array) -> Array:
    """The table with every seventh value missing."""
    holed = table.copy()
    holed.reshape(-1)[::7] = np.nan
    return holed


def _classified(estimator: Any, table: Any, items: Arrays, save: Callable[[Any], str], **more: Any) -> Example:
    answers = {"label": estimator.predict(table), "probabilities": estimator.predict_proba(table)}
    return Example(save(estimator), items, answers, **more)


def _skops(folder: Path) -> Callable[[Any], str]:
    def save(estimator: Any) -> str:
        skops.io.dump(estimator, folder / "model.skops")
        return "model.skops"

    return save


def forest(folder: Path) -> Example:
    table, labels = iris()
    return _classified(
        RandomForestClassifier(20, random_state=0).fit(table, labels), table, {"X": table}, _skops(folder)
    )


def named_classes(folder: Path) -> Example:
    table, labels = iris()
    names = IRIS.target_names[labels]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(table, names)
    return _classified(pipeline, table, {"X": table}, _skops(folder))


def boosted(folder: Path) -> Example:
    table, labels = cancer()
    return _classified(
        GradientBoostingClassifier(random_state=0).fit(table, labels), table, {"X": table}, _skops(folder)
    )


def margins(folder: Path) -> Example:
    table, labels = iris()
    estimator = make_pipeline(StandardScaler(), LinearSVC(random_state=0)).fit(table, labels)
    answers = {"label": estimator.predict(table), "probabilities": estimator.decision_function(table)}
    return Example(_skops(folder)(estimator), {"X": table}, answers)


def two_margins(folder: Path) -> Example:
    table, labels = cancer()
    estimator = make_pipeline(StandardScaler(), LinearSVC(random_state=0)).fit(table, labels)
    return Example(_skops(folder)(estimator), {"X": table}, {"label": estimator.predict(table)})


def two_kernels(folder: Path) -> Example:
    table, labels = cancer()
    estimator = make_pipeline(StandardScaler(), SVC()).fit(table, labels)
    return Example(_skops(folder)(estimator), {"X": table}, {"label": estimator.predict(table)})


def kernel(folder: Path) -> Example:
    table, labels = iris()
    estimator = SVC(decision_function_shape="ovr").fit(table, labels)
    return Example(_skops(folder)(estimator), {"X": table}, {"label": estimator.predict(table)})


def numbers(folder: Path) -> Example:
    table, targets = diabetes()
    estimator = make_pipeline(StandardScaler(), Ridge()).fit(table, targets)
    return Example(_skops(folder)(estimator), {"X": table}, {"variable": estimator.predict(table)[:, None]})


def missing(folder: Path) -> Example:
    table, targets = diabetes()
    table = holes(table)
    estimator = HistGradientBoostingRegressor(max_iter=30, random_state=0).fit(table, targets)
    return Example(_skops(folder)(estimator), {"X": table}, {"variable": estimator.predict(table)[:, None]})


def clusters(folder: Path) -> Example:
    table, _ = iris()
    estimator = KMeans(3, random_state=0, n_init=1).fit(table)
    answers = {"label": estimator.predict(table), "scores": estimator.transform(table)}
    return Example(_skops(folder)(estimator), {"X": table}, answers)


def scaler(folder: Path) -> Example:
    table, _ = iris()
    estimator = StandardScaler().fit(table)
    return Example(_skops(folder)(estimator), {"X": table}, {"variable": estimator.transform(table)})


def table_of_people() -> tuple[pandas.DataFrame, Array]:
    random = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "age": random.uniform(18, 80, 300).astype(np.float32),
            "city": CITIES[random.integers(0, 3, 300)].astype(object),
            "income": random.normal(50, 9, 300).astype(np.float32),
        }
    )
    return frame, ((frame["age"] > 40) ^ (frame["city"] == "Rome")).to_numpy().astype(np.int64)


def columns(folder: Path) -> Example:
    """A pipeline over named columns, one of them text: an input for each column."""
    frame, labels = table_of_people()
    parts = ColumnTransformer(
        [("numbers", StandardScaler(), ["age", "income"]), ("city", OneHotEncoder(handle_unknown="ignore"), ["city"])]
    )
    pipeline = make_pipeline(parts, GradientBoostingClassifier(random_state=0)).fit(frame, labels)
    items = {name: frame[name].to_numpy().astype("U" if name == "city" else np.float32) for name in frame}
    return _classified(pipeline, frame, items, _skops(folder))


def numbers_by_name(folder: Path) -> Example:
    """Fitted with named columns, all of them numbers, and items that have these names."""
    frame, labels = table_of_people()
    frame = frame[["age", "income"]]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, labels)
    return _classified(pipeline, frame, {name: frame[name].to_numpy() for name in frame}, _skops(folder))


def texts(folder: Path) -> Example:
    words = np.array(["good wine", "bad cheese", "good cheese", "awful day", "fine day", "bad wine"] * 10)
    labels = np.array([1, 0, 1, 0, 1, 0] * 10)
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(words, labels)
    return _classified(pipeline, words, {"X": words}, _skops(folder))


def pickled(folder: Path) -> Example:
    table, labels = iris()
    estimator = RandomForestClassifier(10, random_state=0).fit(table, labels)

    def save(estimator: Any) -> str:
        joblib.dump(estimator, folder / "model.joblib", compress=3)
        return "model.joblib"

    return _classified(estimator, table, {"X": table}, save, trusted=True)


def xgboost_in_a_pipeline(folder: Path) -> Example:
    table, labels = cancer()
    pipeline = make_pipeline(StandardScaler(), xgboost.XGBClassifier(n_estimators=20, random_state=0)).fit(
        table, labels
    )

    def save(estimator: Any) -> str:
        joblib.dump(estimator, folder / "model.pkl")
        return "model.pkl"

    return _classified(pipeline, table, {"X": table}, save, trusted=True)


SCIKIT_LEARN = (
    forest, named_classes, boosted, margins, two_margins, kernel, two_kernels, numbers, missing, clusters, scaler, columns, numbers_by_name, texts,
    pickled, xgboost_in_a_pipeline,
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- boosted trees


def _xgb(folder: Path, estimator: Any, table: Array, answers: Arrays, file: str = "model.ubj") -> Example:
    estimator.save_model(folder / file)
    return Example(file, {"X": table}, answers)


def xgb_two(folder: Path) -> Example:
    table, labels = cancer()
    estimator = xgboost.XGBClassifier(n_estimators=30, random_state=0).fit(table, labels)
    return _xgb(folder, estimator, table, _xgb_answers(estimator, table))


def xgb_three(folder: Path) -> Example:
    table, labels = iris()
    estimator = xgboost.XGBClassifier(n_estimators=20, random_state=0).fit(table, labels)
    return _xgb(folder, estimator, table, _xgb_answers(estimator, table), "model.json")


def xgb_number(folder: Path) -> Example:
    table, targets = diabetes()
    estimator = xgboost.XGBRegressor(n_estimators=20, random_state=0).fit(table, targets)
    return _xgb(folder, estimator, table, {"variable": estimator.predict(table)[:, None]})


def xgb_missing(folder: Path) -> Example:
    table, labels = cancer()
    table = holes(table)
    estimator = xgboost.XGBClassifier(n_estimators=30, random_state=0).fit(table, labels)
    return _xgb(folder, estimator, table, _xgb_answers(estimator, table))


def xgb_count(folder: Path) -> Example:
    table, targets = diabetes()
    estimator = xgboost.XGBRegressor(n_estimators=20, objective="count:poisson", random_state=0).fit(table, targets)
    return _xgb(folder, estimator, table, {"variable": estimator.predict(table)[:, None]})


def xgb_booster(folder: Path) -> Example:
    """Trained with xgboost.train, on named columns."""
    table, labels = cancer()
    names = [str(name).replace(" ", "_") for name in CANCER.feature_names]
    data = xgboost.DMatrix(table, labels, feature_names=names)
    booster = xgboost.train({"objective": "binary:logistic", "seed": 0}, data, 20)
    booster.save_model(folder / "model.ubj")
    answer = booster.predict(data)
    return Example(
        "model.ubj",
        {"X": table},
        {"label": (answer > 0.5).astype(np.int64), "probabilities": np.column_stack([1 - answer, answer])},
    )


def _xgb_answers(estimator: Any, table: Array) -> Arrays:
    return {"label": estimator.predict(table), "probabilities": estimator.predict_proba(table)}


def _lgb(folder: Path, table: Array, labels: Array, **parameters: Any) -> tuple[Any, str]:
    data = lightgbm.Dataset(
        table, labels, **({"categorical_feature": [0]} if parameters.pop("categories", False) else {})
    )
    booster = lightgbm.train({"verbosity": -1, "seed": 0, "num_leaves": 15, **parameters}, data, 25)
    booster.save_model(folder / "model.txt")
    return booster, "model.txt"


def lgb_two(folder: Path) -> Example:
    table, labels = cancer()
    booster, file = _lgb(folder, table, labels, objective="binary")
    answer = booster.predict(table)
    return Example(
        file, {"X": table}, {"label": (answer > 0.5) * 1, "probabilities": np.column_stack([1 - answer, answer])}
    )


def lgb_three(folder: Path) -> Example:
    table, labels = iris()
    booster, file = _lgb(folder, table, labels, objective="multiclass", num_class=3)
    answer = booster.predict(table)
    return Example(file, {"X": table}, {"label": answer.argmax(axis=1), "probabilities": answer})


def lgb_number(folder: Path) -> Example:
    table, targets = diabetes()
    booster, file = _lgb(folder, table, targets, objective="regression")
    return Example(file, {"X": table}, {"variable": booster.predict(table)[:, None]})


def lgb_quantile(folder: Path) -> Example:
    table, targets = diabetes()
    booster, file = _lgb(folder, table, targets, objective="quantile", alpha=0.9)
    return Example(file, {"X": table}, {"variable": booster.predict(table)[:, None]})


def lgb_missing(folder: Path) -> Example:
    table, targets = diabetes()
    table = holes(table)
    booster, file = _lgb(folder, table, targets, objective="regression")
    return Example(file, {"X": table}, {"variable": booster.predict(table)[:, None]})


def lgb_categories(folder: Path) -> Example:
    random = np.random.default_rng(0)
    table = np.column_stack([random.integers(0, 12, 600), random.normal(size=600)]).astype(np.float32)
    targets = np.where(np.isin(table[:, 0], [1, 4, 7]), 3.0, -1.0) + table[:, 1]
    booster, file = _lgb(folder, table, targets, objective="regression", categories=True)
    return Example(file, {"X": table}, {"variable": booster.predict(table)[:, None]})


def _cat(folder: Path, model: Any, table: Array, labels: Array) -> Any:
    model.fit(table, labels, verbose=False)
    model.save_model(folder / "model.cbm")
    return model


def cat_two(folder: Path) -> Example:
    table, labels = cancer()
    model = _cat(
        folder,
        catboost.CatBoostClassifier(iterations=30, depth=4, random_seed=0, allow_writing_files=False),
        table,
        labels,
    )
    answers = {"label": model.predict(table), "probabilities": model.predict_proba(table)}
    return Example("model.cbm", {"X": table}, answers)


def cat_three(folder: Path) -> Example:
    table, labels = iris()
    names = IRIS.target_names[labels]
    model = _cat(
        folder,
        catboost.CatBoostClassifier(iterations=20, depth=4, random_seed=0, allow_writing_files=False),
        table,
        names,
    )
    answers = {"label": model.predict(table).reshape(-1), "probabilities": model.predict_proba(table)}
    return Example("model.cbm", {"X": table}, answers)


def cat_number(folder: Path) -> Example:
    table, targets = diabetes()
    model = _cat(
        folder,
        catboost.CatBoostRegressor(iterations=30, depth=4, random_seed=0, allow_writing_files=False),
        table,
        targets,
    )
    return Example("model.cbm", {"X": table}, {"predictions": model.predict(table)[:, None]})


XGBOOST = (xgb_two, xgb_three, xgb_number, xgb_missing, xgb_count, xgb_booster)
LIGHTGBM = (lgb_two, lgb_three, lgb_number, lgb_quantile, lgb_missing, lgb_categories)
CATBOOST = (cat_two, cat_three, cat_number)
