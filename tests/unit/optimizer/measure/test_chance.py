"""An original that is no better on its items than a constant predictor proves nothing about any candidate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.measure.test_metrics import scoring

from fettle.api.vocabulary import Average, Metric, SeveralLabels
from fettle.errors import DataError
from fettle.optimizer.measure.chance import Chance, refuse_chance
from fettle.optimizer.measure.metrics import Scores
from fettle.store.arrays import Array

EYE = np.eye(3, dtype=np.float32)
RNG = np.random.default_rng(7)
CLASSES = np.arange(90) % 3
RARE = (np.arange(200) % 20 == 0).astype(int)  # one in twenty
NOISE = RNG.random(200)


def judged(metric: Metric, answers: Any, labels: Any, **how: Any) -> tuple[Scores, Chance]:
    """The original's scores, and what chance would give."""
    ways = scoring(metric, answers, labels, **how)
    scores, chance = Scores(ways), Chance(ways)
    for answer, label in zip(answers, np.asarray(labels), strict=True):
        scores.add(np.asarray(answer), np.asarray(label))
        chance.add(np.asarray(answer), np.asarray(label))
    return scores, chance


def yes(scores: Array) -> list[Array]:
    """Answers of one score each."""
    return [np.array([score], np.float32) for score in scores]


HOT = RNG.integers(0, 2, size=(60, 3))
REFUSED = [
    ("always wrong by one", Metric.ACCURACY, EYE[(CLASSES + 1) % 3], CLASSES, {}, "right on 0 of 90 items"),
    ("one class for everything", Metric.ACCURACY, EYE[np.zeros(90, int)], CLASSES, {}, "best constant predictor"),
    ("any class", Metric.ACCURACY, EYE[RNG.integers(0, 3, 90)], CLASSES, {}, "prove nothing"),
    (
        "labels of one class",
        Metric.ACCURACY,
        EYE[np.zeros(90, int)],
        np.zeros(90, int),
        {},
        "best constant predictor (1)",
    ),
    ("always no where yes is rare", Metric.ACCURACY, yes(NOISE - 2), RARE, {}, "metric: F1 and average: Binary"),
    ("always yes, by F1", Metric.F1, yes(NOISE + 1), RARE, {"average": Average.BINARY}, "best constant predictor"),
    (
        "a distance above the labels' variance",
        Metric.MEAN_SQUARED_ERROR,
        yes(NOISE * 50),
        NOISE[:, None],
        {},
        "MeanSquaredError",
    ),
    (
        "sets that are never found",
        Metric.ACCURACY,
        (1 - HOT) - 0.5,
        HOT,
        {"several_labels": SeveralLabels.ALL_OF},
        "right on 0",
    ),
]


@pytest.mark.parametrize(
    ("what", "metric", "answers", "labels", "how", "part"), REFUSED, ids=[case[0] for case in REFUSED]
)
def test_an_original_that_does_not_know_its_items_is_refused(
    what: str, metric: Metric, answers: Any, labels: Any, how: dict[str, Any], part: str
) -> None:
    with pytest.raises(DataError) as caught:
        refuse_chance(*judged(metric, answers, labels, **how))
    assert part in caught.value.message
    assert "Labels were interpreted as" in caught.value.message


def answered(labels: Array, seed: int = 3) -> Array:
    """Scores of a model that is right on nine of ten of them, of as many classes as there are."""
    rng, classes = np.random.default_rng(seed), int(labels.max()) + 1
    return np.eye(classes, dtype=np.float32)[np.where(rng.random(len(labels)) < 0.9, labels, (labels + 1) % classes)]


TWELVE = np.random.default_rng(1).integers(0, 12, 400)
AS_TEXTS = np.argsort(sorted(range(12), key=str))  # 0, 1, 10, 11, 2, ...
HALF_SEEN = TWELVE[TWELVE != 4]
WORDS = np.array(["cafe\u0301" if one == 3 else f"word {one}" for one in TWELVE])
SAID = [np.array("caf\u00e9" if one == 3 else f"word {one}", object) for one in TWELVE]
MISPLACED = [
    ("two classes swapped", answered(TWELVE), np.select([TWELVE == 3, TWELVE == 5], [5, 3], TWELVE)),
    ("folders in the order of texts", answered(TWELVE), AS_TEXTS[TWELVE]),
    ("a class without a folder", answered(HALF_SEEN), HALF_SEEN - (HALF_SEEN > 4)),
    ("another Unicode form of one text", SAID, WORDS),
]


@pytest.mark.parametrize(("what", "answers", "labels"), MISPLACED, ids=[case[0] for case in MISPLACED])
def test_labels_that_name_some_classes_otherwise_than_the_model_are_refused(
    what: str, answers: Any, labels: Array
) -> None:
    with pytest.raises(DataError) as caught:
        refuse_chance(*judged(Metric.ACCURACY, answers, labels))
    assert "the labels number the classes differently from the model" in caught.value.message
    assert "Labels were interpreted as" in caught.value.message


