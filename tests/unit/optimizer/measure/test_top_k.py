"""Metric TopK: the right class is among the best k."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from pydantic import ValidationError
from sklearn.metrics import top_k_accuracy_score
from tests.unit.optimizer.measure.quantities import judge, passes, reference

from fettle.api.data import EvaluationSpec
from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.measure.tasks.top_k import SameBest
from fettle.store.arrays import Array

RANDOM = np.random.default_rng(20_261_132)
ITEMS, CLASSES = 240, 20
LOGITS = 2 * RANDOM.normal(size=(ITEMS, CLASSES))
SHAKE = RANDOM.normal(size=LOGITS.shape)
LABELS = (LOGITS + 1.5 * SHAKE).argmax(axis=1)
NAMES = [f"class{number}" for number in range(CLASSES)]


# --------------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_the_value_is_the_top_k_accuracy_of_scikit_learn(k: int) -> None:
    found = reference(Metric.TOP_K, LABELS, spec={"top_k": k}, logits=LOGITS)
    expected = top_k_accuracy_score(LABELS, LOGITS.astype(np.float32), k=k, labels=range(CLASSES))
    assert found.value().value == pytest.approx(expected, abs=1e-6)
    most = np.sort(np.bincount(LABELS))[::-1][:k].sum() / ITEMS
    assert found.constant() is not None and found.constant().value == pytest.approx(most)  # type: ignore[union-attr]


READ = {
    "from one": (LABELS + 1, {"label_offset": 1}),
    "names": (np.array(NAMES)[LABELS], {"classes": NAMES}),
    "floats": (LABELS.astype(np.float32), {}),
    "a column": (LABELS[:, None], {}),
}


@pytest.mark.parametrize("what", READ)
def test_labels_are_read_as_they_are_for_accuracy(what: str) -> None:
    labels, spec = READ[what]
    found = reference(Metric.TOP_K, labels, spec=spec, logits=LOGITS)
    assert found.value().value == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=5), abs=1e-6)


def test_labels_that_are_ignored_do_not_count() -> None:
    labels = np.where(np.arange(ITEMS) % 3 == 0, -100, LABELS)
    some = labels >= 0
    found = reference(Metric.TOP_K, labels, logits=LOGITS)
    expected = top_k_accuracy_score(LABELS[some], LOGITS[some], k=5, labels=range(CLASSES))
    assert found.value().value == pytest.approx(expected, abs=1e-6)


BAD_LABELS: dict[str, tuple[Array, str]] = {
    "of other items": (RANDOM.integers(0, CLASSES, ITEMS), "no better than"),
    "of other classes": (LABELS + CLASSES, "not among the 20 classes"),
    "fractions": (LABELS + 0.5, "number or the name of one class"),
    "a row each": (np.eye(CLASSES)[LABELS], "number or the name of one class"),
    "unknown names": (np.array(NAMES)[LABELS], "not among data.evaluation.classes"),
    "all ignored": (np.full(ITEMS, -100), "every label is the value that is ignored"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_labels_that_prove_nothing_are_refused(what: str) -> None:
    labels, message = BAD_LABELS[what]
    with pytest.raises(DataError, match=message):
        reference(Metric.TOP_K, labels, logits=LOGITS)


# ------------------------------------------------------------------------------------------------------------------ agreement


def favourite_last() -> Array:
    """The original's best class in the last of five places, others before it."""
    found, order = LOGITS.copy(), np.argsort(-LOGITS, axis=1)
    rows = np.arange(ITEMS)
    for place in range(4):
        found[rows, order[:, -1 - place]] = found[rows, order[:, 0]] + 1 + place
    return found


def others_after_the_best() -> Array:
    """The original's best class in the first place, and its worst after it."""
    return np.where(LOGITS.max(axis=1, keepdims=True) == LOGITS, LOGITS + 20, -LOGITS)


def one_class_first() -> Array:
    found = LOGITS.copy()
    found[:, 3] += 20
    return found


