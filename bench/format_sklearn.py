"""Estimators and boosted trees that others fitted, out of wheels. `bench/format_cases.py` imports this late.

Those that a package keeps as a pickle of its framework's object are saved in the framework's own format, as their users would hand them in.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import mlflow.lightgbm
import numpy as np
from bench.format_case import WHEELS, Answers, Array, Arrays, Brought
from bench.wheels import unpack

ITEMS = 200
WHO = ("you are", "she is", "this film is", "my dog is", "they were", "your plan is", "the food was", "he was never")
HOW = ("a damn", "such a", "some", "the worst", "one stupid", "a kind", "my dear", "a filthy")
WHAT = ("idiot", "friend", "piece of crap", "joy", "surprise")


def _loaded(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another version saved it
        return joblib.load(path)


def _classes(estimator: Any) -> Callable[[Arrays], Answers]:
    return lambda item: {
        "label": estimator.predict(item["X"]),
        "probabilities": estimator.predict_proba(item["X"]),
    }


def _between(bounds: Sequence[tuple[float, float]]) -> Array:
    """Rows whose columns have values between these."""
    low, high = np.array(bounds).T
    return np.random.default_rng(0).uniform(low, high, (ITEMS, len(low))).astype(np.float32)


def profanity(folder: Path, work: Path) -> Brought:
    """Whether a sentence, of which the words are counted, is offensive: a calibrated linear machine."""
    home = unpack(WHEELS["alt-profanity-check"], work) / "profanity_check" / "data"
    shutil.copy(home / "model.joblib", folder)
    counter, model = _loaded(home / "vectorizer.joblib"), _loaded(home / "model.joblib")
    table = counter.transform([" ".join(words) for words in product(WHO, HOW, WHAT)]).toarray()
    return Brought("model.joblib", {"X": table.astype(np.float32)}, _classes(model), source={"trusted": True})


def strength(folder: Path, work: Path) -> Brought:
    """The strength ratio at which a structure fails: a number of five, scaled to a mean of 0."""
    booster = _loaded(unpack(WHEELS["xgb-rhomut"], work) / "xgbrhomut" / "models" / "R_xgb.sav")
    booster.save_model(folder / "model.ubj")
    table = np.random.default_rng(0).normal(size=(ITEMS, booster.num_features())).astype(np.float32)
    return Brought("model.ubj", {"X": table}, lambda item: {"variable": booster.inplace_predict(item["X"])})


def _stages(work: Path, channels: str) -> tuple[Any, Arrays]:
    home = unpack(WHEELS["yasa"], work) / "yasa" / "classifiers"
    booster = _loaded(home / f"clf_{channels}_lgb_0.5.0.joblib").booster_
    dump = booster.dump_model(num_iteration=1)
    infos = [dump["feature_infos"].get(name, {}) for name in dump["feature_names"]]
    bounds = [(info.get("min_value", 0.0), info.get("max_value", 1.0)) for info in infos]
    return booster, {"X": _between(bounds)}


def _boosted(booster: Any) -> Callable[[Arrays], Answers]:
    def answers(item: Arrays) -> Answers:
        found = booster.predict(item["X"])
        return {"label": found.argmax(axis=1), "probabilities": found}

    return answers


def stages(folder: Path, work: Path) -> Brought:
    """The stage of sleep by features of EEG, EOG and EMG, five classes."""
    booster, items = _stages(work, "eeg+eog+emg")
    booster.save_model(folder / "model.txt")
    return Brought("model.txt", items, _boosted(booster))


def stages_mlflow(folder: Path, work: Path) -> Brought:
    """The same by features of EEG alone, as MLflow saves it."""
    booster, items = _stages(work, "eeg")
    mlflow.lightgbm.save_model(booster, str(folder / "model"), pip_requirements=[])
    return Brought("model", items, _boosted(booster))


def interactions(folder: Path, work: Path) -> Brought:
    """Whether a non-coding RNA and a protein interact, by the composition of both."""
    model = _loaded(unpack(WHEELS["lncrnapi"], work) / "lncrnapi" / "models" / "catboost_DACC_SPC.joblib")
    model.save_model(folder / "model.cbm")
    borders = model.get_borders()
    bounds = [(min(one), max(one)) if one else (0.0, 1.0) for _, one in sorted(borders.items())]
    return Brought("model.cbm", {"X": _between(bounds)}, _classes(model))
