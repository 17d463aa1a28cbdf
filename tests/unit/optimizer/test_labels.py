"""Which labels fit which answers, and what is told where they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fettle.api.data import EvaluationSpec
from fettle.api.labels import LabelForm
from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.labels.question import Answered
from fettle.optimizer.labels.reader import NOT_COUNTED, LabelReader
from fettle.optimizer.labels.readings import understand
from fettle.optimizer.measure.chance import Chance, refuse_chance
from fettle.optimizer.measure.metrics import Scores, ScoringRule
from fettle.store.arrays import Array

EYE = np.eye(4, dtype=np.float32)
SCORES = [EYE[2], EYE[0], EYE[3]]
SOFTMAX = [np.array([0.1, 0.1, 0.7, 0.1], np.float32)] * 3
YES = [np.array([0.7], np.float32), np.array([-0.2], np.float32), np.array([0.1], np.float32)]
NUMBERS = [np.array(2), np.array(0), np.array(3)]
TEXTS = [np.array("spam", object), np.array("ham", object), np.array("eggs", object)]
DIGITS = [np.array("2", object), np.array("0", object), np.array("3", object)]
TAGS = [EYE[[2, 0, 1]]] * 3  # three positions, four classes
MAPS = [np.zeros((4, 2, 5), np.float32)] * 3  # classes first
NAMES = ["a", "b", "c", "d"]


def spec(**fields: Any) -> EvaluationSpec:
    """An evaluation with these fields, named as users write them."""
    return EvaluationSpec.model_validate({"uri": "pvc://claim/items.npz", **fields})


def answered(answers: list[Array], axis: int = -1, softmax: bool = False) -> Answered:
    """What the original answers."""
    return Answered("logits", answers, axis, 0.0, softmax)


READ = [
    ("class numbers", [2, 0, 3], SCORES, {}, [2], "class indices, 0 to 3"),
    ("class numbers as floats", [2.0, 0.0, 3.0], SCORES, {}, [2], "class indices"),
    ("class numbers in a column", [[2], [0], [3]], SCORES, {}, [2], "class indices"),
    ("class numbers of narrow unsigned type", np.array([2, 0, 3], np.uint8), SCORES, {}, [2], "class indices"),
    ("class numbers from one", [3, 1, 4], SCORES, {"labelOffset": 1}, [2], "counted from 1"),
    ("class numbers as texts", ["2", "0", "3"], SCORES, {}, [2], "texts of class indices"),
    ("class names", ["c", "a", "d"], SCORES, {"classes": NAMES}, [2], "names of 4 classes"),
    ("class names as bytes", np.array([b"c", b"a", b"d"]), SCORES, {"classes": NAMES}, [2], "names of 4 classes"),
    ("one-hot", EYE[[2, 0, 3]], SCORES, {}, [2], "one-hot"),
    ("one-hot of booleans", EYE[[2, 0, 3]] == 1, SCORES, {}, [2], "one-hot"),
    ("probabilities", EYE[[2, 0, 3]] * 0.6 + 0.1, SCORES, {}, [2], "probabilities"),
    ("minus one and one for two classes", [1, -1, 1], [row[:2] for row in EYE[[1, 0, 1]]], {}, [1], "-1 and 1"),
    ("no and yes", [1, 0, 1], YES, {}, [1], "0 for no, 1 for yes"),
    ("false and true", [True, False, True], YES, {}, [1], "0 for no, 1 for yes"),
    ("one and two for no and yes", [2, 1, 2], YES, {"labelOffset": 1}, [1], "1 for no, 2 for yes"),
    ("minus one and one", [1, -1, 1], YES, {}, [1], "-1 for no, 1 for yes"),
    ("names of no and yes", ["ok", "bad", "ok"], YES, {"classes": ["bad", "ok"]}, [1], "names of 2 classes"),
    ("numbers that the model answers itself", [2, 0, 3], NUMBERS, {}, [2], "as the model outputs them"),
    ("names beside numbers", ["c", "a", "d"], NUMBERS, {"classes": NAMES}, [2], "names of 4 classes"),
    ("the usual value that does not count", [-100, 0, 3], SCORES, {}, [NOT_COUNTED], "1 of 3 are -100"),
    ("a value that does not count", [255, 0, 3], SCORES, {"ignoreLabel": 255}, [NOT_COUNTED], "1 of 3 are 255"),
    ("both in the same labels", [255, 0, -100], SCORES, {"ignoreLabel": 255}, [NOT_COUNTED], "2 of 3 are -100 or 255"),
    ("the usual one beside another", [-100, 0, 255], SCORES, {"ignoreLabel": 255}, [NOT_COUNTED], "2 of 3"),
    ("the usual one, named", [-100, 0, 3], SCORES, {"ignoreLabel": -100}, [NOT_COUNTED], "1 of 3 are -100"),
    ("the usual one beside no and yes", [-100, 0, 1, -1], YES[:1] * 4, {"ignoreLabel": -1}, [NOT_COUNTED], "2 of 4"),
    ("the usual one beside numbers", [-100, 0, 255], NUMBERS, {"ignoreLabel": 255}, [NOT_COUNTED], "2 of 3"),
    ("a label for each position", [[2, 0, -100]] * 3, TAGS, {}, [2, 0, NOT_COUNTED], "3 of 9 are -100"),
    ("one-hot for each position", [EYE[[2, 0, 1]]] * 3, TAGS, {}, [2, 0, 1], "one-hot"),
    (
        "a map of classes",
        np.arange(10).reshape(1, 2, 5).repeat(3, 0) % 4,
        MAPS,
        {"axis": -3},
        list(np.arange(10) % 4),
        "class indices",
    ),
]


@pytest.mark.parametrize(("what", "labels", "answers", "how", "first", "told"), READ, ids=[case[0] for case in READ])
def test_labels_of_each_form_become_numbers_of_classes(
    what: str, labels: Any, answers: list[Array], how: dict[str, Any], first: list[int], told: str
) -> None:
    axis = how.pop("axis", -1) if "axis" in how else -1
    given_labels = np.asarray(labels)
    reading = understand(given_labels, answered(answers, axis), spec(**how))
    assert reading.form is LabelForm.CLASSES
    assert told in reading.told
    assert LabelReader(reading, axis)(np.asarray(given_labels[0]), answers[0].shape).tolist() == first


def test_texts_are_compared_as_the_model_answers_them() -> None:
    same: list[tuple[Any, list[Array]]] = [(["spam", "ham", "eggs"], TEXTS)]
    same += [
        ([2, 0, 3], DIGITS),
        ([2.0, 0.0, 3.0], DIGITS),
        ([True, False, True], [np.array("1", object), *DIGITS[1:]]),
    ]
    for labels, answers in same:
        reading = understand(np.asarray(labels), answered(answers), spec())
        assert reading.form is LabelForm.TEXTS
        assert LabelReader(reading, -1)(np.asarray(labels[0]), ()).tolist() == [str(answers[0])]


SEVERAL = [
    (
        "several hot beside probabilities that sum to one",
        [[1, 0, 1, 0]] * 3,
        SOFTMAX,
        True,
        {},
        LabelForm.ANY_OF,
        [[1, 0, 1, 0]],
    ),
    (
        "several hot, any of them",
        [[1, 0, 1, 0]] * 3,
        SCORES,
        False,
        {"severalLabels": "AnyOf"},
        LabelForm.ANY_OF,
        [[1, 0, 1, 0]],
    ),
    (
        "several hot, all of them",
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
        SCORES,
        False,
        {"severalLabels": "AllOf"},
        LabelForm.ALL_OF,
        [1, 0, 0, 0],
    ),
    (
        "lists of class indices",
        [[0, 2], [1, -100], [3, 1]],
        SCORES,
        False,
        {"severalLabels": "AnyOf"},
        LabelForm.ANY_OF,
        [[1, 0, 1, 0]],
    ),
]


@pytest.mark.parametrize(
    ("what", "labels", "answers", "softmax", "how", "form", "first"), SEVERAL, ids=[case[0] for case in SEVERAL]
)
def test_several_labels_for_an_item(
    what: str, labels: Any, answers: list[Array], softmax: bool, how: dict[str, Any], form: LabelForm, first: Any
) -> None:
    reading = understand(np.asarray(labels), answered(answers, softmax=softmax), spec(**how))
    assert reading.form is form
    assert LabelReader(reading, -1)(np.asarray(labels[0]), answers[0].shape).astype(int).tolist() == first


REFUSED = [
    ("no, yes and a third", [0, 1, -1], YES, {}, ["labels are -1, 0, 1", "set data.evaluation.ignoreLabel: -1"]),
    ("F1 of one class of four", [2, 0, 3], SCORES, {"metric": "F1", "average": "Binary"}, ["there are 4", "Macro"]),
    (
        "F1 of one class of three, and a value to ignore that none has",
        ["ham", "spam", "eggs"],
        TEXTS,
        {"metric": "F1", "average": "Binary", "ignoreLabel": 255},
        ["there are 3"],
    ),
    ("a name twice", ["c", "a"], SCORES, {"classes": ["a", "b", "c", "a"]}, ["names 'a' more than once"]),
    (
        "a name in another Unicode form",
        ["cafe\u0301"] * 3,
        SCORES,
        {"classes": ["caf\u00e9", "b", "c", "d"]},
        ["it has 'caf\\xe9', the label is 'cafe\\u0301'", "Unicode form"],
    ),
    ("no class marked at all", np.zeros((3, 4)), SCORES, {"severalLabels": "AnyOf"}, ["no label names a class"]),
    ("names without their order", ["c", "a", "d"], SCORES, {}, ["'c' beside class 2 of 4", "data.evaluation.classes"]),
    (
        "a name that is no class",
        ["c", "a", "x"],
        SCORES,
        {"classes": NAMES},
        ["'x' is not among data.evaluation.classes"],
    ),
    (
        "fewer names than classes",
        ["a", "a", "b"],
        SCORES,
        {"classes": ["a", "b"]},
        ["has 2 names", "the model has 4 classes"],
    ),
    ("labels that count from one", [3, 1, 4], SCORES, {}, ["3 beside class 2 of 4", "labelOffset: 1"]),
    ("a border that is no class", [2, 0, 255], SCORES, {}, ["labels from 0 to 255", "ignoreLabel: 255"]),
    (
        "quantities beside scores",
        [17.25, 80.5, 99.75],
        SCORES,
        {},
        ["fractional numbers cannot be classes", "metric: Regression"],
    ),
    (
        "quantities beside one score",
        [117.0, 80.5, 99.0],
        YES,
        {},
        ["fractional numbers cannot be classes", "metric: Regression"],
    ),
    (
        "whole quantities beside one score",
        [117, 80, 99],
        YES,
        {},
        ["these numbers are not classes", "metric: Regression"],
    ),
    (
        "whole quantities beside scores",
        list(range(0, 90, 10)),
        SCORES,
        {},
        ["there are 4 classes", "metric: Regression"],
    ),
    ("no and yes from one", [2, 1, 2], YES, {}, ["labels are 1 and 2", "labelOffset: 1"]),
    ("black and white", [255, 0, 255], YES, {}, ["labels are 0 and 255", "write 0 for no and 1 for yes"]),
    ("several hot that may mean either", [[1, 0, 1, 0]] * 3, SCORES, {}, ["severalLabels: AnyOf", "AllOf"]),
    (
        "F1 of several labels, any of them",
        [[1, 0, 1, 0]] * 3,
        SCORES,
        {"severalLabels": "AnyOf", "metric": "F1"},
        ["F1 needs one class"],
    ),
    (
        "a label for each position of an item that has none",
        [[1, 2, 3, 0, 1]] * 3,
        SCORES,
        {},
        [r"label of shape [5]", "labelKey"],
    ),
    ("classes along another axis", np.zeros((3, 2, 5), int), MAPS, {}, ["agreement.axis: -3"]),
    (
        "a map that lies on its side",
        np.zeros((3, 5, 2), int),
        MAPS,
        {"axis": -3},
        ["label of shape [5, 2]", "shape [2, 5]"],
    ),
    ("nothing but what does not count", [-100, -100, -100], SCORES, {}, ["every label is -100"]),
    ("texts beside numbers of classes", ["c", "a", "d"], NUMBERS, {}, ["data.evaluation.classes"]),
    ("numbers beside texts", [2, 0, 3], TEXTS, {}, ["outputs texts, labels are numbers"]),
    ("fractions beside texts", [0.5, 0.1, 0.2], TEXTS, {}, ["fractional numbers cannot be classes"]),
    ("complex numbers", np.array([1j, 2j, 3j]), SCORES, {}, ["neither numbers nor texts"]),
    ("dates", np.array(["2026-01-01"] * 3, "datetime64[D]"), SCORES, {}, ["neither numbers nor texts"]),
    ("names for a distance", ["a", "b", "c"], SCORES, {"metric": "MeanSquaredError"}, ["compares numbers", "Accuracy"]),
    ("class numbers for a distance", [2, 0, 3], SCORES, {"metric": "MeanSquaredError"}, ["output's shape [4]"]),
]


@pytest.mark.parametrize(("what", "labels", "answers", "how", "parts"), REFUSED, ids=[case[0] for case in REFUSED])
def test_labels_that_fit_no_answer_are_refused_beside_it(
    what: str, labels: Any, answers: list[Array], how: dict[str, Any], parts: list[str]
) -> None:
    axis = how.pop("axis", -1) if "axis" in how else -1
    with pytest.raises(DataError) as caught:
        understand(np.asarray(labels), answered(answers, axis), spec(**how))
    for part in parts:
        assert part in caught.value.message


@settings(max_examples=150, deadline=None)
@given(
    labels=st.one_of(
        st.lists(st.integers(-300, 300), min_size=40, max_size=60),
        st.lists(st.floats(-1e6, 1e6), min_size=40, max_size=60),
        st.lists(st.sampled_from(["a", "b", "0", "1", "2", "dog"]), min_size=40, max_size=60),
        st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=40, max_size=60),
    ),
    seed=st.integers(0, 2**16),
    outputs=st.sampled_from([1, 3]),
)
def test_labels_that_have_nothing_to_do_with_the_answers_are_never_evidence(
    labels: list[Any], seed: int, outputs: int
) -> None:
    """Whatever they are, they are refused as a form, or as no better than chance; in 5 % of the orders chance looks like knowledge."""
    answers = list(np.random.default_rng(seed).normal(size=(len(labels), outputs)).astype(np.float32))
    refused, tries = 0, 3
    for order in range(tries):
        shuffled = np.random.default_rng(order).permutation(np.asarray(labels))
        refused += is_refused(shuffled, answers)
    assert refused >= tries - 2


def is_refused(labels: Array, answers: list[Array]) -> bool:
    """Whether these labels say nothing of these answers."""
    try:
        reading = understand(labels, answered(answers), spec())
        scoring = ScoringRule.of(Metric.ACCURACY, reading, spec().average, -1, 0.0)
        scores, chance = Scores(scoring), Chance(scoring)
        for answer, label in zip(answers, labels, strict=True):
            scores.add(answer, np.asarray(label))
            chance.add(answer, np.asarray(label))
        refuse_chance(scores, chance)
    except DataError:
        return True
    return False