FAITHFUL = {
    "the same": LOGITS,
    "another scale": 3 * LOGITS + 1,
    "noise that swaps the last places": LOGITS + 0.05 * SHAKE,
}
RUINED = {
    "one answer for all": np.tile(LOGITS.mean(axis=0), (ITEMS, 1)),
    "answers to other items": np.roll(LOGITS, 1, axis=0),
    "shuffled items": np.random.default_rng(3).permutation(LOGITS),
    "turned round": -LOGITS,
    "the best class in the last place": favourite_last(),
    "others after the best class": others_after_the_best(),
    "one class always first": one_class_first(),
    "classes moved by one": np.roll(LOGITS, 1, axis=1),
    "noise": LOGITS + 2 * SHAKE[::-1],
}


@pytest.mark.parametrize("what", FAITHFUL)
@pytest.mark.parametrize("labelled", [False, True], ids=["", "labels"])
def test_a_candidate_with_the_same_best_classes_passes(what: str, labelled: bool) -> None:
    original = reference(Metric.TOP_K, LABELS if labelled else None, logits=LOGITS)
    found = judge(original, logits=FAITHFUL[what])
    assert passes(found), found


@pytest.mark.parametrize("what", RUINED)
@pytest.mark.parametrize("labelled", [False, True], ids=["", "labels"])
def test_a_ruined_candidate_is_refused(what: str, labelled: bool) -> None:
    original = reference(Metric.TOP_K, LABELS if labelled else None, logits=LOGITS)
    assert not passes(judge(original, logits=RUINED[what]))


def test_of_one_class_it_is_the_share_of_items_with_the_same_best() -> None:
    other = LOGITS + 0.3 * SHAKE
    found = judge(reference(Metric.TOP_K, spec={"top_k": 1}, logits=LOGITS), logits=other)
    assert found.accuracy.value == pytest.approx(np.mean(LOGITS.argmax(axis=1) == other.argmax(axis=1)))


def test_where_hardly_anything_changes_the_usual_answer_to_every_item_is_not_enough() -> None:
    usual = np.tile(np.linspace(1, 0, CLASSES), (ITEMS, 1))
    mostly = usual.copy()
    mostly[:6] = usual[:6, ::-1]
    found = judge(reference(Metric.TOP_K, logits=mostly), logits=usual)
    assert found.drop is not None and found.drop.high < 0.1 and not passes(found)


LISTS = strategies.permutations(range(10)).map(lambda order: np.array(order[:5]))


@given(LISTS, LISTS)
@settings(max_examples=200)
def test_two_lists_are_alike_both_ways_and_each_like_itself(one: Array, other: Array) -> None:
    def alike(said: Array, truth: Array) -> float:
        scorer = SameBest()
        scorer.add(said, truth)
        return scorer.pool().whole()

    assert alike(one, other) == alike(other, one)
    assert alike(one, one) == 1
    expected = one[0] in other and other[0] in one and len(set(one.tolist()) & set(other.tolist())) >= 3
    assert alike(one, other) == expected


REFUSED = {
    "most classes": (np.zeros((12, 6)), {}, "topK is 5, but y has only 6 classes"),
    "a table": (np.zeros((12, 3, 20)), {}, r"finds no class scores in y \[3, 20\]"),
    "names that do not fit": (np.zeros((12, 20)), {"classes": NAMES[:4]}, "names 4 classes.*for 20 in y"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_best_k_is_refused_with_what_was_found(what: str) -> None:
    values, spec, message = REFUSED[what]
    with pytest.raises(DataError, match=message):
        reference(Metric.TOP_K, spec=spec, y=values)


@pytest.mark.parametrize("number", [0, -1, 1001])
def test_k_is_a_number_of_classes(number: int) -> None:
    with pytest.raises(ValidationError, match="topK"):
        EvaluationSpec.model_validate({"uri": "-", "metric": "TopK", "topK": number})
