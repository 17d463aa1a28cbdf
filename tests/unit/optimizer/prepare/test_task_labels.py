"""What is found out of a task's answers and labels before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.measure.task_answers import RANDOM, Answers, apart, evaluation, signature, softmax, yolo

from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.data.items import Items
from fettle.optimizer.data.split import Split
from fettle.optimizer.prepare.labels import Reading, read
from fettle.store.arrays import Array


def prepared(answers: Answers, labels: Array | None = None, metric: Metric = Metric.AUTO, **spec: Any) -> Reading:
    """Of a model that answers to each picture what it was given by number."""
    numbers = np.arange(len(answers), dtype=np.float32).reshape(-1, 1, 1, 1, 1)

    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array[None] for name, array in answers[int(given["image"].flat[0])].items()}

    items = Items({"image": np.broadcast_to(numbers, (len(answers), 1, 3, 2, 2))}, labels)
    return read(Split(None, items), signature(**answers[0]), evaluation(metric, **spec), run)


def masks(items: int = 60) -> tuple[Answers, Array]:
    random = np.random.default_rng(RANDOM)
    labels = random.integers(0, 3, (items, 4, 4)).repeat(8, axis=1).repeat(8, axis=2)
    return [{"y": softmax(8 * np.eye(3)[mask], -1).transpose(2, 0, 1)} for mask in labels], labels


def test_labels_of_other_items_are_refused_before_anything_is_built() -> None:
    answers, labels = masks()
    assert prepared(answers, labels, Metric.SEGMENTATION).metric == Metric.SEGMENTATION
    with pytest.raises(DataError, match="no better than with their labels in 20 other orders"):
        prepared(answers, np.roll(labels, 1, axis=0), Metric.SEGMENTATION)


def test_a_label_of_no_class_is_refused_before_anything_is_built() -> None:
    answers, labels = masks()
    labels[:, 0] = 255
    with pytest.raises(DataError, match="labels 255 are not among the 3 classes"):
        prepared(answers, labels, Metric.SEGMENTATION)
    assert prepared(answers, labels, Metric.SEGMENTATION, ignore_label=255).metric == Metric.SEGMENTATION


@pytest.mark.parametrize(("items", "some"), [(100, 8), (1000, 80)])
def test_items_with_something_to_find_are_counted_or_guessed_from_those_that_are_looked_at(
    items: int, some: int
) -> None:
    answers = [{"y": yolo(apart(item // 12 % 5 + 1 if item % 12 == 5 else 0)).T} for item in range(items)]
    found = prepared(answers, metric=Metric.DETECTION).informative
    assert found is not None
    if items == 100:
        assert found == some
    else:
        assert some <= found <= 2 * some  # what 256 of them allow


def test_answers_that_other_tasks_have_as_well_keep_accuracy_and_a_note_tells_what_would_judge_them() -> None:
    random = np.random.default_rng(RANDOM)
    answers = []
    for _ in range(40):
        tags = np.zeros(40, int)
        for place in (3, 14, 27):
            tags[place : place + int(random.integers(1, 3))] = random.integers(1, 5)
        answers.append({"y": softmax(6 * np.eye(5)[tags], -1)})
    found = prepared(answers)
    assert found.metric == Metric.ACCURACY
    (note,) = found.notes
    assert "data.evaluation.metric: Text" in note and "class 0 is the blank" in note


def test_what_is_recognized_says_so() -> None:
    answers, _ = masks()
    found = prepared(answers)
    assert found.metric == Metric.SEGMENTATION
    assert "judged by Segmentation" in found.notes[0] and "to change this, set data.evaluation.metric" in found.notes[0]
