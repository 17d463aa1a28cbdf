"""Metric Custom: a user's own function scores each item."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.measure.quantities import judge, passes, reference

from fettle.api.data import CustomMetricSpec
from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.store.arrays import Array

RANDOM = np.random.default_rng(20_261_201)
ITEMS = 160
PRICES = RANDOM.uniform(50, 150, ITEMS)
ANSWERS = (PRICES + RANDOM.normal(0, 4, ITEMS))[:, None]
WITHIN = """
import numpy as np

def within_a_tenth(outputs, label):
    price = outputs["price"].item()
    return float(abs(price - float(label)) <= 0.1 * float(label))
"""
NEAR = """
def score(outputs, label):
    wanted = label["price"] if isinstance(label, dict) else label
    return 1 - abs(outputs["price"].item() - float(np.squeeze(wanted))) / 100

import numpy as np
"""


def asked(code: str, function: str = "score") -> dict[str, Any]:
    return {"custom": CustomMetricSpec(code=code, function=function)}


def test_the_value_is_the_mean_of_the_functions_scores() -> None:
    found = reference(Metric.CUSTOM, PRICES, asked(WITHIN, "within_a_tenth"), price=ANSWERS)
    expected = np.mean(np.abs(ANSWERS[:, 0] - PRICES) <= 0.1 * PRICES)
    assert found.value().value == pytest.approx(expected)
    scored = reference(Metric.CUSTOM, PRICES, asked(NEAR), price=ANSWERS)
    assert scored.value().value == pytest.approx(np.mean(1 - np.abs(ANSWERS[:, 0] - PRICES) / 100))


def test_a_candidate_is_judged_by_what_the_function_loses_on_the_same_items() -> None:
    original = reference(Metric.CUSTOM, PRICES, asked(NEAR), price=ANSWERS)
    near, far = judge(original, price=ANSWERS + 0.05), judge(original, price=ANSWERS + 30)
    assert passes(near, 0.05) and not passes(far, 0.05)
    assert far.drop is not None and far.drop.low < original.value().value - far.accuracy.value < far.drop.high


def test_without_labels_the_original_stands_in_for_them() -> None:
    original = reference(Metric.CUSTOM, None, asked(NEAR), price=ANSWERS)
    assert original.value().value == 1
    assert judge(original, price=ANSWERS - 5).accuracy.value == pytest.approx(0.95)


def test_other_answers_with_equal_scores_are_seen_as_changed() -> None:
    blind = "def score(outputs, label):\n    return float(abs(outputs['price'].item()) > 0) * 0.5 + 0.5 * (label > 100)"
    original = reference(Metric.CUSTOM, None, asked(NEAR), price=ANSWERS)
    assert original.value().value == 1
    with pytest.raises(DataError, match="no better than with their labels in 20 other orders"):
        reference(Metric.CUSTOM, PRICES, asked(blind), price=ANSWERS)
    labelled = reference(Metric.CUSTOM, PRICES, asked(NEAR), price=ANSWERS)
    mirrored = judge(labelled, price=2 * PRICES[:, None] - ANSWERS)  # as far from the label, on the other side
    assert mirrored.accuracy.value == pytest.approx(labelled.value().value)
    assert mirrored.changed is not None and mirrored.changed.value > 0


@pytest.mark.parametrize("labels", [PRICES, None], ids=["labels", ""])
def test_what_a_function_does_to_its_arguments_changes_nothing_that_is_compared(labels: Array | None) -> None:
    careless = f"{NEAR}\ntidy = score\n\ndef score(outputs, label):\n    found = tidy(outputs, label)\n"
    careless += "    for given in (outputs, label if isinstance(label, dict) else {}):\n        given.get('price', np.zeros(1))[:] = 0\n"
    careless += "    return found\n"
    originals = [reference(Metric.CUSTOM, labels, asked(code), price=ANSWERS) for code in (NEAR, careless)]
    plain, disturbed = (judge(original, price=ANSWERS + 0.05) for original in originals)
    assert originals[0].value() == originals[1].value()
    assert (disturbed.accuracy, disturbed.drop, disturbed.changed) == (plain.accuracy, plain.drop, plain.changed)


BROKEN = {
    "no Python": ("def score(outputs, label)", "score", "SyntaxError.*in line 1"),
    "another name": ("def grade(outputs, label):\n    return 1", "score", "defines no function 'score', found grade"),
    "fails when it is loaded": ("x = 1\ny = x / 0", "score", "ZeroDivisionError.*in line 2"),
    "fails on an item": (
        "def score(outputs, label):\n    return outputs['cost']",
        "score",
        "KeyError: 'cost', in line 2",
    ),
    "no number": ("def score(outputs, label):\n    return None", "score", "TypeError"),
    "NaN": (
        "def score(outputs, label):\n    return float('nan')",
        "score",
        "returned nan for an item: .* finite number",
    ),
    "takes something else": ("def score(outputs):\n    return 1", "score", "TypeError.*positional argument"),
    "leaves the process": (
        "import sys\ndef score(outputs, label):\n    sys.exit(3)",
        "score",
        "SystemExit: 3, in line 3",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_code_that_cannot_score_is_invalid_data_and_names_its_line(what: str) -> None:
    code, function, message = BROKEN[what]
    with pytest.raises(DataError, match=message):
        reference(Metric.CUSTOM, PRICES, asked(code, function), price=ANSWERS)


def test_a_function_that_runs_out_of_memory_ends_the_task_for_that() -> None:
    with pytest.raises(MemoryError):
        reference(Metric.CUSTOM, PRICES, asked("def score(outputs, label):\n    raise MemoryError"), price=ANSWERS)
