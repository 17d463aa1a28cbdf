"""Metric MultiLabel: the same tags are found, at the usual threshold and beside it."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from sklearn.metrics import f1_score
from tests.unit.optimizer.measure.quantities import judge, passes, reference
from tests.unit.optimizer.measure.task_answers import POPULATION, covered, scored

from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.measure.tasks.base import Pool
from fettle.optimizer.measure.tasks.multi_label import Found, SameTags
from fettle.store.arrays import Array

RANDOM = np.random.default_rng(20_261_130)
ITEMS, TAGS = 120, 6
LOGITS = RANDOM.normal([-1.5, -0.5, 0, 0.5, -1, -2], 1.5, (ITEMS, TAGS))
SHAKE = RANDOM.normal(size=LOGITS.shape)


def sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)))


SCORES = sigmoid(LOGITS)
LABELS = (LOGITS + SHAKE > 0).astype(np.int64)
FORMS = {
    "probabilities": (SCORES, SCORES > 0.5),
    "logits": (LOGITS, LOGITS > 0),
    "decisions": ((LOGITS > 0) * 1.0, LOGITS > 0),
}


# --------------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("form", FORMS)
def test_the_value_is_the_micro_f1_of_scikit_learn(form: str) -> None:
    scores, said = FORMS[form]
    found = reference(Metric.MULTI_LABEL, LABELS, tags=scores)
    assert found.value().value == pytest.approx(f1_score(LABELS, said, average="micro"), abs=1e-6)


def test_the_best_constant_answer_is_that_of_all_sets_of_tags() -> None:
    found = reference(Metric.MULTI_LABEL, LABELS, tags=SCORES).constant()
    sets = [np.array([place >> tag & 1 for tag in range(TAGS)]) for place in range(1 << TAGS)]
    best = max(f1_score(LABELS, np.tile(each, (ITEMS, 1)), average="micro", zero_division=0) for each in sets)
    assert found is not None and found.value == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("kind", [bool, np.int8, np.float32, np.float64])
def test_what_is_ignored_does_not_count_in_whatever_type_labels_come(kind: Any) -> None:
    counted = RANDOM.random(LABELS.shape) < 0.8
    labels = np.where(counted, LABELS, -100).astype(kind) if kind is not bool else LABELS.astype(bool)
    found = reference(Metric.MULTI_LABEL, labels, tags=SCORES)
    some = counted if kind is not bool else np.full(LABELS.shape, True)
    assert found.value().value == pytest.approx(f1_score(LABELS[some], (SCORES > 0.5)[some]), abs=1e-6)


def test_f1_of_drawn_items_is_that_of_scikit_learn() -> None:
    decided = (SCORES > 0.5)[:, None] * np.uint8(3)
    pool = scored(Found(), ((one,) for one in decided), ((one,) for one in LABELS[:, None]))
    drawn = np.random.default_rng(1).integers(0, ITEMS, (4, ITEMS))
    for items, value in zip(drawn, pool.value(drawn), strict=True):
        assert value == pytest.approx(f1_score(LABELS[items], SCORES[items] > 0.5, average="micro"), abs=1e-9)


BAD_LABELS = {
    "no to everything": (np.zeros_like(LABELS), "say no to everything"),
    "yes to everything": (np.ones_like(LABELS), "say yes to everything"),
    "of other items": (1 - LABELS, "no better than"),
    "numbers of classes": (LABELS * 3, r"0 and 1 .*\[3\]"),
    "one an item": (LABELS[:, :1], "each of 6 decisions"),
    "names": (np.full(LABELS.shape, "cat"), "0 and 1"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_labels_that_prove_nothing_are_refused(what: str) -> None:
    labels, message = BAD_LABELS[what]
    with pytest.raises(DataError, match=message):
        reference(Metric.MULTI_LABEL, labels, tags=SCORES)


def test_the_interval_of_lost_f1_covers_the_truth_in_most_samples() -> None:
    random = np.random.default_rng(7)
    truth = random.random((POPULATION, TAGS)) < 0.3
    before, after = (truth ^ (random.random(truth.shape) < wrong) for wrong in (0.05, 0.09))

    def pool(said: Array, items: Array) -> Pool:
        decided, labels = said[items, None] * np.uint8(3), truth[items, None].astype(np.int8)
        return scored(Found(), ((one,) for one in decided), ((one,) for one in labels))

    assert covered(partial(pool, before), partial(pool, after), draws=60) >= 51  # 57 are expected


# ------------------------------------------------------------------------------------------------------------------ agreement


def dead(tag: int, logit: float = -3.0) -> Array:
    found = LOGITS.copy()
    found[:, tag] = logit
    return found


FAITHFUL = {"the same": LOGITS, "a little noise": LOGITS + 0.05 * SHAKE, "a little surer": LOGITS * 1.03}
RUINED = {
    "no to everything": np.full_like(LOGITS, -3),
    "yes to everything": np.full_like(LOGITS, 3),
    "the same to every item": np.tile(LOGITS.mean(axis=0), (ITEMS, 1)),
    "the usual decisions to every item": np.tile(np.median(LOGITS, axis=0), (ITEMS, 1)),
    "answers to other items": np.roll(LOGITS, 1, axis=0),
    "shuffled items": np.random.default_rng(3).permutation(LOGITS),
    "tags swapped": LOGITS[:, ::-1],
    "scores pressed towards the threshold": LOGITS * 0.2,
    "scores halved": LOGITS * 0.5,
    "always sure": LOGITS * 5,
    "never sure of a yes": np.minimum(LOGITS, 0.5),
    "all less likely": LOGITS - 0.6,
    "all more likely": LOGITS + 0.6,
    "the first tag dead": dead(0),
    "the rarest tag always there": dead(5, 3.0),
    "noise": LOGITS + 0.8 * SHAKE,
    "turned round": -LOGITS,
}


@pytest.mark.parametrize("what", FAITHFUL)
@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("labelled", [False, True], ids=["", "labels"])
def test_a_candidate_that_decides_alike_passes(what: str, logits: bool, labelled: bool) -> None:
    form = np.asarray if logits else sigmoid
    original = reference(Metric.MULTI_LABEL, LABELS if labelled else None, tags=form(LOGITS))
    found = judge(original, tags=form(FAITHFUL[what]))
    assert passes(found), found


@pytest.mark.parametrize("what", RUINED)
@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
@pytest.mark.parametrize("labelled", [False, True], ids=["", "labels"])
def test_a_ruined_candidate_is_refused(what: str, logits: bool, labelled: bool) -> None:
    form = np.asarray if logits else sigmoid
    original = reference(Metric.MULTI_LABEL, LABELS if labelled else None, tags=form(LOGITS))
    assert not passes(judge(original, tags=form(RUINED[what])))


def test_agreement_is_the_worst_micro_f1_of_three_thresholds() -> None:
    other = sigmoid(LOGITS + 0.3 * SHAKE)
    found = judge(reference(Metric.MULTI_LABEL, tags=SCORES), tags=other)
    each = [f1_score(np.greater(SCORES, limit), other > limit, average="micro") for limit in (0.3, 0.5, 0.7)]
    assert found.accuracy.value == pytest.approx(min(each), abs=1e-6)


def test_a_rare_tag_that_is_never_found_any_more_is_missed() -> None:
    scores = np.full((400, 40), 0.05)
    scores[:, :20] = np.where(RANDOM.random((400, 20)) < 0.5, 0.95, 0.05)
    scores[::40, 39] = 0.95  # ten yeses among four thousand
    original = reference(Metric.MULTI_LABEL, tags=scores, spec={"classes": [f"tag{n}" for n in range(40)]})
    without = scores.copy()
    without[:, 39] = 0.05
    found = judge(original, tags=without)
    assert found.drop is not None and found.drop.high < 0.05
    assert found.gone is not None and "never finds 'tag39', which the original finds in 10 of 400 items" in found.gone
    assert judge(original, tags=scores).gone is None


def test_where_hardly_anything_changes_the_usual_answer_to_every_item_is_not_enough() -> None:
    scores = np.tile([0.9, 0.1, 0.1], (ITEMS, 1))
    scores[:6, 1] = 0.9  # in too few items to name a tag
    original = reference(Metric.MULTI_LABEL, tags=scores)
    found = judge(original, tags=np.tile([0.9, 0.1, 0.1], (ITEMS, 1)))
    assert found.drop is not None and found.drop.high < 0.1 and not passes(found)
    assert passes(judge(original, tags=scores))


def test_places_and_outputs_of_a_piano_roll_are_read_together() -> None:
    notes, onsets = (sigmoid(RANDOM.normal(-2, 2, (40, 30, 8))) for _ in range(2))
    original = reference(Metric.MULTI_LABEL, note=notes, onset=onsets)
    assert "8 tags in note" in str(original.taken_for()) and "onset" in str(original.taken_for())
    assert passes(judge(original, note=notes, onset=onsets * 0.999))
    assert not passes(judge(original, note=notes, onset=onsets[::-1]))
    silent = onsets.copy()
    silent[:, :, 3] = 0.1
    assert "onset[3]" in str(judge(original, note=notes, onset=silent).gone)


def test_labels_may_speak_of_the_first_output_only() -> None:
    notes, onsets = (sigmoid(RANDOM.normal(-1, 2, (40, 30, 8))) for _ in range(2))
    labels = (notes > 0.5) ^ (RANDOM.random(notes.shape) < 0.05)
    found = reference(Metric.MULTI_LABEL, labels, note=notes, onset=onsets)
    assert found.value().value == pytest.approx(f1_score(labels.ravel(), (notes > 0.5).ravel()), abs=1e-6)
    assert not passes(judge(found, note=notes, onset=onsets[::-1]))


def test_agreement_axis_says_where_the_tags_lie() -> None:
    notes = sigmoid(RANDOM.normal(-1, 2, (40, 8, 30)))
    silent = notes.copy()
    silent[:, 3] = 0.1
    found = judge(reference(Metric.MULTI_LABEL, note=notes, spec={"agreement": {"axis": 1}}), note=silent)
    assert "'3'" in str(found.gone)


BLIND = {"no": np.full((ITEMS, 3), 0.1), "yes": np.full((ITEMS, 3), 0.9)}


@pytest.mark.parametrize("what", BLIND)
def test_an_original_that_says_the_same_to_everything_proves_nothing(what: str) -> None:
    with pytest.raises(DataError, match=r"says yes to (nothing|everything) in all 120 items"):
        reference(Metric.MULTI_LABEL, tags=BLIND[what])


def test_an_original_that_finds_the_same_tags_in_every_item_proves_nothing() -> None:
    with pytest.raises(DataError, match="gives the same answer for all 120 items"):
        reference(Metric.MULTI_LABEL, tags=np.tile([0.9, 0.2], (ITEMS, 1)))


NO_TAGS = {
    "one number": np.full((20, 1), 0.3),
    "classes": sigmoid(LOGITS[:20]) / sigmoid(LOGITS[:20]).sum(axis=1, keepdims=True),
}


@pytest.mark.parametrize("what", NO_TAGS)
def test_what_holds_no_independent_decisions_is_refused_with_its_shape(what: str) -> None:
    with pytest.raises(DataError, match=r"finds no decisions in y \["):
        reference(Metric.MULTI_LABEL, y=NO_TAGS[what])


def test_few_items_give_no_interval() -> None:
    found = judge(reference(Metric.MULTI_LABEL, tags=SCORES[:20]), tags=sigmoid(LOGITS[:20] + 0.3 * SHAKE[:20]))
    assert found.drop is None and found.too_few is not None


# ----------------------------------------------------------------------------------------------------------------- properties

LEVELS = hypothesis.extra.numpy.arrays(
    np.uint8,
    strategies.tuples(strategies.integers(12, 40), strategies.integers(2, 4)),
    elements=strategies.integers(0, 3),
)


@given(LEVELS, strategies.lists(strategies.integers(0, 3), min_size=4, max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_decisions_agree_with_themselves_and_the_same_ones_for_all_items_are_gone(
    truth: Array, constant: list[int]
) -> None:
    names = [str(tag) for tag in range(truth.shape[1])]
    itself, other = SameTags(names), SameTags(names)
    for row in truth:
        itself.add((row[None],), (row[None],))
        other.add((np.array(constant, np.uint8)[None, : truth.shape[1]],), (row[None],))
    try:
        found = itself.pool()
    except DataError:
        return  # yes to nothing or to everything
    assert found.whole() == 1 and found.gone is None
    if ((truth > 1).any(axis=0) & (truth < 2).any(axis=0)).any():
        assert other.pool().gone is not None
