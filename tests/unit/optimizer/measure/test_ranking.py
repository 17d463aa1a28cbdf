"""Metric Ranking: the order of the items is what counts."""

from __future__ import annotations

import tracemalloc
from functools import partial
from itertools import combinations
from typing import Any

import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score
from tests.unit.optimizer.measure.quantities import judge, passes, reference
from tests.unit.optimizer.measure.task_answers import POPULATION, covered

from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer import statistics
from fettle.optimizer.measure.tasks.base import Pool
from fettle.optimizer.measure.tasks.ranking import _pairs, area_under_curve, same_order
from fettle.optimizer.statistics import groups_of
from fettle.store.arrays import Array

RANDOM = np.random.default_rng(20_261_131)
ITEMS = 120
SCORES = RANDOM.normal(size=ITEMS)
SHAKE = RANDOM.normal(size=ITEMS)
LABELS = (SCORES + SHAKE > 0.5).astype(np.int64)


def column(scores: Array) -> Array:
    return scores[:, None]


# --------------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("digits", [6, 1, 0], ids=["no ties", "some ties", "many ties"])
def test_the_value_is_the_area_under_the_curve_of_scikit_learn(digits: int) -> None:
    scores = np.round(SCORES, digits)
    found = reference(Metric.RANKING, LABELS, score=column(scores))
    assert found.value().value == pytest.approx(roc_auc_score(LABELS, scores), abs=1e-6)
    assert found.constant() is not None and found.constant().value == 0.5  # type: ignore[union-attr]


def test_the_area_of_drawn_items_is_that_of_scikit_learn() -> None:
    scores = np.round(SCORES, 1)
    pool = area_under_curve(scores.tolist(), LABELS.tolist())
    drawn = np.random.default_rng(1).integers(0, ITEMS, (4, ITEMS))
    for items, value in zip(drawn, pool.value(drawn), strict=True):
        assert value == pytest.approx(roc_auc_score(LABELS[items], scores[items]), abs=1e-9)


@pytest.mark.parametrize("kind", [bool, np.float32, np.int8])
def test_yes_and_no_are_read_in_whatever_type_labels_come(kind: Any) -> None:
    found = reference(Metric.RANKING, LABELS.astype(kind), score=column(SCORES))
    assert found.value().value == pytest.approx(roc_auc_score(LABELS, SCORES), abs=1e-6)


def test_of_a_classifier_with_two_classes_the_second_is_yes() -> None:
    logits = np.stack([-SCORES, SCORES], axis=1)
    found = reference(Metric.RANKING, 2 * LABELS - 1, logits=logits)
    assert found.value().value == pytest.approx(roc_auc_score(LABELS, SCORES), abs=1e-6)


