"""A Keras model that is in memory."""

from __future__ import annotations

from collections.abc import Callable

import keras
import pytest
from tests.toolchains.tensorflow import examples
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import FormatName
from fettle.errors import UsageError
from fettle.library.models import written


def test_a_model_in_memory_is_handed_in_as_its_file(bench: Workbench) -> None:
    items = examples.pictures()
    file = written(examples.convolutional(), [items], bench.folder)
    assert file.inputs == ("image",)
    evaluation = EvaluationSpec(uri=bench.data("items", image=items))
    report = bench.prepare(bench.task(source=SourceSpec(uri="pvc://claim/model.keras"), evaluation=evaluation))
    assert report.source.format == FormatName.KERAS


class Own(keras.Model):  # type: ignore[misc]
    """A class of somebody's own, whose inputs Keras does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.layers.Dense(2)

    def call(self, data: object) -> object:
        """As the layer."""
        return self.inner(data)


def test_of_a_class_of_ones_own_the_inputs_are_not_known(bench: Workbench) -> None:
    model = Own()
    model(keras.ops.ones((1, 3)))
    assert written(model, [], bench.folder).inputs == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: keras.Sequential([keras.layers.Dense(2)]), "has no weights yet: call it on an item first"),
        (lambda: keras.layers.Dense(2), "expected a path"),
    ],
    ids=["not built", "a layer"],
)
def test_what_of_keras_is_no_model_yet_is_refused(bench: Workbench, make: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        written(make(), [], bench.folder)
