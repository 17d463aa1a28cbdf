"""Candidates that are ruined in one way and faithful in every other are rejected; those that are only a little off pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.unit.optimizer.measure.task_answers import (
    RANDOM,
    Answers,
    apart,
    judged,
    passes,
    reference,
    scenes,
    softmax,
    yolo,
)

from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.measure.tasks.boxes import Boxes
from fettle.store.arrays import Array

ITEMS = 300
Case = tuple[Metric, Answers, Answers, Array | None]  # the original's answers, a candidate's, and labels


def found(each: Callable[[Boxes, int], Boxes], labelled: bool = False) -> Case:
    """A detector: `each` is what a candidate makes of the boxes of an item, by its number."""
    truths = [Boxes(t.corners * 4, np.maximum(t.scores, 0.3), t.classes) for t, _ in scenes(ITEMS)]
    labels = np.full((ITEMS, 10, 5), -1.0)
    for row, truth in zip(labels, truths, strict=True):
        row[: len(truth.scores)] = np.concatenate([truth.corners, truth.classes[:, None]], axis=1)
    candidates = [each(truth, item) for item, truth in enumerate(truths)]
    answers, others = ([{"y": yolo(boxes).T} for boxes in side] for side in (truths, candidates))
    return Metric.DETECTION, answers, others, labels if labelled else None


def rescored(rule: Callable[[Array], Array]) -> Callable[[Boxes, int], Boxes]:
    return lambda boxes, item: Boxes(boxes.corners, rule(boxes.scores), boxes.classes)


def moved(by: float) -> Callable[[Boxes, int], Boxes]:
    """To the right, by a share of each box's width."""

    def move(boxes: Boxes, item: int) -> Boxes:
        shift = by * (boxes.corners[:, 2] - boxes.corners[:, 0])
        return Boxes(boxes.corners + shift[:, None] * [1, 0, 1, 0], boxes.scores, boxes.classes)

    return move


def rare(items: int, kept: int) -> Case:
    """A third class in some items, which a candidate finds in few of them."""
    answers, others = [], []
    for item in range(ITEMS):
        there = item < items
        boxes = apart(3 if there else 2)
        lost = there and item >= kept
        answers.append({"y": yolo(boxes).T})
        others.append({"y": yolo(boxes.some(np.arange(2)) if lost else boxes).T})
    return Metric.DETECTION, answers, others, None


def small_objects() -> Case:
    """Each fifth item has small objects only, beside a large one of the same class; a candidate does not find the small ones."""
    answers, others = [], []
    for item in range(ITEMS):
        corner = np.arange(5)[:, None] * 90.0 + [[0, 0]]
        size = np.where(np.arange(5) == 0, 80, 20 if item % 5 == 0 else 80)[:, None]
        boxes = Boxes(np.concatenate([corner, corner + size], axis=1), np.linspace(0.9, 0.5, 5), np.zeros(5, int))
        large = boxes.some(np.arange(5) < (1 if item % 5 == 0 else 5))
        answers.append({"y": yolo(boxes).T})
        others.append({"y": yolo(large).T})
    return Metric.DETECTION, answers, others, None


def crowd() -> Case:
    """250 objects an item, of which a candidate finds the hundred surest."""
    random = np.random.default_rng(RANDOM)
    corner = np.stack(np.meshgrid(np.arange(25), np.arange(10)), axis=-1).reshape(-1, 2) * 60.0
    answers, others = [], []
    for _ in range(60):
        boxes = Boxes.best(np.concatenate([corner, corner + 50], axis=1), random.uniform(0.3, 0.95, 250), np.zeros(250))
        answers.append({"y": yolo(boxes, rows=400).T})
        others.append({"y": yolo(boxes.some(np.arange(100)), rows=400).T})
    return Metric.DETECTION, answers, others, None


def rows_without_objectness() -> Case:
    """A row for each box and a score for each class, of which few have two that are high; a candidate finds only those."""
    truths = [t for t, _ in scenes(ITEMS)]
    random = np.random.default_rng(RANDOM)
    answers, others = [], []
    for truth in truths:
        table = yolo(truth)
        both = (table[:, 4:].max(axis=1) > 0) & (random.random(len(table)) < 0.05)
        table[both, 4:6] = 0.6
        left = table.copy()
        left[~both, 4:] = 0
        answers.append({"y": table})
        others.append({"y": left})
    return Metric.DETECTION, answers, others, None


