"""When a canary's answer is the stable revision's, and when nobody can tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fettle.api.vocabulary import AgreementMode
from fettle.store.comparison import Comparison, Outcome, compare, decisions, margins

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
