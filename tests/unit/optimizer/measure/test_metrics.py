"""How good answers are, and what a candidate lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fettle.api.data import EvaluationSpec
from fettle.api.interval import tango
from fettle.api.vocabulary import Average, Metric, SeveralLabels
from fettle.errors import DataError
from fettle.optimizer.labels.question import Answered
from fettle.optimizer.labels.readings import understand
from fettle.optimizer.measure.metrics import Changes, Scores, ScoringRule, drop, flips

EYE = np.eye(3, dtype=np.float32)


def scoring(metric: Metric, answers: Any, labels: Any, **how: Any) -> ScoringRule:
    """How these labels are read beside these answers."""
    average, several = how.pop("average", Average.MACRO), how.pop("several_labels", None)
    examples = [np.asarray(answer) for answer in answers]
    answered = Answered("y", examples, how.get("axis", -1), how.get("threshold", 0.0))
    spec = EvaluationSpec(uri="pvc://claim/items.npz", metric=metric, several_labels=several)
    reading = understand(np.asarray(labels), answered, spec)
    return ScoringRule.of(metric, reading, average, answered.axis, answered.threshold)


def scores(metric: Metric, answers: Any, labels: Any, **how: Any) -> Scores:
    """One model's scores."""
    found = Scores(scoring(metric, answers, labels, **how))
    for answer, label in zip(answers, np.asarray(labels), strict=True):
        found.add(np.asarray(answer), np.asarray(label))
    return found


def classified(decisions: list[int], labels: list[int], metric: Metric = Metric.ACCURACY, **how: Any) -> Scores:
    """Scores of a model that decides like this."""
    return scores(metric, [EYE[decision] for decision in decisions], labels, **how)


@pytest.mark.parametrize(
    ("answer", "label", "how", "value"),
    [
        ([0.1, 0.9], 1, {}, 1.0),
        ([0.1, 0.9], 0, {}, 0.0),
        ([[0.1, 0.9]], 1, {}, 1.0),  # a fixed batch of one stays in the answer
        ([0.1, 0.9], [0, 1], {}, 1.0),  # one-hot
        (0.7, 1, {"threshold": 0.5}, 1.0),
        ([0.3], 1, {"threshold": 0.5}, 0.0),
        ([-0.2], 0, {"threshold": 0.0}, 1.0),
        (np.array(3), 3, {}, 1.0),
        (np.array("cat", object), "cat", {}, 1.0),
        (np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]]), [0, 1, 1], {}, 2 / 3),
        (np.array([[1.0, 0.0, 3.0], [0.0, 2.0, 1.0]]), [0, 1, 0], {"axis": -2}, 1.0),
    ],
)
def test_an_answer_is_right_where_it_decides_what_the_label_says(
    answer: Any, label: Any, how: dict[str, Any], value: float
) -> None:
    assert scores(Metric.ACCURACY, [answer], [label], **how).value() == pytest.approx(value)


def test_a_label_that_fits_no_answer_says_what_to_check() -> None:
    with pytest.raises(DataError, match=r"label of shape \[4\] is not one for each decision.*labelKey"):
        scores(Metric.ACCURACY, [EYE[0]], [[1, 2, 3, 4]])


@pytest.mark.parametrize("average", list(Average))
def test_f1_is_that_of_scikit_learn(average: Average) -> None:
    rng = np.random.default_rng(11)
    classes = 2 if average == Average.BINARY else 3
    labels, decided = rng.integers(classes, size=200), rng.integers(classes, size=200)
    found = classified(decided.tolist(), labels.tolist(), Metric.F1, average=average).value()
    assert found == pytest.approx(f1_score(labels, decided, average=average.value.lower()))


def test_f1_of_texts_compares_texts() -> None:
    answers = [np.array(word, object) for word in ("cat", "dog", "cat")]
    assert scores(Metric.F1, answers, ["cat", "dog", "dog"]).value() == pytest.approx(2 / 3)


def test_mean_squared_error_rises_where_answers_get_worse() -> None:
    rng = np.random.default_rng(2)
    labels = rng.normal(size=(60, 4))
    before = scores(Metric.MEAN_SQUARED_ERROR, labels + 0.1, labels)
    after = scores(Metric.MEAN_SQUARED_ERROR, labels + rng.normal(0.3, 0.05, size=labels.shape), labels)
    found = drop(before, after, 0.05)
    assert found is not None
    assert before.value() == pytest.approx(0.01)
    assert 0 < found.low < found.value < found.high
    assert found.value == pytest.approx(after.value() - before.value())


