"""A model of transformers that is in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.toolchains.transformers import examples
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import EvaluationSpec
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import FormatName
from fettle.library.models import written


def test_a_model_in_memory_is_handed_in_as_its_directory(bench: Workbench) -> None:
    example = examples.EXAMPLES["BertForSequenceClassification"]
    file = written(example.model(example.config()).eval(), [], bench.folder)
    assert (file.name, Path(file.path).parent) == ("BertForSequenceClassification", bench.folder)
    evaluation = EvaluationSpec(uri=bench.data("items", **example.items(np.random.default_rng(0))))
    report = bench.prepare(bench.task(source=SourceSpec(uri="pvc://claim/model"), evaluation=evaluation))
    assert report.source.format == FormatName.HUGGING_FACE
