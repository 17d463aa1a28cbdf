"""A Keras model that is in memory."""

from __future__ import annotations

from tests.toolchains.tensorflow import examples
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.optimizedmodel import SourceSpec
from fettle.api.vocabulary import FormatName
from fettle.library.models import written


def test_a_model_in_memory_is_handed_in_as_its_file(bench: Workbench) -> None:
    items = examples.pictures()
    file = written(examples.convolutional(), [items], bench.folder)
    assert file.inputs == ("image",)
    evaluation = EvaluationSpec(uri=bench.data("items", image=items))
    report = bench.prepare(bench.task(source=SourceSpec(uri="pvc://claim/model.keras"), evaluation=evaluation))
    assert report.source.format == FormatName.KERAS
