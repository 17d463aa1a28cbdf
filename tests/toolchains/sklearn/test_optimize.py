"""`fettle optimize` of a file of each framework, from the command line to a published artifact that answers as the framework does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.toolchains.optimizing import answers, optimized
from tests.toolchains.sklearn import examples
from tests.toolchains.sklearn.examples import Example

MAKES = [
    (examples.columns, "ScikitLearn"),
    (examples.pickled, "ScikitLearn"),
    (examples.xgb_missing, "XGBoost"),
    (examples.lgb_three, "LightGBM"),
    (examples.cat_two, "CatBoost"),
]


@pytest.mark.parametrize(("make", "format"), MAKES, ids=[make.__name__ for make, _ in MAKES])
def test_a_file_becomes_an_artifact(tmp_path: Path, make: Callable[[Path], Example], format: str) -> None:
    example = make(tmp_path)
    status = optimized(tmp_path, example.file, example.items, *(["--trusted"] if example.trusted else []))
    assert status["source"]["format"] == format
    found = answers(tmp_path, status, example.items)
    for name, wanted in example.answers.items():
        np.testing.assert_allclose(found[name].astype(np.float64), wanted, rtol=1e-3, atol=1e-4)