def masks(each: Callable[[Array, int], Array], labelled: bool = False) -> Case:
    """Discs of several sizes; those of each fifth item are small. `each` is what a candidate makes of a mask."""
    rows, columns = np.mgrid[:48, :48]
    random = np.random.default_rng(RANDOM)
    centres = random.uniform(14, 34, (ITEMS, 2))
    truths = [
        ((rows - row) ** 2 + (columns - column) ** 2 < (4 if item % 5 == 0 else 150)).astype(np.float32)
        for item, (row, column) in enumerate(centres)
    ]
    answers, others = (
        [{"y": mask[None] * 0.98 + 0.01} for mask in side]
        for side in (truths, [each(mask, item) for item, mask in enumerate(truths)])
    )
    return Metric.SEGMENTATION, answers, others, np.array(truths, np.int64) if labelled else None


def classes(lost: int) -> Case:
    """A class that 14 items have in a small area, given the class beside it in `lost` of them."""
    random = np.random.default_rng(RANDOM)
    answers, others = [], []
    for item in range(ITEMS):
        mask = random.integers(0, 3, (4, 4)).repeat(6, 0).repeat(6, 1)
        other = mask.copy()
        if item < 14:
            mask[:2, :2] = 3
            other[:2, :2] = mask[0, 3] if item < lost else 3
        answers.append({"y": np.eye(4, dtype=np.float32)[mask].transpose(2, 0, 1)})
        others.append({"y": np.eye(4, dtype=np.float32)[other].transpose(2, 0, 1)})
    return Metric.SEGMENTATION, answers, others, None


def texts(each: Callable[[str, int], str], labelled: bool = False) -> Case:
    """Each fifth text is short, and each twelfth ends in a sign that no other has. `each` is what a candidate reads."""
    random = np.random.default_rng(RANDOM)
    said = []
    for item in range(ITEMS):
        letters = "ab" if item % 5 == 0 else "".join(random.choice(list("cdefgh"), 40))
        said.append(letters + ("%" if item % 12 == 1 else ""))
    answers, others = (
        [{"y": np.array([text], object)} for text in side]
        for side in (said, [each(text, item) for item, text in enumerate(said)])
    )
    return Metric.TEXT, answers, others, np.array(said, object) if labelled else None


def vectors(each: Callable[[Array], Array], spread: float = 1.0, copies: bool = False, labelled: bool = False) -> Case:
    """Vectors of length 1; `spread` below 1 puts them into a cone, `copies` gives each item a near copy. `each` makes all of a candidate's."""
    random = np.random.default_rng(RANDOM)
    labels = np.arange(ITEMS) // 2
    base = random.normal(size=(ITEMS, 64))
    if labelled or copies:
        base = base[labels] + random.normal(0, 0.3 if labelled else 0.01, base.shape)
    made = spread * base + (1 - spread) * 8 * np.ones(64)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    answers, others = ([{"y": vector.astype(np.float32)} for vector in side] for side in (made, each(made)))
    return Metric.EMBEDDING, answers, others, labels if labelled else None


def turned(side: Array) -> Array:
    return side @ np.linalg.qr(np.random.default_rng(1).normal(size=(64, 64)))[0]


def shaken(side: Array, by: float = 0.002) -> Array:
    return side + np.random.default_rng(1).normal(0, by, side.shape)


def shifted(side: Array) -> Array:
    away = np.zeros(64)
    away[0] = 3
    return (side + away) / np.linalg.norm(side + away, axis=1, keepdims=True)


