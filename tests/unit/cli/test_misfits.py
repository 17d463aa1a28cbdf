"""Evidence that does not fit the model, through the whole of `fettle optimize`: nothing lossy is ever published from it.

The model is ruined by int8: an input that nothing looks at is huge, so that all others are rounded to nothing. Its answers in int8 have
next to nothing to do with the original's, and any evidence that lets it through is no evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.data import models
from tests.unit.cli import in_process

from fettle.api.conditions import find
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.api.vocabulary import CandidateState
from fettle.store.arrays import Array

ITEMS, INPUTS, HIDDEN = 420, 12, 48
OF_SPEED = (Reason.MEASUREMENT_UNSTABLE, Reason.NOT_FASTER, Reason.NOT_PREFERRED)
NAMES = np.array(["bird", "cat", "dog", "fish", "horse"])


def ruined_by_int8(outputs: int, bias: float = 0.0) -> tuple[Any, Array, Array]:
    """A small classifier or regressor (model, items, answers) that int8 ruins."""
    rng = np.random.default_rng(5)
    first = (rng.standard_normal((INPUTS, HIDDEN)) / np.sqrt(INPUTS)).astype(np.float32)
    first[0] = 0
    second = (rng.standard_normal((HIDDEN, outputs)) * 3 / np.sqrt(HIDDEN)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["logits"]),
    ]
    weights = [models.stored("first", first), models.stored("second", second), models.stored("bias", [bias])]
    made = models.model(
        nodes,
        [models.tensor("x", ["N", INPUTS])],
        [models.tensor("logits", ["N", outputs], TensorProto.FLOAT)],
        weights,
    )
    items = rng.standard_normal((ITEMS, INPUTS)).astype(np.float32)
    items[:, 0] *= 3000
    answers = np.maximum(items @ first, 0) @ second + bias
    return made, items, answers - np.median(answers) if outputs == 1 and not bias else answers


async def optimized(
    folder: Path, outputs: int, labels: Any, bias: float = 0.0, **evaluation: Any
) -> OptimizedModelStatus:
    """The whole run on items with these labels."""
    made, items, _ = ruined_by_int8(outputs, bias)
    given = {"x": items} if labels is None else {"x": items, "labels": labels}
    return await in_process.quantized(folder, made, given, 0.05, **evaluation)


def ends_as(status: OptimizedModelStatus) -> tuple[str | None, str]:
    """Reason and message of Ready."""
    ready = find(status.conditions, "Ready")
    assert ready is not None
    return ready.reason, ready.message


def let_through(status: OptimizedModelStatus) -> list[str]:
    """What the evidence lets pass although its answers are not the original's: selected, or refused for its speed alone."""
    passed = [row for row in status.candidates if row.state == CandidateState.SELECTED or row.reason in OF_SPEED]
    return [row.name for row in passed if not row.exact]


def classes() -> Array:
    """The right classes, by the original."""
    return np.asarray(ruined_by_int8(5)[2].argmax(axis=1))


PRICES = ruined_by_int8(1, 100.0)[2]
REFUSED = [
    ("names", 5, NAMES[classes()], {}, "data.evaluation.classes"),
    (
        "names in another order",
        5,
        NAMES[classes()],
        {"classes": NAMES[::-1].tolist()},
        "number the classes differently",
    ),
    ("classes from one", 5, classes() + 1, {}, "labelOffset: 1"),
    (
        "classes from one, told to count from nought",
        5,
        np.minimum(classes() + 1, 4),
        {},
        "number the classes differently",
    ),
    ("classes of another model", 5, np.random.default_rng(1).integers(0, 5, ITEMS), {}, "prove nothing"),
    ("one class for all", 5, np.zeros(ITEMS, int), {}, "best constant predictor"),
    ("prices", 1, PRICES.astype(np.float32), {}, "metric: Regression"),
    ("whole prices", 1, np.round(PRICES).astype(int), {}, "metric: Regression"),
    ("prices in cents, for a regression", 1, PRICES * 100, {"metric": "Regression"}, "prove nothing"),
    ("all ignored", 5, np.full(ITEMS, -100), {}, "every label is -100"),
    ("F1 of names", 5, NAMES[classes()], {"metric": "F1"}, "data.evaluation.classes"),
    ("one-hot of other classes", 5, np.eye(5)[(classes() + 1) % 5], {}, "number the classes differently"),
    ("dates", 5, np.full(ITEMS, "2026-01-01", "datetime64[D]"), {}, "labels"),
]


@pytest.mark.parametrize(("what", "outputs", "labels", "how", "part"), REFUSED, ids=[case[0] for case in REFUSED])
async def test_labels_that_do_not_fit_end_the_run(
    what: str, outputs: int, labels: Any, how: dict[str, Any], part: str, tmp_path: Path
) -> None:
    status = await optimized(tmp_path, outputs, labels, bias=100.0 if outputs == 1 else 0.0, **how)
    reason, message = ends_as(status)
    assert reason == Reason.DATA_INVALID
    assert part in message
    assert not status.artifacts


def padded() -> Array:
    """Right classes where every second label does not count."""
    labels = classes()
    labels[::2] = -100
    return labels


SURVIVING = [
    ("right labels", 5, classes(), {}),
    ("names with their order", 5, NAMES[classes()], {"classes": NAMES.tolist()}),
    ("labels that mostly do not count", 5, padded(), {}),
    ("prices, as a regression", 1, PRICES, {"metric": "Regression"}),
    ("no labels: which class", 5, None, {"agreement": {"mode": "TopOne"}}),
    ("no labels: numbers", 5, None, {}),
]


@pytest.mark.parametrize(("what", "outputs", "labels", "how"), SURVIVING, ids=[case[0] for case in SURVIVING])
async def test_nothing_that_int8_ruined_is_published_on_evidence_that_fits(
    what: str, outputs: int, labels: Any, how: dict[str, Any], tmp_path: Path
) -> None:
    status = await optimized(tmp_path, outputs, labels, bias=100.0 if outputs == 1 else 0.0, **how)
    reason, message = ends_as(status)
    assert reason == Reason.PUBLISHED, message
    assert let_through(status) == []
    row = next(one for one in status.candidates if one.recipe == "int8")
    assert row.state == CandidateState.REJECTED
    (baseline,) = status.baselines
    assert baseline.samples and baseline.accuracy is not None
    if labels is not None:
        assert baseline.constant is not None
        assert baseline.constant.value < baseline.accuracy.value
        assert f"the original: {baseline.worth}" in find(status.conditions, "Measured").message  # type: ignore[union-attr]


async def test_misfits_made_up_never_publish_anything_lossy(tmp_path: Path) -> None:
    """Labels from a generator of mistakes: shifted, shuffled, cut, of other types, partly right."""
    rng = np.random.default_rng(20)
    right = classes()
    for number in range(8):
        labels: Any = right.copy()
        for mistake in rng.choice(4, size=2, replace=False):
            if mistake == 0:
                labels = labels + int(rng.integers(-3, 4))
            elif mistake == 1:
                labels = rng.permutation(labels)
            elif mistake == 2:
                labels = labels * float(rng.choice([0.5, 2, -1]))
            else:
                labels = np.where(rng.random(ITEMS) < 0.5, labels, -100)
        folder = tmp_path / str(number)
        folder.mkdir()
        status = await optimized(folder, 5, labels)
        assert let_through(status) == []
