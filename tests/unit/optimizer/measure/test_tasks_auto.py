"""Which answers are taken for a task unasked: those that hardly are anything else."""

from __future__ import annotations

import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from tests.unit.optimizer.measure.task_answers import (
    RANDOM,
    apart,
    evaluation,
    fitted,
    signature,
    softmax,
    steps,
    written,
)

from fettle.api.vocabulary import Metric
from fettle.optimizer.measure.tasks import likely, recognized
from fettle.store.arrays import Array

SHAPES = hypothesis.extra.numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=20)
TYPES = strategies.sampled_from(["float32", "float16", "float64", "int64", "uint8", "bool", "object", "complex64"])


@given(strategies.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_model_answers_it_is_recognized_or_not_and_nothing_breaks(data: strategies.DataObject) -> None:
    shape, kind = data.draw(SHAPES), data.draw(TYPES)
    values = np.random.default_rng(data.draw(strategies.integers(0, 99))).normal(size=(3, *shape)) * 2
    answers = [{"y": np.full(shape, "text", object) if kind == "object" else value.astype(kind)} for value in values]
    with np.errstate(all="ignore"):
        found = recognized(signature(**answers[0]), answers, evaluation(Metric.AUTO))
    assert found is None or kind.startswith(("float", "int", "uint"))


@pytest.mark.parametrize("shape", [(0,), (0, 0), (0, 1, 0), (1, 0, 5), (1, 1, 0), (3, 0, 4, 4)])
def test_an_empty_answer_is_taken_for_no_task(shape: tuple[int, ...]) -> None:
    answers = [{"y": np.zeros(shape, np.float32)} for _ in range(3)]
    assert recognized(signature(**answers[0]), answers, evaluation(Metric.AUTO)) is None


def peaks(random: np.random.Generator) -> Array:
    """A heat map: one place is sure, the others around it are less so."""
    rows, columns = np.mgrid[:32, :32]
    row, column = random.integers(4, 28, 2)
    return (0.97 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)).astype(np.float32)[None]


def areas(random: np.random.Generator, classes: int) -> Array:
    """A class for each place, in blocks."""
    return random.integers(0, classes, (4, 4)).repeat(8, 0).repeat(8, 1)


def bins(random: np.random.Generator, width: float) -> Array:
    """Distances: for each place a probability for each of 48 steps."""
    far = 24 + 8 * random.normal(size=(32, 32))
    return softmax(-((np.arange(48)[:, None, None] - far) ** 2) / width, 0)


def tags(random: np.random.Generator) -> Array:
    """For each word a kind of name, or none (the first class)."""
    kinds = np.zeros(40, int)
    for place in (3, 14, 27):
        kinds[place : place + int(random.integers(1, 3))] = random.integers(1, 5)
    return softmax(6 * np.eye(5)[kinds], -1)