def test_cosine_similarity_falls_where_answers_turn_away() -> None:
    rng = np.random.default_rng(2)
    labels = rng.normal(size=(60, 8))
    before = scores(Metric.COSINE_SIMILARITY, 3 * labels, labels)
    found = drop(before, scores(Metric.COSINE_SIMILARITY, labels + rng.normal(size=labels.shape), labels), 0.05)
    assert before.value() == pytest.approx(1)
    assert found is not None
    assert found.low > 0.1


def test_accuracy_has_the_score_interval_of_its_flips() -> None:
    labels = [0] * 40
    before = classified([0] * 36 + [1] * 4, labels)
    after = classified([1] * 3 + [0] * 34 + [1] * 3, labels)
    changed = flips(before, after)
    assert (changed.worse, changed.better) == (3, 1)
    assert drop(before, after, 0.05) == tango(3, 1, 40, 0.05)


def test_shares_of_right_elements_are_no_flips_and_get_a_bootstrap() -> None:
    labels = [np.array([0, 0, 0, 0])] * 40
    before = scores(Metric.ACCURACY, [np.tile(EYE[0], (4, 1))] * 40, labels)
    rng = np.random.default_rng(4)
    after = scores(Metric.ACCURACY, [EYE[(rng.random(4) < 0.2).astype(int)] for _ in labels], labels)
    found = drop(before, after, 0.05)
    assert found is not None
    assert 0 < found.low < found.value < found.high < 0.4


def test_f1_without_a_flip_is_not_proved_by_few_items() -> None:
    same = [0, 1, 2] * 7
    before, after = classified(same, same, Metric.F1), classified(same, same, Metric.F1)
    found = drop(before, after, 0.05)
    assert found is not None
    assert found.value == 0
    assert found.high > 0.1


def test_f1_with_flips_has_an_interval_around_the_difference() -> None:
    rng = np.random.default_rng(6)
    labels = rng.integers(3, size=300)
    worse = np.where(rng.random(300) < 0.15, (labels + 1) % 3, labels)
    before = classified(labels.tolist(), labels.tolist(), Metric.F1)
    after = classified(worse.tolist(), labels.tolist(), Metric.F1)
    found = drop(before, after, 0.05)
    assert found is not None
    assert found.value == pytest.approx(before.value() - after.value())
    assert 0.05 < found.low < found.value < found.high < 0.3


def test_too_few_items_for_a_bootstrap_give_no_interval() -> None:
    labels = np.linspace(0, 1, 20)[:, None]
    before, after = (scores(Metric.MEAN_SQUARED_ERROR, labels + off, labels) for off in (0.0, 0.1))
    assert drop(before, after, 0.05) is None


def test_f1_of_several_labels_an_item_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(2, size=(120, 4))
    answers = np.where(rng.random(labels.shape) < 0.8, labels, 1 - labels) - 0.5
    found = scores(Metric.F1, answers, labels, several_labels=SeveralLabels.ALL_OF).value()
    assert found == pytest.approx(f1_score(labels, answers > 0, average="macro"))


def changes(metric: Metric, before: Any, after: Any, labels: Any, **how: Any) -> Changes:
    """What a second model changed."""
    found = Changes(scoring(metric, before, labels, **how))
    for one, other, label in zip(before, after, np.asarray(labels), strict=True):
        found.add(np.asarray(one), np.asarray(other), np.asarray(label))
    return found


def test_changes_that_cancel_out_in_the_metric_are_seen() -> None:
    labels = np.arange(300) % 3
    first = np.where(np.arange(300) < 60, (labels + 1) % 3, labels)  # wrong on the first 60
    other = np.where(np.arange(300) >= 240, (labels + 1) % 3, labels)  # wrong on the last 60
    before, after = ([EYE[decision] for decision in decided] for decided in (first, other))
    lost = drop(scores(Metric.ACCURACY, before, labels), scores(Metric.ACCURACY, after, labels), 0.05)
    changed = changes(Metric.ACCURACY, before, after, labels).interval(0.05)
    assert lost is not None and changed is not None
    assert lost.value == 0
    assert changed.value == pytest.approx(0.4)
    assert changed.low > 0.3


def test_positions_that_do_not_count_neither_score_nor_change() -> None:
    labels = np.full((40, 8), -100)
    labels[:, 0] = np.arange(40) % 3
    before = [EYE[[label[0]] + [0] * 7] for label in labels]
    after = [EYE[[0 if number % 4 == 0 else label[0]] + [1] * 7] for number, label in enumerate(labels)]
    assert scores(Metric.ACCURACY, before, labels).value() == 1
    wrong = sum(label[0] != 0 for label in labels[::4])
    assert scores(Metric.ACCURACY, after, labels).value() == pytest.approx(1 - wrong / 40)
    changed = changes(Metric.ACCURACY, before, after, labels).interval(0.05)
    assert changed is not None
    assert changed.value == pytest.approx(wrong / 40)
