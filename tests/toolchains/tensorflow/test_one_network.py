"""One and the same network as Keras, TensorFlow and TFLite save it: the same answers through each, those that ONNX and TorchScript give
(tests/unit/optimizer/prepare/test_one_network.py)."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from tests.data import one_network
from tests.toolchains.tensorflow import examples
from tests.toolchains.tensorflow.test_sources import FORMATS, answers
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.source import SourceSpec


def network() -> keras.Model:
    """The network in Keras."""
    shape = (one_network.SIZE, one_network.SIZE, one_network.COLORS)
    model = keras.Sequential(
        [
            keras.Input(shape, name=one_network.INPUT),
            layers.Conv2D(one_network.CHANNELS, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(one_network.CLASSES, activation="softmax"),
        ]
    )
    model.set_weights([one_network.KERNEL, one_network.KERNEL_BIAS, one_network.DENSE, one_network.DENSE_BIAS])
    return model


@pytest.mark.parametrize("saver", examples.SAVERS)
def test_the_answers_are_those_of_the_network(bench: Workbench, saver: str) -> None:
    file = examples.SAVERS[saver](network(), bench.folder)
    name = f"serving_default_{one_network.INPUT}:0" if saver == "TFLite" else one_network.INPUT
    evaluation = EvaluationSpec(uri=bench.data("items", **{name: one_network.PICTURES}))
    report = bench.prepare(bench.task(source=SourceSpec(uri=f"pvc://claim/{file}"), evaluation=evaluation))
    assert report.source.format == FORMATS.get(saver, saver)
    (found,) = answers(bench, report, {name: one_network.PICTURES}).values()
    np.testing.assert_allclose(found, one_network.answers(), rtol=1e-4, atol=1e-5)
