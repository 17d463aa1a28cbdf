"""Training items never certify: what evaluation has as well is left out, by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.data import models
from tests.unit.optimizer.prepare.workbench import Workbench

from fettle.api.data import DataSpec, EvaluationSpec, TrainingSpec
from fettle.errors import DataError

ITEMS = np.random.default_rng(0).normal(0, 1, (120, 8)).astype(np.float32)
LABELS = np.arange(120) % 3


def prepared(tmp_path: Path, given: slice, **training: object) -> tuple[Workbench, DataSpec]:
    """A claim with 60 evaluation items, and training items of which some may be among them."""
    bench = Workbench(tmp_path)
    bench.put(models.hard_swish())
    evaluation = EvaluationSpec(uri=bench.data("evaluation", x=ITEMS[:60]))
    uri = bench.data("training", x=ITEMS[given], labels=LABELS[given], weight=LABELS[given])
    return bench, DataSpec(evaluation=evaluation, training=TrainingSpec(uri=uri, **training))  # type: ignore[arg-type]


def test_training_items_are_kept_with_their_labels_and_without_those_that_certify(tmp_path: Path) -> None:
    bench, data = prepared(tmp_path, slice(30, 120))
    report = bench.prepare(bench.task().model_copy(update={"data": data}))
    assert report.training is not None
    certifying = report.items.items
    assert certifying == 48, "a fifth of the evaluation items calibrates"
    shared = [note for note in report.notes if "training items are also evaluation items" in note]
    (note,) = shared
    left_out = int(note.split()[0])
    assert note == f"{left_out} of 90 training items are also evaluation items; they were not used for training"
    assert 0 < left_out <= 30
    assert report.training.items == 90 - left_out
    assert report.training.labelled


def test_of_items_that_are_all_evaluation_items_those_that_calibrate_are_left(tmp_path: Path) -> None:
    bench, data = prepared(tmp_path, slice(0, 60))
    report = bench.prepare(bench.task().model_copy(update={"data": data}))
    assert report.training is not None
    assert report.calibration is not None
    assert report.training.items == report.calibration.items == 12


@pytest.mark.parametrize("key", ["labels", "weight"])
def test_labels_lie_under_the_key_that_is_named(tmp_path: Path, key: str) -> None:
    bench, data = prepared(tmp_path, slice(60, 120), label_key=key)
    report = bench.prepare(bench.task().model_copy(update={"data": data}))
    assert report.training is not None
    assert (report.training.items, report.training.labelled) == (60, True)


def test_a_label_key_that_names_nothing_is_refused_and_not_trained_without_labels(tmp_path: Path) -> None:
    bench, data = prepared(tmp_path, slice(60, 120), label_key="lables")
    told = r"training\.npz: no array 'lables' \(data\.training\.labelKey\), found \['labels', 'weight'\]: set labelKey"
    with pytest.raises(DataError, match=told):
        bench.prepare(bench.task().model_copy(update={"data": data}))
    bench.data("training", x=ITEMS[60:])
    report = bench.prepare(bench.task().model_copy(update={"data": data}))
    assert report.training is not None and not report.training.labelled, "a file of nothing but inputs has no labels"


def test_the_same_items_are_not_prepared_twice_and_others_are(tmp_path: Path) -> None:
    bench, data = prepared(tmp_path, slice(60, 120))
    task = bench.task().model_copy(update={"data": data})
    first = bench.prepare(task)
    assert bench.prepare(task) == first
    bench.data("training", x=ITEMS[70:120], labels=LABELS[70:120])
    again = bench.prepare(task)
    assert again.training is not None
    assert again.training != first.training
    assert again.items == first.items


def test_training_items_of_another_shape_are_refused(tmp_path: Path) -> None:
    bench, data = prepared(tmp_path, slice(60, 120))
    bench.data("training", x=ITEMS[60:, :5])
    with pytest.raises(DataError, match=r"training\.npz: x: expected the shape \[items, 8\], found \[60, 5\]"):
        bench.prepare(bench.task().model_copy(update={"data": data}))
