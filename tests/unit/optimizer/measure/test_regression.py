"""Metric Regression: numbers are near where they are within a tenth of the spread that they have over the items."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from tests.unit.optimizer.measure.quantities import judge, passes, reference
from tests.unit.optimizer.measure.task_answers import POPULATION, covered

from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.measure.tasks.base import Pool
from fettle.optimizer.measure.tasks.regression import Near, explained, tolerances
from fettle.store.arrays import Array

RANDOM = np.random.default_rng(20_261_129)
ITEMS = 120
NOISE = np.full(3, 1e-4)
MOS = np.clip(RANDOM.normal([3.2, 3.9, 2.8], [0.6, 0.5, 0.7], (ITEMS, 3)), 1, 5)  # three ratings of an item
SHAKE = RANDOM.normal(size=MOS.shape)


# --------------------------------------------------------------------------------------------------------------------- labels


def test_the_value_is_the_r2_of_scikit_learn_and_errors_are_told_in_the_labels_unit() -> None:
    labels = MOS + 0.3 * SHAKE
    found = reference(Metric.REGRESSION, labels, mos=MOS)
    answers = MOS.astype(np.float32)
    assert found.value().value == pytest.approx(r2_score(labels, answers), abs=1e-6)
    absolute = mean_absolute_error(labels, answers, multioutput="raw_values")
    squared = root_mean_squared_error(labels, answers, multioutput="raw_values")
    for figure in (*absolute, *squared):
        assert f"{figure:.3g}" in str(found.taken_for())
    assert "in the label's unit" in str(judge(found, mos=MOS).details)
    assert found.constant() is not None and found.constant().value == 0  # type: ignore[union-attr]


def test_r2_of_drawn_items_is_that_of_scikit_learn() -> None:
    labels = MOS + 0.5 * SHAKE + 1e6  # far from 0, as prices are
    pool = explained(list(MOS + 1e6), list(labels))
    drawn = np.random.default_rng(1).integers(0, ITEMS, (4, ITEMS))
    for items, value in zip(drawn, pool.value(drawn), strict=True):
        assert value == pytest.approx(r2_score(labels[items], (MOS + 1e6)[items]), abs=1e-6)


def test_a_channel_whose_labels_are_all_the_same_says_nothing_of_r2() -> None:
    labels = MOS + 0.3 * SHAKE
    labels[:, 1] = 4
    found = reference(Metric.REGRESSION, labels, mos=MOS)
    assert found.value().value == pytest.approx(r2_score(labels[:, ::2], MOS.astype(np.float32)[:, ::2]), abs=1e-6)


def test_equal_errors_to_the_other_side_change_the_answers_though_nothing_is_lost() -> None:
    labels = MOS + 0.4 * SHAKE
    found = judge(reference(Metric.REGRESSION, labels, mos=MOS), mos=MOS + 0.8 * SHAKE)
    assert found.drop is not None and found.drop.value == pytest.approx(0, abs=1e-3)
    assert found.changed is not None and found.changed.low > 0.5


BAD_LABELS = {
    "one for all": (np.full_like(MOS, 3.0), "all labels are the same"),
    "of other items": (np.roll(MOS, 7, axis=0), "prove nothing"),
    "in another unit": (MOS * 100, "no better than the best constant predictor"),
    "NaN among them": (np.where(SHAKE > 2, np.nan, MOS), "NaN"),
    "too few an item": (MOS[:, :2], "needs 3 numbers"),
    "names": (np.full((ITEMS, 3), "good"), "needs 3 numbers"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_labels_that_prove_nothing_are_refused(what: str) -> None:
    labels, message = BAD_LABELS[what]
    with pytest.raises(DataError, match=message):
        reference(Metric.REGRESSION, labels, mos=MOS)


def test_the_interval_of_lost_r2_covers_the_truth_in_most_samples() -> None:
    random = np.random.default_rng(7)
    labels = random.normal(size=(POPULATION, 1))
    before, after = (labels + random.normal(0, noise, labels.shape) for noise in (0.4, 0.55))

    def pool(said: Array, items: Array) -> Pool:
        return explained(list(said[items]), list(labels[items]))

    assert covered(partial(pool, before), partial(pool, after), draws=60) >= 51  # 57 are expected


# ------------------------------------------------------------------------------------------------------------------ agreement

FAITHFUL = {
    "the same": MOS,
    "noise of a fiftieth of the spread": MOS + 0.02 * MOS.std(axis=0) * SHAKE,
    "a shift of a fortieth": MOS + 0.025 * MOS.std(axis=0),
    "stretched by a hundredth": MOS.mean(axis=0) + 1.01 * (MOS - MOS.mean(axis=0)),
}


def dead(channel: int) -> Array:
    found = MOS.copy()
    found[:, channel] = found[:, channel].mean()
    return found


RUINED = {
    "one number for all": np.tile(MOS.mean(axis=0), (ITEMS, 1)),
    "the median for all": np.tile(np.median(MOS, axis=0), (ITEMS, 1)),
    "answers to other items": np.roll(MOS, 1, axis=0),
    "shuffled items": np.random.default_rng(3).permutation(MOS),
    "all shifted by .09 of the spread": MOS + 0.09 * MOS.std(axis=0),
    "most shifted by .09 of the spread": MOS + 0.09 * MOS.std(axis=0) * (np.arange(ITEMS) % 5 > 0)[:, None],
    "halved": MOS / 2,
    "pressed together": MOS.mean(axis=0) + 0.7 * (MOS - MOS.mean(axis=0)),
    "the first dead": dead(0),
    "the last dead": dead(2),
    "noise of a tenth of the spread": MOS + 0.1 * MOS.std(axis=0) * SHAKE,
    "rounded to whole numbers": np.round(MOS),
    "turned round": 6 - MOS,
    "channels swapped": MOS[:, [1, 0, 2]],
}


@pytest.mark.parametrize("what", FAITHFUL)
@pytest.mark.parametrize("labelled", [False, True])
def test_a_candidate_that_stays_near_passes(what: str, labelled: bool) -> None:
    labels = MOS + 0.3 * SHAKE[::-1] if labelled else None
    found = judge(reference(Metric.REGRESSION, labels, mos=MOS), mos=FAITHFUL[what])
    assert passes(found), found
    assert found.accuracy.metric == Metric.REGRESSION


@pytest.mark.parametrize("what", RUINED)
@pytest.mark.parametrize("labelled", [False, True])
def test_a_ruined_candidate_is_refused(what: str, labelled: bool) -> None:
    labels = MOS + 0.3 * SHAKE[::-1] if labelled else None
    assert not passes(judge(reference(Metric.REGRESSION, labels, mos=MOS), mos=RUINED[what]))


def heavy(share: float, far: float = 1000.0) -> Array:
    """One quantity of many small values and a share of huge ones."""
    found = RANDOM.normal(10, 1, (ITEMS, 1))
    found[: int(share * ITEMS)] *= far
    return found


def rare(items: int) -> Array:
    """0 but for a few items."""
    found = np.zeros((ITEMS, 1))
    found[:items] = RANDOM.uniform(1, 2, (items, 1))
    return found


@pytest.mark.parametrize("values", [heavy(0.01), heavy(0.09), rare(3), rare(40)], ids=["one", "many", "few", "third"])
def test_no_distribution_of_answers_lets_one_number_pass_for_all(values: Array) -> None:
    original = reference(Metric.REGRESSION, price=values)
    for number in (np.mean(values), np.median(values), values.max(), 0.0):
        assert not passes(judge(original, price=np.full_like(values, number)), max_drop=0.2)
    assert passes(judge(original, price=values))


def test_one_outlier_does_not_widen_the_tolerance_of_the_others() -> None:
    values = heavy(0.01)
    assert tolerances(values, NOISE[:1])[0] == pytest.approx(0.1, rel=0.3)


def test_a_dead_channel_is_named_and_what_one_number_would_do() -> None:
    found = judge(reference(Metric.REGRESSION, mos=MOS), mos=dead(1))
    assert found.gone is not None and "number 1 of mos" in found.gone and "one number for all" in found.gone


def test_an_original_that_answers_one_number_proves_nothing() -> None:
    with pytest.raises(DataError, match="one number for all 120 items"):
        reference(Metric.REGRESSION, mos=np.full((ITEMS, 1), 3.1))


def test_a_channel_that_never_moves_has_to_stay_where_it_is() -> None:
    fixed = np.concatenate([MOS, np.full((ITEMS, 1), 40.0)], axis=1)
    original = reference(Metric.REGRESSION, mos=fixed)
    assert passes(judge(original, mos=fixed + np.array([0, 0, 0, 0.1])))
    assert not passes(judge(original, mos=fixed + np.array([0, 0, 0, 1.0])))


def test_few_items_prove_little() -> None:
    found = judge(reference(Metric.REGRESSION, mos=MOS[:12]), mos=MOS[:12])
    assert found.drop is not None and found.drop.value == 0 and found.drop.high > 0.2


def test_where_the_original_answers_nan_a_candidate_has_to_do_so_as_well() -> None:
    holes = MOS.copy()
    holes[::10, 0] = np.nan
    original = reference(Metric.REGRESSION, mos=holes)
    assert passes(judge(original, mos=holes))
    assert not passes(judge(original, mos=np.where(np.isnan(holes), 3.0, holes)), max_drop=0.05)


def test_a_tolerance_of_ones_own_counts_in_the_answers_unit() -> None:
    shifted = MOS + 0.09 * MOS.std(axis=0)
    original = reference(Metric.REGRESSION, spec={"agreement": {"atol": 0.5}}, mos=MOS)
    assert passes(judge(original, mos=shifted))
    with pytest.raises(DataError, match="one number for all"):
        reference(Metric.REGRESSION, spec={"agreement": {"atol": 9.0}}, mos=MOS)


# -------------------------------------------------------------------------------------------------------------------- outputs


def test_all_outputs_of_a_few_numbers_are_read_together() -> None:
    original = reference(Metric.REGRESSION, signal=MOS[:, 0], rest=MOS[:, 1:])
    assert passes(judge(original, signal=MOS[:, 0], rest=FAITHFUL["a shift of a fortieth"][:, 1:]))
    assert not passes(judge(original, signal=MOS[:, 0], rest=RUINED["shuffled items"][:, 1:]))


def test_an_output_that_is_not_read_is_compared_by_number() -> None:
    other = RANDOM.normal(size=(ITEMS, 3000))
    original = reference(Metric.REGRESSION, mos=MOS, features=other)
    assert passes(judge(original, mos=MOS + 0.02 * SHAKE, features=other))
    assert not passes(judge(original, mos=MOS, features=other[::-1]))


def test_labels_may_speak_of_the_first_output_only() -> None:
    labels = MOS[:, :1] + 0.3 * SHAKE[:, :1]
    original = reference(Metric.REGRESSION, labels, signal=MOS[:, :1], rest=MOS[:, 1:])
    assert original.value().value == pytest.approx(r2_score(labels, MOS[:, :1]), abs=1e-5)
    assert not passes(judge(original, signal=MOS[:, :1], rest=MOS[::-1, 1:]))


@pytest.mark.parametrize("shape", [(5000,), (0,)], ids=str)
def test_what_is_no_quantity_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"finds no quantities in y \["):
        reference(Metric.REGRESSION, y=np.zeros((12, *shape)))


# ----------------------------------------------------------------------------------------------------------------- properties

NUMBERS = hypothesis.extra.numpy.arrays(
    np.float64,
    strategies.tuples(strategies.integers(12, 60), strategies.integers(1, 3)),
    elements=strategies.floats(-1e6, 1e6, width=32) | strategies.sampled_from([0.0, 1.0]),
)


def near(truth: Array, said: Array) -> Pool:
    return Near(np.full(truth.shape[1], 1e-4)).pool(list(said), list(truth))


@given(NUMBERS, strategies.floats(-1e6, 1e6))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_original_answers_it_agrees_with_itself_and_one_number_never_does(
    truth: Array, number: float
) -> None:
    try:
        itself = near(truth, truth)
    except DataError:
        return  # the original hardly varies: refused
    assert itself.whole() == 1 and itself.gone is None
    assert near(truth, np.full_like(truth, number)).gone is not None


@given(NUMBERS, strategies.sampled_from([1e-3, 3.0, 1e3]), strategies.sampled_from([0.01, 0.07, 0.3]))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_unit_does_not_matter(truth: Array, unit: float, amount: float) -> None:
    said: Callable[[Array], Array] = lambda values: values + amount * np.std(values, axis=0)  # noqa: E731
    try:
        whole = near(truth, said(truth)).whole()
    except DataError:
        return
    assert near(truth * unit, said(truth * unit)).whole() == pytest.approx(whole, abs=1.5 / len(truth))
