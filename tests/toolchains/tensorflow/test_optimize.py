"""`fettle optimize` of one network in every format, from the command line to a published artifact that answers as Keras does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.toolchains.optimizing import answers, optimized, served
from tests.toolchains.tensorflow import examples

pytestmark = pytest.mark.timeout(900)  # whole runs, each with a server at its end


@pytest.mark.parametrize("saver", [saver for saver in examples.SAVERS if saver != "TFLite"])
def test_a_file_becomes_an_artifact(tmp_path: Path, saver: str) -> None:
    model = examples.convolutional()
    file = examples.SAVERS[saver](model, tmp_path)
    items = {"image": examples.pictures()}
    status = optimized(tmp_path, file, items)
    (found,) = answers(tmp_path, status, items).values()
    # The winner may be int8: then it agrees with the original, and is not equal to it.
    exact = next(row["exact"] for row in status["candidates"] if row["name"] == status["artifacts"][0]["candidate"])
    wanted = model.predict(items["image"], verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 if exact else 0.1)


def test_a_tflite_file_is_served_as_it_came(tmp_path: Path) -> None:
    model = examples.convolutional()
    items = {"serving_default_image:0": examples.pictures()}
    status = optimized(tmp_path, examples.save_tflite(model, tmp_path), items, runtime="litert")
    assert [(row["runtime"], row["candidate"]) for row in status["artifacts"]] == [("litert", "original")]
    (found,) = served(tmp_path, status, items).values()
    np.testing.assert_allclose(found, model.predict(examples.pictures(), verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("saver", ["Keras", "SavedModel"])
def test_a_model_of_tensorflow_is_converted_for_litert_and_served(tmp_path: Path, saver: str) -> None:
    model = examples.convolutional()
    items = {"image": examples.pictures()}
    status = optimized(tmp_path, examples.SAVERS[saver](model, tmp_path), items, runtime="litert")
    rows = {row["name"]: row for row in status["candidates"]}
    assert rows["float32-litert"]["exact"], "the answers of the original"
    (artifact,) = status["artifacts"]
    assert artifact["runtime"] == "litert"
    (found,) = served(tmp_path, status, items).values()
    wanted = model.predict(items["image"], verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 if rows[artifact["candidate"]]["exact"] else 0.1)
