"""From which margin on a model's decisions are called sure."""

from __future__ import annotations

import numpy as np
import pytest

from fettle.api.vocabulary import AgreementMode
from fettle.optimizer.measure.sureness import Sureness, sure_margin
from fettle.store.comparison import Comparison

MARGINS = np.linspace(0.01, 10, 1000)


@pytest.mark.parametrize(
    ("sentence", "wrong", "margin"),
    [
        ("a model that is never wrong is sure of everything", [], 0.0),
        ("wrong on five of a thousand is still sure of everything", [0, 1, 2, 3, 4], 0.0),
        ("wrong where its margins are small: sure above them", list(range(40)), 0.37),
        ("wrong by large margins too: half of its decisions count all the same", list(range(0, 1000, 3)), 5.01),
    ],
)
def test_the_margin(sentence: str, wrong: list[int], margin: float) -> None:
    right = np.ones(1000, bool)
    right[wrong] = False
    assert sure_margin(MARGINS, right) == pytest.approx(margin, abs=0.006), sentence


def test_only_outputs_that_decide_by_scores_have_margins() -> None:
    rules = {
        "scores": Comparison(mode=AgreementMode.TOP_ONE),
        "label": Comparison(mode=AgreementMode.EXACT),
    }
    sureness = Sureness(rules)
    for score in (0.6, 0.7, 0.9, 0.95):
        answer = {"scores": np.array([score, 1 - score]), "label": np.array([0])}
        sureness.add(answer, {"scores": np.array([1 if score < 0.8 else 0])})
    assert sureness.margins() == pytest.approx({"scores": 0.8})


def test_a_margin_is_a_number_though_scores_are_masked_or_missing() -> None:
    rule = Comparison(mode=AgreementMode.TOP_ONE)
    found = Sureness({"y": rule})
    for item in range(100):
        masked = np.array([1.0, -np.inf, -np.inf]) if item % 3 else np.array([np.nan, 1.0, 2.0])
        found.add({"y": masked}, {"y": np.array([item % 2])})
    margin = found.margins()["y"]
    assert 0 <= float(f"{margin:.2g}") < np.inf
