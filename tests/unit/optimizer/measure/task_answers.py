"""Answers of detectors, readers and other models of tasks, for tests of task metrics."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.data import EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Metric
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.judgement import Judgement
from fettle.optimizer.measure.tasks import METRICS
from fettle.optimizer.measure.tasks.base import Pool, Scorer, drop
from fettle.optimizer.measure.tasks.boxes import Boxes
from fettle.store.arrays import Array

Answers = list[dict[str, Array]]
RANDOM = 20_261_128
POPULATION = 2000  # items of which a sample's interval has to tell
KNOWN: dict[str, Reference] = {}  # by the digest of what they were made of
MOST_KNOWN = 6
FOLDER = tempfile.TemporaryDirectory()  # of the answers of originals; gone with this process
V2 = {"f": "FP32", "i": "INT64", "u": "INT64", "b": "BOOL", "O": "BYTES"}


def signature(**outputs: Array) -> Signature:
    """Of a model that answers such arrays to a picture."""
    given = Tensor(name="image", dtype="FP32", shape=(-1, 3, -1, -1), batch_axis=0)
    return Signature(
        inputs=(given,),
        outputs=tuple(
            Tensor(name=name, dtype=V2.get(array.dtype.kind, "FP32"), shape=(-1, *array.shape), batch_axis=0)
            for name, array in outputs.items()
        ),
    )


def evaluation(metric: Metric, **spec: Any) -> EvaluationSpec:
    return EvaluationSpec(uri="pvc://data/items.npz", metric=metric, **spec)


def fitted(metric: Metric, answers: Answers, **spec: Any) -> Any:
    return METRICS[metric].fit(signature(**answers[0]), answers, evaluation(metric, **spec))


def reference(metric: Metric, answers: Answers, labels: Array | None = None, **spec: Any) -> Reference:
    """The original's answers to all items, judged. Raises DataError where they prove nothing.

    The last ones are kept: many candidates are judged beside the same original, which takes as long to judge as two of them.
    """
    given = hashlib.sha256(pickle.dumps((metric, answers, labels, spec))).hexdigest()
    if given not in KNOWN:
        if len(KNOWN) == MOST_KNOWN:
            del KNOWN[next(iter(KNOWN))]
        KNOWN[given] = _reference(metric, answers, labels, spec)
    return KNOWN[given]


def _reference(metric: Metric, answers: Answers, labels: Array | None, spec: dict[str, Any]) -> Reference:
    reading = LabelReading(form=LabelForm.TASK, told="the task reads them") if labels is not None else None
    folder = Path(tempfile.mkdtemp(dir=FOLDER.name))
    found = Reference(folder, signature(**answers[0]), labels, evaluation(metric, **spec), False, reading)
    found.add(answers)
    found.finish()
    return found


def judged(original: Reference, candidate: Iterable[dict[str, Array]]) -> Judgement:
    return original.judge(iter(candidate), lossy=True, alpha=0.05)


def passes(found: Judgement, max_drop: float = 0.02, max_changed: float = 0.12) -> bool:
    """By the default bounds of a user who allows a drop of 2 %."""
    kept = found.drop is not None and found.drop.high <= max_drop and found.gone is None and found.no_evidence is None
    return kept and (found.changed is None or found.changed.high <= max_changed)


def rows(**outputs: Array) -> Answers:
    """Answers of a model to each item, from arrays with items along the first axis; numbers in float32, as models answer."""
    count = len(next(iter(outputs.values())))
    return [{name: np.asarray(array[item], np.float32) for name, array in outputs.items()} for item in range(count)]


def scored(scorer: Scorer, said: Iterable[Any], truth: Iterable[Any]) -> Pool:
    """What a scorer makes of all items."""
    for one, other in zip(said, truth, strict=True):
        scorer.add(one, other)
    return scorer.pool()


def covered(before: Callable[[Array], Pool], after: Callable[[Array], Pool], draws: int, items: int = 60) -> int:
    """In how many draws the interval of what was lost holds what is lost on all of `POPULATION` items.

    Both functions pool the items whose numbers they are given.
    """
    random = np.random.default_rng(7)
    everything = np.arange(POPULATION)
    lost = before(everything).whole() - after(everything).whole()
    held = 0
    for _ in range(draws):
        chosen = random.integers(0, POPULATION, items)
        found = drop(before(chosen), after(chosen), 0.05)
        assert found is not None
        held += found.low <= lost <= found.high
    return held


def boxes(random: np.random.Generator, count: int, classes: int = 3) -> Boxes:
    corner = random.uniform(0, 80, (count, 2))
    size = random.uniform(8, 30, (count, 2))
    return Boxes.best(
        np.concatenate([corner, corner + size], axis=1),
        random.uniform(0.05, 1, count),
        random.integers(0, classes, count),
    )


def shaken(random: np.random.Generator, truth: Boxes, by: float = 4.0) -> Boxes:
    """Near the truth, some missing, some classes wrong, some boxes too many."""
    kept = random.random(len(truth.scores)) < 0.85
    corners = truth.corners[kept] + random.normal(0, by, (int(kept.sum()), 4))
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    classes = np.where(random.random(int(kept.sum())) < 0.9, truth.classes[kept], 0)
    more = boxes(random, 3)
    scores = np.clip(truth.scores[kept] + random.normal(0, 0.03, int(kept.sum())), 0.01, 1)
    return Boxes.best(
        np.concatenate([corners, more.corners]),
        np.concatenate([scores, more.scores]),
        np.concatenate([classes, more.classes]),
    )


def scenes(items: int) -> list[tuple[Boxes, Boxes]]:
    random = np.random.default_rng(RANDOM)
    truths = [boxes(random, int(random.integers(0, 8))) for _ in range(items)]
    return [(truth, shaken(random, truth)) for truth in truths]


def yolo(said: Boxes, classes: int = 3, rows: int = 60, objectness: bool = False) -> Array:
    """An answer as a YOLO head writes it, box for box; the rest is background."""
    table = np.zeros((rows, 4 + objectness + classes), np.float32)
    table[:, :4] = [40, 40, 5, 5]
    count = len(said.scores)
    table[:count, :2] = (said.corners[:, :2] + said.corners[:, 2:]) / 2
    table[:count, 2:4] = said.corners[:, 2:] - said.corners[:, :2]
    if objectness:
        table[:count, 4] = 1
    table[np.arange(count), 4 + objectness + said.classes] = said.scores
    return table


def yolox(said: Boxes, side: int = 320, classes: int = 3) -> Array:
    """An answer as a YOLOX head writes it for a square picture: each box in the finest grid's cell in which its centre lies."""
    cells = side // 8
    table = np.zeros((cells**2 + (cells // 2) ** 2 + (cells // 4) ** 2, 5 + classes), np.float32)
    table[:, 2:4] = -1
    centre, size = (said.corners[:, :2] + said.corners[:, 2:]) / 2, said.corners[:, 2:] - said.corners[:, :2]
    column, row = np.floor(centre / 8).astype(int).T
    places = row * cells + column
    table[places, :2], table[places, 2:4] = centre / 8 - np.stack([column, row], axis=1), np.log(size / 8)
    table[places, 4], table[places, 5 + said.classes] = 1, said.scores
    return table


def apart(count: int) -> Boxes:
    """Boxes that do not touch, so that nothing is suppressed."""
    corner = np.stack([np.arange(count) * 40.0, np.arange(count) % 2 * 50.0], axis=1)
    return Boxes.best(np.concatenate([corner, corner + 30], axis=1), np.linspace(0.9, 0.3, count), np.arange(count) % 3)


def written(said: Boxes) -> dict[str, dict[str, Array]]:
    """The same boxes in every form that is read."""
    rows = np.concatenate([said.corners, said.scores[:, None], said.classes[:, None]], axis=1).astype(np.float32)
    padded = np.concatenate([rows, np.zeros((4, 6), np.float32)])
    scores = np.zeros((len(said.scores), 4), np.float32)
    scores[np.arange(len(scores)), said.classes + 1] = said.scores
    scores[:, 0] = 1 - scores.sum(axis=1)
    return {
        "YOLO, a column a box": {"output0": yolo(said).T},
        "YOLO, a batch axis of 1": {"output0": yolo(said).T[None]},
        "YOLO, a row a box, with objectness": {"output": yolo(said, objectness=True)},
        "YOLOX": {"output": yolox(said)},
        "after NMS, one tensor": {"detections": padded},
        "after NMS, three tensors": {
            "boxes": rows[:, :4],
            "scores": rows[:, 4],
            "labels": said.classes,
        },
        "SSD": {"boxes": rows[:, :4], "scores": scores},
    }


def steps(text: str, alphabet: str = "-abc") -> Array:
    """Scores for each step, the best of which spell `text`."""
    found = np.full((len(text), len(alphabet)), 0.1, np.float32)
    found[np.arange(len(text)), [alphabet.index(letter) for letter in text]] = 0.9
    return found


def softmax(values: Array, axis: int) -> Array:
    shares = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(shares / shares.sum(axis=axis, keepdims=True), np.float32)