BAD_LABELS = {
    "all yes": (np.ones(ITEMS, int), "labels of all 120 items are the same"),
    "turned round": (1 - LABELS, "no better than the best constant predictor"),
    "grades": (LABELS * 3, r"1 for yes .*\[3\]"),
    "names": (np.full(ITEMS, "yes"), "1 for yes"),
    "two an item": (np.stack([LABELS, LABELS], axis=1), "1 for yes"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_labels_that_prove_nothing_are_refused(what: str) -> None:
    labels, message = BAD_LABELS[what]
    with pytest.raises(DataError, match=message):
        reference(Metric.RANKING, labels, score=column(SCORES))


def test_the_interval_of_a_lost_area_covers_the_truth_in_most_samples() -> None:
    random = np.random.default_rng(7)
    labels = random.random(POPULATION) < 0.4
    before, after = (labels + random.normal(0, noise, POPULATION) for noise in (0.8, 1.1))

    def pool(said: Array, items: Array) -> Pool:
        return area_under_curve(said[items].tolist(), labels[items].tolist())

    assert covered(partial(pool, before), partial(pool, after), draws=60, items=80) >= 51  # 57 are expected


# ------------------------------------------------------------------------------------------------------------------ agreement


def rare(high: float) -> Array:
    """Few items stand out."""
    return np.where(np.arange(ITEMS) % 20 == 0, high + SCORES, SCORES)


FAITHFUL = {
    "the same": SCORES,
    "another unit": 100 * SCORES + 7,
    "through a sigmoid": 1 / (1 + np.exp(-SCORES)),
    "a little noise": SCORES + 0.03 * SHAKE,
    "in steps of a fiftieth": np.round(SCORES * 10) / 10,
}
RUINED = {
    "one score for all": np.zeros(ITEMS),
    "scores of other items": np.roll(SCORES, 1),
    "shuffled items": np.random.default_rng(3).permutation(SCORES),
    "turned round": -SCORES,
    "distance from the middle": np.abs(SCORES),
    "yes or no only": np.sign(SCORES),
    "cut off above": np.minimum(SCORES, 0),
    "noise": SCORES + SHAKE[::-1],
}


@pytest.mark.parametrize("what", FAITHFUL)
@pytest.mark.parametrize("labelled", [False, True], ids=["", "labels"])
def test_a_candidate_that_keeps_the_order_passes(what: str, labelled: bool) -> None:
    original = reference(Metric.RANKING, LABELS if labelled else None, score=column(SCORES))
    found = judge(original, score=column(FAITHFUL[what]))
    assert passes(found), found


@pytest.mark.parametrize("what", RUINED)
@pytest.mark.parametrize("labelled", [False, True], ids=["", "labels"])
def test_a_ruined_candidate_is_refused(what: str, labelled: bool) -> None:
    original = reference(Metric.RANKING, LABELS if labelled else None, score=column(SCORES))
    assert not passes(judge(original, score=column(RUINED[what])))


def test_few_items_that_stand_out_may_not_go_to_the_other_end() -> None:
    original = reference(Metric.RANKING, score=column(rare(9.0)))
    assert not passes(judge(original, score=column(rare(-9.0))), max_drop=0.2)
    assert passes(judge(original, score=column(rare(5.0))))


def in_order(scores: Array, original: Array) -> Pool:
    return same_order(scores.tolist(), original.tolist())


def test_without_ties_the_share_of_pairs_follows_from_kendalls_tau() -> None:
    other = SCORES + 0.5 * SHAKE
    assert in_order(other, SCORES).whole() == pytest.approx((kendalltau(SCORES, other).statistic + 1) / 2, abs=1e-9)


def by_definition(scores: Array, original: Array) -> float:
    """Of all pairs, and of those across the top and the bottom tenth, pair by pair."""
    low, high = np.quantile(original, (0.1, 0.9))
    worst = 1.0
    for end in (None, original >= high, original <= low):
        right = wanted = 0.0
        for one, other in combinations(range(len(scores)), 2):
            if original[one] == original[other] or (end is not None and end[one] == end[other]):
                continue
            wanted += 1
            same = np.sign(scores[one] - scores[other]) * np.sign(original[one] - original[other])
            right += (same + 1) / 2
        worst = min(worst, right / wanted if wanted else 1.0)
    return worst


WHOLE = hypothesis.extra.numpy.arrays(np.float64, 14, elements=strategies.integers(0, 9))


@given(WHOLE, WHOLE, strategies.lists(strategies.integers(0, 13), min_size=14, max_size=14))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_share_of_pairs_is_that_of_the_definition_whatever_is_drawn(
    scores: Array, original: Array, drawn: list[int]
) -> None:
    if np.ptp(original) == 0:
        return
    pool = in_order(scores, original)
    assert pool.whole() == pytest.approx(by_definition(scores, original))
    low, high = np.quantile(original, (0.1, 0.9))
    few = np.array(drawn)
    value = pool.value(few[None])[0]
    pairs = [(one, other) for one in few for other in few if original[one] > original[other]]
    cuts = [pairs, *([pair for pair in pairs if (original[pair[0]] >= high) != (original[pair[1]] >= high)],), *(
        [pair for pair in pairs if (original[pair[0]] <= low) != (original[pair[1]] <= low)],)]  # fmt: skip
    shares = [np.mean([np.sign(scores[one] - scores[other]) / 2 + 0.5 for one, other in cut]) for cut in cuts if cut]
    assert value == pytest.approx(min(shares, default=1.0))
    assert in_order(original, original).whole() == 1
    assert in_order(np.zeros(14), original).whole() == 0.5


def test_many_items_are_put_together_without_another_value() -> None:
    many = RANDOM.normal(size=(2, 1500))
    pool = in_order(many[0], many[1])
    assert pool.groups == 1000
    assert pool.whole() <= (kendalltau(*many).statistic + 1) / 2 + 1e-9


def pair_by_pair(scores: Array, original: Array) -> tuple[Array, Array]:
    """As `_pairs` says it, every pair looked at."""
    groups = groups_of(len(scores))
    low, high = np.quantile(original[np.isfinite(original)], (0.1, 0.9))
    ends = (np.ones(len(scores), bool), original >= min(high, np.nanmax(original)), original <= low)
    above = original[:, None] > original[None, :]
    kept = np.where(scores[:, None] > scores[None, :], 1.0, 0.5 * (scores[:, None] == scores[None, :]))
    wanted, right = np.zeros((2, 3, groups.max() + 1, groups.max() + 1))
    for cut, end in enumerate(ends):
        counted = above if not cut else above & (end[:, None] != end[None, :])
        for one, other in zip(*np.nonzero(counted), strict=True):
            wanted[cut, groups[one], groups[other]] += 1
            right[cut, groups[one], groups[other]] += kept[one, other]
    return wanted, right


SPECIAL = strategies.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan, np.inf, -np.inf])


@given(
    hypothesis.extra.numpy.arrays(np.float64, 23, elements=SPECIAL),
    hypothesis.extra.numpy.arrays(np.float64, 23, elements=SPECIAL),
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_pairs_are_counted_as_if_each_was_looked_at(scores: Array, original: Array) -> None:
    if not np.isfinite(original).any():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MAXIMUM_GROUPS", 5)
        for found, expected in zip(_pairs(scores, original), pair_by_pair(scores, original), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_memory_does_not_grow_with_the_number_of_pairs() -> None:
    many = RANDOM.normal(size=(2, 20_000))
    tracemalloc.start()
    try:
        in_order(many[0], many[1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 << 20  # a block of 512 items beside all others alone took 82 MB, several times


def test_an_original_that_gives_one_score_proves_nothing() -> None:
    with pytest.raises(DataError, match="same score to all 120 items"):
        reference(Metric.RANKING, score=np.ones((ITEMS, 1)))


def test_few_items_give_no_interval() -> None:
    found = judge(reference(Metric.RANKING, score=column(SCORES[:20])), score=column(SCORES[:20] + 0.5 * SHAKE[:20]))
    assert found.drop is None and found.too_few is not None


@pytest.mark.parametrize("values", [np.zeros((20, 3)), np.zeros((20, 2, 2))], ids=["three", "a table"])
def test_what_is_no_score_is_refused_with_its_shape(values: Array) -> None:
    with pytest.raises(DataError, match=r"finds no score in y \["):
        reference(Metric.RANKING, y=values)