def kinds() -> dict[str, tuple[dict[str, Array], Metric | None]]:
    """Answers, and what they are surely for."""
    random = np.random.default_rng(RANDOM)
    discs = (np.add.outer((np.arange(32) - 16) ** 2, (np.arange(32) - 16) ** 2) < 80).astype(np.float32) * 0.98 + 0.01
    vector = random.normal(size=64)
    spelled = "".join(f"{letter}--" for letter in "abcacbabccab")
    turns = np.concatenate([np.ones((24, 1)), random.normal(0, 0.3, (24, 3))], axis=1).astype(np.float32)
    notes = np.where(random.random((100, 88)) < 0.05, 0.95, 0.01).astype(np.float32)
    heads = [softmax(2 * random.normal(size=(30, count)), -1) for count in (4, 7)]
    return {
        "boxes": (written(apart(8))["YOLO, a column a box"], Metric.DETECTION),
        "classes of a mask": (
            {"y": softmax(8 * np.eye(5)[areas(random, 5)], -1).transpose(2, 0, 1)},
            Metric.SEGMENTATION,
        ),
        "a mask": ({"y": discs[None]}, Metric.SEGMENTATION),
        "an embedding": ({"y": (vector / np.linalg.norm(vector)).astype(np.float32)}, Metric.EMBEDDING),
        "classes": ({"y": softmax(random.normal(size=10), 0)}, None),
        "logits": ({"y": random.normal(size=1000).astype(np.float32)}, None),
        "parts of speech": ({"y": softmax(5 * np.eye(6)[random.integers(0, 6, 40)], -1)}, None),
        "names in a sentence": ({"y": tags(random)}, None),
        "a text with blanks": ({"y": softmax(8 * steps(spelled), -1)}, None),
        "a text with blanks, steps first": ({"y": softmax(8 * steps(spelled), -1)[:, None]}, None),
        "two heads of tags": ({"one": heads[0], "other": heads[1]}, None),
        "turns of joints beside scores": ({"y": turns, "seen": random.uniform(0.1, 1, 24).astype(np.float32)}, None),
        "a vector of any length": ({"y": random.normal(size=64).astype(np.float32)}, None),
        "a picture": ({"y": random.uniform(size=(3, 32, 32)).astype(np.float32)}, None),
        "depth": ({"y": np.linspace(0, 1, 1024, dtype=np.float32).reshape(1, 32, 32)}, None),
        "steps of a distance": ({"y": bins(random, 50)}, None),
        "sharp steps of a distance": ({"y": bins(random, 0.05)}, None),
        "a heat map": ({"y": peaks(random)}, None),
        "a piano roll": ({"y": notes}, None),
        "soft classes of places": ({"y": softmax(random.normal(size=(5, 32, 32)), 0)}, None),
        "logits of a mask": ({"y": random.normal(size=(5, 32, 32)).astype(np.float32)}, None),
        "a quantity": ({"y": np.array([3.5], np.float32)}, None),
        "texts": ({"y": np.array(["yes"], object)}, None),
    }


@pytest.mark.parametrize("kind", kinds())
def test_a_task_is_recognized_only_by_answers_that_hardly_are_anything_else(kind: str) -> None:
    answer, expected = kinds()[kind]
    assert recognized(signature(**answer), [answer] * 4, evaluation(Metric.AUTO)) == expected


def test_a_mask_that_is_not_as_large_as_the_picture_is_not_sure() -> None:
    answer, _ = kinds()["a mask"]
    ends = signature(**answer)
    for size, expected in ((32, Metric.SEGMENTATION), (64, None)):
        picture = ends.inputs[0].model_copy(update={"shape": (-1, 3, size, size)})
        sized = ends.model_copy(update={"inputs": (picture,)})
        assert recognized(sized, [answer] * 4, evaluation(Metric.AUTO)) == expected


@pytest.mark.parametrize("kind", ["a text with blanks", "a text with blanks, steps first"])
def test_a_blank_among_the_names_of_the_characters_makes_a_text_sure(kind: str) -> None:
    answer, _ = kinds()[kind]
    named = evaluation(Metric.AUTO, classes=("", "a", "b", "c"))
    assert recognized(signature(**answer), [answer] * 4, named) == Metric.TEXT


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("a text with blanks", Metric.TEXT),
        ("a text with blanks, steps first", Metric.TEXT),
        ("a piano roll", Metric.SEGMENTATION),
        ("classes", None),
        ("logits", None),
    ],
)
def test_what_may_be_for_a_task_is_told_beside_the_metric_that_would_judge_it(
    kind: str, expected: Metric | None
) -> None:
    answer, _ = kinds()[kind]
    found = likely(signature(**answer), [answer] * 4, evaluation(Metric.AUTO))
    assert found == (None if expected is None else (expected, fitted(expected, [answer] * 4).told))


def test_an_output_that_the_user_names_is_not_judged_by_another_one() -> None:
    random = np.random.default_rng(RANDOM)
    answer = {**written(apart(8))["YOLO, a column a box"], "kind": softmax(random.normal(size=4), 0)}
    for output, expected in ((None, Metric.DETECTION), ("output0", Metric.DETECTION), ("kind", None)):
        assert recognized(signature(**answer), [answer] * 4, evaluation(Metric.AUTO, output=output)) == expected
