"""`fettle optimize` of one network in every format, from the command line to a published artifact that answers as Keras does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.toolchains.optimizing import answers, optimized
from tests.toolchains.tensorflow import examples


@pytest.mark.parametrize("saver", examples.SAVERS)
def test_a_file_becomes_an_artifact(tmp_path: Path, saver: str) -> None:
    model = examples.convolutional()
    file = examples.SAVERS[saver](model, tmp_path)
    name = "serving_default_image:0" if saver == "TFLite" else "image"
    items = {name: examples.pictures()}
    status = optimized(tmp_path, file, items)
    (found,) = answers(tmp_path, status, items).values()
    # The winner may be int8: then it agrees with the original, and is not equal to it.
    exact = next(row["exact"] for row in status["candidates"] if row["name"] == status["artifacts"][0]["candidate"])
    wanted = model.predict(items[name], verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 if exact else 0.1)