def test_pixels_that_are_labelled_with_the_names_of_others_are_refused() -> None:
    maps = np.random.default_rng(2).integers(0, 3, (30, 40, 40))
    answers = [EYE[one] for one in maps]
    with pytest.raises(DataError, match=r"1 is answered with 2 \(.* of .*\), 2 is answered with 1"):
        refuse_chance(*judged(Metric.ACCURACY, answers, np.array([0, 2, 1])[maps]))
    refuse_chance(*judged(Metric.ACCURACY, answers, maps))


SWAPPED = np.select([TWELVE == 3, TWELVE == 5], [5, 3], TWELVE)
CONFUSED = [
    ("one class is taken for another", np.where(TWELVE == 3, 5, TWELVE)),
    ("a class is taken for one that no item has", np.where(TWELVE == 3, 12, TWELVE)),
    ("a class is taken for one that is taken for a third", np.select([TWELVE == 3, TWELVE == 5], [5, 7], TWELVE)),
    ("two classes are mistaken for each other half of the time", np.where(NOISE.repeat(2) < 0.5, TWELVE, SWAPPED)),
]


@pytest.mark.parametrize(("what", "decided"), CONFUSED, ids=[case[0] for case in CONFUSED])
def test_what_a_model_confuses_is_no_fault_of_the_labels(what: str, decided: Array) -> None:
    refuse_chance(*judged(Metric.ACCURACY, np.eye(13, dtype=np.float32)[decided], TWELVE))


def test_items_whose_labels_name_no_class_dilute_nothing() -> None:
    hot = EYE[CLASSES] * (np.arange(90) % 2)[:, None]
    scores, chance = judged(Metric.ACCURACY, EYE[CLASSES], hot, several_labels=SeveralLabels.ANY_OF)
    assert (len(scores.values), scores.value(), chance.items) == (45, 1.0, 45)
    listed = np.where((np.arange(90) % 2)[:, None], np.stack([CLASSES, CLASSES], 1), -100)
    scores, chance = judged(Metric.ACCURACY, EYE[CLASSES], listed, several_labels=SeveralLabels.ANY_OF)
    assert (len(scores.values), scores.value(), chance.items) == (45, 1.0, 45)
    digits = [np.array(str(one), object) for one in CLASSES]
    scores, chance = judged(Metric.ACCURACY, digits, np.where(np.arange(90) % 2, CLASSES, -100))
    assert (len(scores.values), scores.value(), chance.items) == (45, 1.0, 45)


KNOWING = [
    ("right on most", Metric.ACCURACY, EYE[np.where(NOISE[:90] < 0.8, CLASSES, (CLASSES + 1) % 3)], CLASSES, {}),
    (
        "right on half of three",
        Metric.ACCURACY,
        EYE[np.where(NOISE[:90] < 0.55, CLASSES, (CLASSES + 1) % 3)],
        CLASSES,
        {},
    ),
    (
        "half of what is rare",
        Metric.F1,
        yes(np.where(RARE == 1, np.arange(200) % 40 - 1, -1)),
        RARE,
        {"average": Average.BINARY},
    ),
    ("few items", Metric.ACCURACY, EYE[[0, 0, 0]], [0, 0, 1], {}),
    ("near on average", Metric.MEAN_SQUARED_ERROR, yes(NOISE + 0.1), NOISE[:, None], {}),
    ("sets that are mostly found", Metric.ACCURACY, HOT - 0.5, HOT, {"several_labels": SeveralLabels.ALL_OF}),
    (
        "any of several",
        Metric.ACCURACY,
        EYE[CLASSES],
        1 - EYE[(CLASSES + 1) % 3].astype(int),
        {"several_labels": SeveralLabels.ANY_OF},
    ),
]


@pytest.mark.parametrize(("what", "metric", "answers", "labels", "how"), KNOWING, ids=[case[0] for case in KNOWING])
def test_an_original_that_knows_its_items_is_believed(
    what: str, metric: Metric, answers: Any, labels: Any, how: dict[str, Any]
) -> None:
    refuse_chance(*judged(metric, answers, labels, **how))


def test_the_best_constant_answer_is_that_of_a_direct_count() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 20)
    _, chance = judged(Metric.ACCURACY, EYE[labels], labels)
    assert chance.constant() == pytest.approx(0.5)
    _, chance = judged(Metric.MEAN_SQUARED_ERROR, NOISE[:, None], NOISE[:, None])
    assert chance.constant() == pytest.approx(float(np.var(NOISE)))


def test_matches_in_a_random_order_have_the_mean_and_spread_of_a_simulation() -> None:
    labels, answers = RNG.integers(0, 3, 60), RNG.integers(0, 3, 60)
    _, chance = judged(Metric.ACCURACY, EYE[answers], labels)
    found = [int(np.sum(np.random.default_rng(seed).permutation(labels) == answers)) for seed in range(4000)]
    simulated = (int(np.sum(labels == answers)) - np.mean(found)) / np.std(found)
    assert chance.shuffled() == pytest.approx(simulated, abs=0.08)
