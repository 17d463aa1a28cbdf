"""When a canary's answer is the stable revision's, and when nobody can tell."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fettle.api.vocabulary import AgreementMode
from fettle.store.comparison import Channels, Comparison, Outcome, compare, decisions, margins

TOP_ONE = Comparison(mode=AgreementMode.TOP_ONE, margin=0.3)
YES_OR_NO = Comparison(mode=AgreementMode.TOP_ONE, threshold=0.5, margin=0.2)
PIXELS = Comparison(mode=AgreementMode.TOP_ONE, axis=0, margin=0.3)
EXACT = Comparison(mode=AgreementMode.EXACT)
WITHIN = Comparison(mode=AgreementMode.ELEMENTWISE, atol=0.1)


def scores(*values: Any) -> Any:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("sentence", "rule", "stable", "canary", "outcome"),
    [
        ("the same class", TOP_ONE, scores(0.1, 0.9), scores(0.4, 0.6), Outcome.AGREED),
        ("another class, and stable was sure", TOP_ONE, scores(0.1, 0.9), scores(0.6, 0.4), Outcome.DISAGREED),
        ("another class where stable was unsure", TOP_ONE, scores(0.4, 0.6), scores(0.6, 0.4), Outcome.UNSURE),
        ("the same class where stable was unsure", TOP_ONE, scores(0.4, 0.6), scores(0.1, 0.9), Outcome.UNSURE),
        ("stable's own NaN", TOP_ONE, scores(np.nan, 0.6), scores(0.1, 0.9), Outcome.UNSURE),
        ("the canary's NaN", TOP_ONE, scores(0.9, 0.1), scores(np.nan, 0.1), Outcome.DISAGREED),
        ("more classes", TOP_ONE, scores(0.1, 0.9), scores(0.1, 0.9, 0.0), Outcome.DISAGREED),
        ("a score on the other side", YES_OR_NO, scores(0.9), scores(0.4), Outcome.DISAGREED),
        ("a score near the threshold", YES_OR_NO, scores(0.6), scores(0.4), Outcome.UNSURE),
        ("pixels differ where stable is unsure", PIXELS, scores([0.9, 0.5], [0.1, 0.5]), scores([0.8, 0], [0.2, 1]),
         Outcome.AGREED),
        ("pixels differ where stable is sure", PIXELS, scores([0.9, 0.5], [0.1, 0.5]), scores([0, 1], [1, 0]),
         Outcome.DISAGREED),
        ("a text", EXACT, np.array(["a"], object), np.array(["a"], object), Outcome.AGREED),
        ("another text", EXACT, np.array(["a"], object), np.array(["b"], object), Outcome.DISAGREED),
        ("a number within the tolerance", WITHIN, scores(1.0), scores(1.05), Outcome.AGREED),
        ("a number beyond it", WITHIN, scores(1.0), scores(1.2), Outcome.DISAGREED),
    ],
)  # fmt: skip
def test_an_item(sentence: str, rule: Comparison, stable: Any, canary: Any, outcome: Outcome) -> None:
    assert compare({"y": rule}, {"y": stable}, {"y": canary}) is outcome, sentence


def test_an_item_of_several_outputs_agrees_when_all_do_and_says_nothing_when_one_was_unsure() -> None:
    rules = {"label": EXACT, "scores": TOP_ONE}
    sure = {"label": np.array([1]), "scores": scores(0.1, 0.9)}
    unsure = {"label": np.array([1]), "scores": scores(0.45, 0.55)}
    other = {"label": np.array([0]), "scores": scores(0.9, 0.1)}
    assert compare(rules, sure, sure) is Outcome.AGREED
    assert compare(rules, sure, other) is Outcome.DISAGREED
    assert compare(rules, sure, {**sure, "label": np.array([0])}) is Outcome.DISAGREED
    assert compare(rules, unsure, other) is Outcome.UNSURE


def test_margins_lie_beside_their_decisions() -> None:
    answer = scores([0.9, 0.2, 0.5], [0.1, 0.8, 0.1])  # two classes of three positions
    assert decisions(answer, 0, 0.5).tolist() == [0, 1, 0]
    assert margins(answer, 0, 0.5) == pytest.approx([0.8, 0.6, 0.4])
    assert margins(scores(0.9, 0.2), 5 - 6, 0.5).shape == (1,)


BY_CHANNEL = Comparison(
    mode=AgreementMode.ELEMENTWISE, atol=6.4, channels=(Channels(axis=-2, shares=(1.0, 1.0, 0.0016)),)
)


@pytest.mark.parametrize(
    ("sentence", "moved", "outcome"),
    [
        ("a box moved by its tolerance", [[6, 0], [0, -6], [0, 0]], Outcome.AGREED),
        ("a score moved by its own", [[0, 0], [0, 0], [0.01, -0.01]], Outcome.AGREED),
        ("a score moved by that of a box", [[0, 0], [0, 0], [0, 0.9]], Outcome.DISAGREED),
    ],
)
def test_each_channel_has_its_own_tolerance(sentence: str, moved: Any, outcome: Outcome) -> None:
    stable = scores([300, 20], [10, 600], [0.9, 0.9])
    assert compare({"y": BY_CHANNEL}, {"y": stable}, {"y": stable - scores(*moved)}) is outcome, sentence


def test_shares_along_two_axes_multiply() -> None:
    rule = BY_CHANNEL.model_copy(
        update={"channels": (*(BY_CHANNEL.channels or ()), Channels(axis=-1, shares=(1, 0.5)))}
    )
    assert np.asarray(rule.tolerance((3, 2))).tolist() == pytest.approx(
        6.4 * np.array([[1, 0.5]] * 2 + [[0.0016, 0.0008]])
    )


def test_a_rule_from_before_there_were_channels_is_read_and_has_one_tolerance() -> None:
    old = '{"mode": "Elementwise", "axis": -1, "minCosine": 0.99, "rtol": 0, "atol": 0.1, "threshold": 0, "margin": 0}'
    rule = Comparison.model_validate_json(old)
    assert rule.agrees(scores(1, 2), scores(1.05, 2.05))
    assert rule.to_json() == json.loads(old), "and the digest of an artifact without channels is what it was"


def test_a_rule_with_channels_comes_back_as_it_was_written() -> None:
    assert Comparison.model_validate_json(BY_CHANNEL.canonical()) == BY_CHANNEL


@pytest.mark.parametrize(
    "channels",
    [
        {"axis": 0, "shares": (1, 0.5)},
        {"axis": -1, "shares": (1,)},
        {"axis": -1, "shares": (1, 0)},
        {"axis": -1, "shares": (1, 2)},
        {"axis": -1, "shares": (0.5,) * 5000},
    ],
)
def test_what_cannot_be_channels_is_refused(channels: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Channels(**channels)


@pytest.mark.parametrize(
    "mode", [AgreementMode.TOP_ONE, AgreementMode.COSINE, AgreementMode.ELEMENTWISE, AgreementMode.EXACT]
)
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(np.zeros((0, 5), np.float32), id="nothing found"),
        pytest.param(np.zeros(0, np.float32), id="empty"),
        pytest.param(np.array([np.nan, 1, 2], np.float32), id="NaN"),
        pytest.param(np.array([np.inf, -np.inf, 2], np.float32), id="infinity"),
        pytest.param(np.array(3.5, np.float32), id="one number"),
        pytest.param(np.array([3e38, -3e38], np.float32), id="huge"),
        pytest.param(np.zeros(3, np.float16), id="zeros"),
    ],
)
def test_an_answer_agrees_with_itself_whatever_it_holds(mode: AgreementMode, axis: int, answer: Any) -> None:
    rule = Comparison(mode=mode, axis=axis, atol=0.1)
    assert rule.agrees(answer, answer.copy())
    said = compare({"y": rule}, {"y": answer}, {"y": answer.copy()})
    assert said is not Outcome.DISAGREED or bool(np.isnan(answer.astype(np.float64)).any())


def test_something_found_is_not_nothing_found() -> None:
    for mode in (AgreementMode.TOP_ONE, AgreementMode.COSINE, AgreementMode.ELEMENTWISE, AgreementMode.EXACT):
        assert not Comparison(mode=mode).agrees(np.zeros((0, 5), np.float32), np.zeros((1, 5), np.float32))