def other_ones(side: Array, copies: bool) -> Array:
    """Of the same cone, or copied in the same pairs, and nothing else."""
    random = np.random.default_rng(1)
    made = random.normal(size=side.shape)
    if copies:
        return made[np.arange(len(side)) // 2] + random.normal(0, 0.01, side.shape)
    return side.mean(axis=0) + side.std() * 0.2 * made


RUINED: dict[str, Callable[[], Case]] = {
    "scores just above the threshold": lambda: found(rescored(lambda scores: np.full_like(scores, 0.26))),
    "scores of two thirds": lambda: found(rescored(lambda scores: np.maximum(scores * 0.66, 0.26))),
    "scores a seventh lower, with labels": lambda: found(
        rescored(lambda scores: np.maximum(scores - 0.15, 0.26)), labelled=True
    ),
    "boxes a third off": lambda: found(moved(0.3)),
    "objects beyond a hundred": crowd,
    "a rare class in one of 14 items": lambda: rare(14, 1),
    "a rare class in five of 14 items": lambda: rare(14, 5),
    "a rare class in none of 6 items": lambda: rare(6, 0),
    "small objects": small_objects,
    "rows without objectness": rows_without_objectness,
    "a class of places in one of 14 items": lambda: classes(13),
    "small areas in each fifth item": lambda: masks(lambda mask, item: mask * (item % 5 > 0)),
    "small areas, with labels": lambda: masks(lambda mask, item: mask * (item % 5 > 0), labelled=True),
    "short texts": lambda: texts(lambda text, item: "" if item % 5 == 0 else text),
    "a sign": lambda: texts(lambda text, item: text.replace("%", "")),
    "a sign, with labels": lambda: texts(lambda text, item: text.replace("%", ""), labelled=True),
    "vectors turned as a whole": lambda: vectors(turned),
    "vectors turned as a whole, with labels": lambda: vectors(turned, labelled=True),
    "vectors shifted as a whole": lambda: vectors(shifted),
    "vectors five times as long": lambda: vectors(lambda side: side * 5),
    "other vectors in a cone": lambda: vectors(lambda side: other_ones(side, copies=False), spread=0.03),
    "other vectors of copied items": lambda: vectors(lambda side: other_ones(side, copies=True), copies=True),
}

FAITHFUL: dict[str, Callable[[], Case]] = {
    "scores a little lower": lambda: found(rescored(lambda scores: scores * 0.997)),
    "boxes a hundredth off": lambda: found(moved(0.01)),
    "with labels": lambda: found(moved(0.01), labelled=True),
    "a rare class in 13 of 14 items": lambda: rare(14, 13),
    "areas": lambda: masks(lambda mask, item: np.maximum(mask - (np.arange(48 * 48).reshape(48, 48) == 0), 0)),
    "a letter in each hundredth text": lambda: texts(lambda text, item: text[1:] if item % 100 == 1 else text),
    "vectors": lambda: vectors(shaken),
    "vectors in a cone": lambda: vectors(lambda side: shaken(side, 1e-6), spread=0.03),
    "vectors of copied items": lambda: vectors(shaken, copies=True),
    "vectors, with labels": lambda: vectors(shaken, labelled=True),
}


@pytest.mark.parametrize("ruin", RUINED)
def test_what_ruins_a_candidate_is_seen(ruin: str) -> None:
    metric, answers, others, labels = RUINED[ruin]()
    assert not passes(judged(reference(metric, answers, labels), others))


@pytest.mark.parametrize("change", FAITHFUL)
def test_what_is_only_a_little_off_passes(change: str) -> None:
    metric, answers, others, labels = FAITHFUL[change]()
    assert passes(judged(reference(metric, answers, labels), others))


# --------------------------------------------------------------------------------------------------------------- few to find


def sparse(items: int) -> Answers:
    """Objects in each of the first `items`, none in the others; an answer for each of `ITEMS`."""
    return [{"y": yolo(apart(1 + item % 3) if item < items else apart(0)).T} for item in range(ITEMS)]


def test_items_in_which_there_is_nothing_to_find_prove_nothing() -> None:
    answers = sparse(3)
    lost = [answers[0], answers[0], *answers[2:]]
    found = judged(reference(Metric.DETECTION, answers), lost)
    assert found.drop is None
    assert found.too_few == (
        "Detection needs at least 30 items that contain something to find for an interval, found 3 of 300"
    )


def test_an_interval_is_as_wide_as_the_items_with_something_to_find_say() -> None:
    few, many = (judged(reference(Metric.DETECTION, sparse(items)), sparse(items)).drop for items in (40, 300))
    assert few is not None and many is not None
    assert few.high > 0.08 and many.high < 0.02


def test_masks_that_are_all_background_prove_nothing() -> None:
    marked = np.zeros((24, 24), int)
    marked[4:9, 4:9] = 1
    masks = [np.roll(marked, item, axis=0) if item < 3 else np.zeros((24, 24), int) for item in range(ITEMS)]
    answers = [{"y": softmax(8 * np.eye(2)[mask], -1).transpose(2, 0, 1)} for mask in masks]
    found = judged(reference(Metric.SEGMENTATION, answers), answers)
    assert found.informative == 3 and found.drop is not None and found.drop.high > 0.5


def test_labels_of_few_objects_prove_nothing_whatever_is_found_elsewhere() -> None:
    metric, answers, _, labels = found(moved(0), labelled=True)
    assert labels is not None
    labels[[row for row in range(ITEMS) if row not in (2, 3, 4, 5)], :, 4] = -1
    judgement = judged(reference(metric, answers, labels), answers)
    assert judgement.drop is not None and judgement.drop.high > 0.4


def test_what_cannot_be_read_names_its_score() -> None:
    faint = [{"y": yolo(Boxes(t.corners, t.scores * 0.2, t.classes)).T} for t, _ in scenes(20)]
    with pytest.raises(DataError, match=r"a score of 0\.25 or more"):
        reference(Metric.DETECTION, faint)
