"""Labels of tasks: read as the spec says, and refused where they are meant otherwise or belong to other items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.measure.task_answers import (
    RANDOM,
    Answers,
    fitted,
    reference,
    scenes,
    softmax,
    steps,
    yolo,
)

from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.measure.tasks.boxes import Boxes
from fettle.store.arrays import Array

ITEMS = 60
LETTERS = "-abcdefg"


def detector(items: int = ITEMS) -> tuple[Answers, list[Boxes]]:
    truths = [Boxes(t.corners * 4, np.maximum(t.scores, 0.3), t.classes) for t, _ in scenes(items)]
    return [{"y": yolo(truth).T} for truth in truths], truths


def box_labels(truths: list[Boxes], corners: Callable[[Array], Array] = lambda each: each, first: int = 0) -> Array:
    """[items, 10, 5]; classes are counted from `first`."""
    labels = np.full((len(truths), 10, 5), -1.0, np.float32)
    for row, truth in zip(labels, truths, strict=True):
        row[: len(truth.scores)] = np.concatenate([corners(truth.corners), truth.classes[:, None] + first], axis=1)
    return labels


def masks(items: int = ITEMS, shape: tuple[int, int] = (32, 32), classes: int = 3) -> tuple[Answers, Array]:
    """A class for each place in blocks, and the right labels."""
    random = np.random.default_rng(RANDOM)
    small = random.integers(0, classes, (items, shape[0] // 8, shape[1] // 8))
    labels = small.repeat(8, axis=1).repeat(8, axis=2)
    return [{"y": softmax(8 * np.eye(classes)[mask], -1).transpose(2, 0, 1)} for mask in labels], labels


def spelled(items: int = ITEMS) -> tuple[Answers, Array]:
    """CTC scores of seven letters, and the numbers of the letters."""
    random = np.random.default_rng(RANDOM)
    numbers = random.integers(1, len(LETTERS), (items, 12))
    texts = ["".join(f"-{LETTERS[number]}" for number in row) for row in numbers]
    return [{"y": steps(text, LETTERS)} for text in texts], numbers


def vectors(items: int = ITEMS) -> tuple[Answers, Array]:
    random = np.random.default_rng(RANDOM)
    labels = random.integers(0, 8, items)
    made = random.normal(size=(8, 16))[labels] + random.normal(0, 0.3, (items, 16))
    return [{"y": vector.astype(np.float32)} for vector in made], labels


# ----------------------------------------------------------------------------------------------------- labels of other items

TASKS: dict[str, tuple[Metric, Callable[[int], tuple[Answers, Array]]]] = {
    "boxes": (Metric.DETECTION, lambda items: (lambda found: (found[0], box_labels(found[1])))(detector(items))),
    "masks": (Metric.SEGMENTATION, masks),
    "texts": (Metric.TEXT, spelled),
    "vectors": (Metric.EMBEDDING, vectors),
}


@pytest.mark.parametrize("task", TASKS)
def test_labels_that_belong_to_other_items_are_refused_in_nineteen_of_twenty_orders(task: str) -> None:
    metric, made = TASKS[task]
    answers, labels = made(40)
    assert reference(metric, answers, labels).value().value > 0.8
    random = np.random.default_rng(RANDOM)
    accepted = 0
    for _ in range(20):
        try:
            reference(metric, answers, labels[random.permutation(len(labels))])
            accepted += 1
        except DataError:
            continue
    assert accepted <= 3  # 1 is expected


def test_labels_of_other_items_are_refused_for_large_masks_too() -> None:
    answers, labels = masks(60, shape=(256, 256), classes=2)
    assert reference(Metric.SEGMENTATION, answers, labels).value().value == 1
    with pytest.raises(DataError, match="no better than with their labels in 20 other orders"):
        reference(Metric.SEGMENTATION, answers, np.roll(labels, 7, axis=0))


def test_labels_that_lie_class_by_class_are_not_taken_for_those_of_other_items() -> None:
    answers, labels = vectors(600)
    order = np.argsort(labels, kind="stable")
    sorted_answers = [answers[item] for item in order]
    assert reference(Metric.EMBEDDING, sorted_answers, labels[order]).value().value > 0.8


# ------------------------------------------------------------------------------------------------------- labels read otherwise


def corners_of(order: str) -> Callable[[Array], Array]:
    """Left, top, right and bottom in another way of writing boxes."""
    ways: dict[str, Callable[[Array], Array]] = {
        "top first": lambda each: each[:, [1, 0, 3, 2]],
        "centre and size": lambda each: np.concatenate(
            [(each[:, :2] + each[:, 2:]) / 2, each[:, 2:] - each[:, :2]], axis=1
        ),
        "corner and size": lambda each: np.concatenate([each[:, :2], each[:, 2:] - each[:, :2]], axis=1),
    }
    return ways[order]


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ("top first", "read as top, left, bottom, right"),
        ("centre and size", "not as centre and size"),
        ("corner and size", "not as centre and size"),
    ],
)
def test_boxes_whose_numbers_are_in_another_order_are_refused_by_name(order: str, told: str) -> None:
    answers, truths = detector()
    with pytest.raises(DataError, match=told):
        reference(Metric.DETECTION, answers, box_labels(truths, corners_of(order)))


@pytest.mark.parametrize("shape", [(16, 32), (32, 32)], ids=["long", "square"])
def test_masks_that_lie_on_their_side_are_refused_by_name(shape: tuple[int, int]) -> None:
    answers, labels = masks(shape=shape)
    assert reference(Metric.SEGMENTATION, answers, labels).value().value == 1
    with pytest.raises(DataError, match="transposed"):
        reference(Metric.SEGMENTATION, answers, labels.transpose(0, 2, 1))


def swapped(numbers: Array, one: int, other: int) -> Array:
    return np.where(numbers == one, other, np.where(numbers == other, one, numbers))


@pytest.mark.parametrize("task", ["boxes", "masks", "texts"])
def test_two_classes_whose_names_are_swapped_are_refused_by_name(task: str) -> None:
    metric, made = TASKS[task]
    answers, labels = made(ITEMS)
    if task == "boxes":
        labels[..., 4] = swapped(labels[..., 4], 1, 2)
    else:
        labels = swapped(labels, 1, 2)
    with pytest.raises(DataError, match=r"number the classes differently from the model: [12] is answered with"):
        reference(metric, answers, labels)


# ------------------------------------------------------------------------------------- what the spec says of labels


def fills(labels: Array, value: int, count: int = 4) -> Array:
    """Numbers of characters with `count` more, that mean nothing."""
    return np.concatenate([labels, np.full((len(labels), count), value)], axis=1)


def crowded(value: float) -> Array:
    """Boxes beside others that do not count."""
    labels = box_labels(detector()[1])
    more = np.tile(np.array([0, 0, 9, 9, value], np.float32), (len(labels), 2, 1))
    return np.concatenate([labels, more], axis=1)


def bordered(labels: Array, value: int) -> Array:
    found = labels.copy()
    found[:, :3] = value
    return found


READ: dict[str, tuple[str, Callable[[], Array], dict[str, Any]]] = {
    "boxes counted from 1": ("boxes", lambda: box_labels(detector()[1], first=1), {"label_offset": 1}),
    "boxes to ignore": ("boxes", lambda: crowded(255), {"ignore_label": 255}),
    "boxes that fill up": ("boxes", lambda: crowded(-1), {}),
    "boxes of named classes": ("boxes", lambda: box_labels(detector()[1]), {"classes": ("a", "b", "c")}),
    "masks counted from 1": ("masks", lambda: masks()[1] + 1, {"label_offset": 1}),
    "masks with a border": ("masks", lambda: bordered(masks()[1], 255), {"ignore_label": 255}),
    "masks with the border of training code": ("masks", lambda: bordered(masks()[1], -100), {}),
    "masks of floats": ("masks", lambda: masks()[1].astype(np.float32), {}),
    "masks in a row": ("masks", lambda: masks()[1].reshape(ITEMS, -1), {}),
    "masks of named classes": ("masks", lambda: masks()[1], {"classes": ("a", "b", "c")}),
    "texts filled up with the blank": ("texts", lambda: fills(spelled()[1], 0), {}),
    "texts filled up with -1": ("texts", lambda: fills(spelled()[1], -1), {}),
    "texts filled up by training code": ("texts", lambda: fills(spelled()[1], -100), {}),
    "texts filled up with what is ignored": ("texts", lambda: fills(spelled()[1], 99), {"ignore_label": 99}),
    "texts counted from 1": ("texts", lambda: spelled()[1] + 1, {"label_offset": 1}),
    "texts of named characters": ("texts", lambda: spelled()[1], {"classes": ("", *LETTERS[1:])}),
}


@pytest.mark.parametrize("labels", READ)
def test_labels_are_read_as_the_spec_says(labels: str) -> None:
    task, given, spec = READ[labels]
    metric, made = TASKS[task]
    found = reference(metric, made(ITEMS)[0], given(), **spec).value().value
    assert found == pytest.approx(1, abs=0.01)


REFUSED: dict[str, tuple[str, Callable[[], Array], dict[str, Any], str]] = {
    "boxes of a class too many": ("boxes", lambda: crowded(3), {}, "labels 3 are not among the 3 classes"),
    "boxes below the first class": (
        "boxes",
        lambda: box_labels(detector()[1]),
        {"label_offset": 1},
        r"labels 0 are not among the 3 classes.* from 1 \(labelOffset\)",
    ),
    "boxes of half a class": ("boxes", lambda: box_labels(detector()[1]) + 0.5, {}, "the number of the class"),
    "boxes of too many names": (
        "boxes",
        lambda: box_labels(detector()[1]),
        {"classes": ("a", "b")},
        "names 2 classes.*for 3",
    ),
    "masks of a class too many": (
        "masks",
        lambda: bordered(masks()[1], 255),
        {},
        "labels 255 are not among the 3 classes.*ignoreLabel",
    ),
    "masks below the first class": (
        "masks",
        lambda: masks()[1],
        {"label_offset": 1},
        "labels 0 are not among the 3 classes",
    ),
    "masks of fractions": ("masks", lambda: masks()[1] + 0.5, {}, "whole number for each of 1024 places"),
    "masks of too few names": ("masks", lambda: masks()[1], {"classes": ("a",)}, "names 1 classes.*for 3"),
    "texts of a character too many": (
        "texts",
        lambda: fills(spelled()[1], 77),
        {},
        "labels 77 are not among the 8 characters",
    ),
    "texts of too few names": ("texts", lambda: spelled()[1], {"classes": ("", "a")}, "names 2 classes.*for 8"),
    "texts with an offset": (
        "texts",
        lambda: np.full(ITEMS, "abc", object),
        {"classes": ("", *LETTERS[1:]), "label_offset": 1},
        "labels are texts: leave out labelOffset and ignoreLabel",
    ),
}


@pytest.mark.parametrize("labels", REFUSED)
def test_labels_that_say_something_else_are_refused_with_what_to_do(labels: str) -> None:
    task, given, spec, told = REFUSED[labels]
    metric, made = TASKS[task]
    with pytest.raises(DataError, match=told):
        reference(metric, made(ITEMS)[0], given(), **spec)


def test_names_of_characters_are_refused_where_the_model_answers_texts() -> None:
    answers = [{"y": np.array([text], object)} for text in ("some", "text")]
    with pytest.raises(DataError, match=r"the output y holds texts: leave out data\.evaluation\.classes"):
        fitted(Metric.TEXT, answers, classes=("a", "b"))


# ---------------------------------------------------------------------------------------------------------------- whole masks


def test_a_class_that_only_later_items_show_is_a_class_of_a_mask_of_ints() -> None:
    answers = [{"y": labels} for labels in masks()[1]]
    answers[50]["y"][:6] = 9
    labels = np.stack([answer["y"] for answer in answers])
    assert reference(Metric.SEGMENTATION, answers).value().value == 1
    assert reference(Metric.SEGMENTATION, answers, labels).value().value == 1


def test_a_mask_of_bools_is_foreground_or_not() -> None:
    labels = masks(classes=2)[1]
    answers = [{"y": mask == 1} for mask in labels]
    original = reference(Metric.SEGMENTATION, answers, labels == 1)
    assert original.value().value == 1 and "foreground" in str(original.taken_for())
