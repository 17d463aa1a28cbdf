"""On what scales an output's numbers move, and what tolerance each of them gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from fettle.api.data import AgreementSpec
from fettle.optimizer.measure.agreement import OutputProfile, comparisons
from fettle.optimizer.measure.scales import MOST_ELEMENTS, Scales
from fettle.store.arrays import Array
from fettle.store.comparison import Comparison

NOISE = 1e-4
BOXES, SCORES = 640.0, 1.0
RNG = np.random.default_rng(5)


def scales(answers: Iterable[Array]) -> Scales:
    found = Scales()
    for answer in answers:
        found.add(np.asarray(answer, np.float64))
    return found


def rule(answers: Iterable[Array], **spec: Any) -> Comparison:
    """How the answers of this output are compared."""
    profile = OutputProfile()
    for answer in answers:
        profile.add(np.asarray(answer, np.float32))
    return comparisons({"y": profile}, AgreementSpec(**spec), None)["y"]


def detector(*shape: int, axis: int, items: int = 60, boxes: int = 4) -> Array:
    """Boxes of up to 640 pixels at the first four places along `axis`, scores below 1 at the others."""
    answers = RNG.uniform(0, SCORES, (items, *shape))
    np.moveaxis(answers, axis if axis < 0 else axis + 1, 0)[:boxes] *= BOXES
    return answers


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((8, 50), -2), ((50, 8), -1), ((8,), -1), ((3, 8, 5, 5), -3), ((3, 5, 5, 8), -1), ((6, 1), -2)],
)
def test_boxes_and_scores_in_one_tensor_have_tolerances_of_their_own(shape: tuple[int, ...], axis: int) -> None:
    found = rule(detector(*shape, axis=axis))
    assert found.channels is not None
    (channels,) = found.channels
    assert channels.axis == axis
    allowed = np.squeeze(np.broadcast_to(found.tolerance(shape), shape))
    allowed = np.moveaxis(allowed, axis if allowed.ndim == len(shape) else 0, 0).reshape(len(channels.shares), -1)[:, 0]
    assert allowed[:4] == pytest.approx(0.01 * BOXES, rel=0.2)
    assert allowed[4:] == pytest.approx(0.01 * SCORES, rel=0.2)
    original = detector(*shape, axis=axis)[0]
    dead = np.array(original)
    np.moveaxis(dead, axis, 0)[4:] = 0
    assert not found.agrees(original, dead)
    assert found.agrees(original, original + 0.005)


def test_channels_each_three_times_the_one_before_are_told_apart() -> None:
    steps = 3.0 ** np.arange(8)
    found = rule(RNG.normal(size=(200, 8)) * steps)
    allowed = np.broadcast_to(found.tolerance((8,)), (8,))
    assert (allowed < 0.1 * steps).all()
    assert (allowed > 0.03 * steps).all()


def test_steps_of_a_forecast_and_its_quantities_multiply() -> None:
    far, quantities = np.array([1.0, 10, 100, 1000]), np.array([1.0, 1e4, 0.01])
    found = rule(RNG.normal(size=(100, 4, 3)) * far[:, None] * quantities)
    assert found.channels is not None
    assert len(found.channels) == 2
    assert found.tolerance((4, 3)) == pytest.approx(0.06 * far[:, None] * quantities, rel=0.4)


@pytest.mark.parametrize("items", [40, 100, 600])
@pytest.mark.parametrize("channels", [10, 100])
@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda size: RNG.normal(size=size), id="normal"),
        pytest.param(lambda size: RNG.uniform(size=size), id="uniform"),
        pytest.param(lambda size: RNG.lognormal(sigma=0.7, size=size), id="skewed"),
        pytest.param(lambda size: RNG.standard_t(4, size=size), id="heavy tails"),
        pytest.param(lambda size: (RNG.random(size) < 0.1) * RNG.uniform(0.5, 1, size), id="mostly 0"),
        pytest.param(lambda size: 1e6 + RNG.normal(size=size), id="far from 0"),
    ],
)
def test_chance_alone_tells_no_channels_apart(draw: Any, items: int, channels: int) -> None:
    split = [scales(draw((items, channels))).tolerances(1e-9) is not None for _ in range(20)]
    assert sum(split) <= 1


def test_a_channel_that_never_varies_takes_the_least_tolerance_of_those_that_do_and_the_noise_of_its_own_number() -> (
    None
):
    answers = detector(6, axis=0)
    answers[:, 5] = 0
    answers[:, 0] = 5000
    found = rule(answers)
    allowed = np.broadcast_to(found.tolerance((6,)), (6,))
    assert allowed[5] == pytest.approx(0.01 * SCORES, rel=0.2)
    assert allowed[0] == pytest.approx(NOISE * 5000, rel=0.2)


def test_a_score_that_is_rarely_anything_but_0_may_differ_by_a_hundredth_of_its_largest() -> None:
    answers = detector(5, axis=0, items=300)
    answers[:, 4] = (RNG.random(300) < 0.05) * 0.9
    found = rule(answers)
    assert np.broadcast_to(found.tolerance((5,)), (5,))[4] == pytest.approx(0.009, rel=0.05)


def test_along_an_axis_whose_size_varies_nothing_is_told_apart_and_along_the_others_it_is() -> None:
    found = rule(detector(8, 5 + item % 4, axis=0, items=1)[0] for item in range(60))
    assert found.channels is not None
    assert [one.axis for one in found.channels] == [-2]
    other = rule(detector(8 + item % 2, axis=0, items=1)[0] for item in range(60))
    assert other.channels is None
    assert other.atol == pytest.approx(0.01 * BOXES, rel=0.1)


def test_an_answer_of_another_size_than_was_measured_has_the_largest_tolerance() -> None:
    found = rule(detector(8, axis=0))
    assert found.tolerance((9,)) == found.atol
    assert found.tolerance(()) == found.atol


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([np.float32(value) for value in range(10)], id="one number"),
        pytest.param([np.zeros((0, 4), np.float32)] * 10, id="nothing at all"),
        pytest.param([np.zeros((item % 3, 4), np.float32) for item in range(10)], id="sometimes nothing"),
        pytest.param([np.full(3, np.nan, np.float32)] * 10, id="no numbers"),
        pytest.param([np.full(3, -np.inf, np.float32)] * 10, id="infinities"),
        pytest.param([np.zeros((1,) * (1 + item % 2), np.float32) for item in range(10)], id="two ranks"),
        pytest.param([np.array([1e38, -1e38], np.float32)] * 10, id="huge numbers"),
        pytest.param([np.ones(3, np.float32)], id="one item"),
    ],
)
def test_answers_that_have_no_channels_have_one_tolerance(answers: list[Array]) -> None:
    found = rule(answers)
    assert found.channels is None
    assert np.isfinite(found.atol)
    assert all(found.agrees(answer, answer) for answer in answers)


def test_masked_scores_do_not_hide_the_channels() -> None:
    answers = detector(8, axis=0)
    answers[::2, 5] = -np.inf
    found = rule(answers)
    assert found.channels is not None
    assert found.agrees(answers[0], answers[0])
    assert not found.agrees(answers[0], answers[1])


def test_a_tolerance_that_a_person_gives_holds_for_the_whole_output() -> None:
    found = rule(detector(8, axis=0), atol=0.5)
    assert (found.atol, found.channels) == (0.5, None)


def test_numbers_in_a_small_unit_have_a_small_tolerance() -> None:
    answers = RNG.normal(size=(50, 3)) * 1e-9
    found = rule(answers)
    assert not found.agrees(answers[0], np.zeros(3))


def test_of_a_huge_answer_only_as_much_is_kept_as_tells_its_channels_apart() -> None:
    answer = np.ones((8, 300, 600))
    answer[:4] *= BOXES
    answers = (answer * factor for factor in RNG.uniform(size=20))
    found = scales(answers)
    assert found.mean.size <= MOST_ELEMENTS
    tolerances = found.tolerances(NOISE)
    assert tolerances is not None
    assert [one.axis for one in tolerances.channels] == [-3]


def test_noise_is_told_apart_as_well_so_that_dead_scores_are_not_exact() -> None:
    profile = OutputProfile()
    for answer in detector(8, axis=0):
        profile.add(answer.astype(np.float32))
    _, noise = profile.noise_of((8,))
    allowed = np.broadcast_to(noise, (8,))
    assert allowed[0] == pytest.approx(NOISE * BOXES, rel=0.1)
    # A millionth of the largest number: what cancels may leave that.
    assert allowed[7] == pytest.approx(6.4e-4, rel=0.2)
