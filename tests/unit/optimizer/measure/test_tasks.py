"""Metrics of tasks: each gives its reference library's value, and an interval that holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import f1_score, jaccard_score
from sklearn.neighbors import NearestNeighbors

from fettle.api.optimizedmodel import AgreementSpec, EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Metric
from fettle.errors import DataError, RuntimeFailure
from fettle.optimizer.measure.accuracy import Judgement, Reference
from fettle.optimizer.measure.tasks import METRICS, recognized
from fettle.optimizer.measure.tasks.base import drop
from fettle.optimizer.measure.tasks.boxes import Boxes, suppress
from fettle.optimizer.measure.tasks.detection import F1, AveragePrecision
from fettle.optimizer.measure.tasks.judging import TaskReference

Array = np.ndarray[Any, Any]
RANDOM = 20_261_128


def signature(**outputs: Array) -> Signature:
    """Of a model that answers such arrays to an item."""
    given = Tensor(name="image", dtype="FP32", shape=(-1, 3, -1, -1), batch_axis=0)
    return Signature(
        inputs=(given,),
        outputs=tuple(
            Tensor(name=name, dtype="FP32", shape=(-1, *array.shape), batch_axis=0) for name, array in outputs.items()
        ),
    )


def fitted(metric: Metric, answers: list[dict[str, Array]], **spec: Any) -> Any:
    return METRICS[metric].fit(
        signature(**answers[0]), answers, EvaluationSpec(uri="pvc://data/items.npz", metric=metric, **spec)
    )


# ----------------------------------------------------------------------------------------------------------------- detection


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
    scores = random.uniform(0.05, 1, int(kept.sum()))
    return Boxes.best(
        np.concatenate([corners, more.corners]),
        np.concatenate([scores, more.scores]),
        np.concatenate([classes, more.classes]),
    )


def scenes(items: int) -> list[tuple[Boxes, Boxes]]:
    random = np.random.default_rng(RANDOM)
    truths = [boxes(random, int(random.integers(0, 8))) for _ in range(items)]
    return [(truth, shaken(random, truth)) for truth in truths]


def coco_average_precision(pairs: list[tuple[Boxes, Boxes]]) -> float:
    """AP at an overlap of .5, as the field's own tool computes it."""
    truth = COCO()
    images = [{"id": number + 1} for number in range(len(pairs))]
    annotations: list[Mapping[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (there, said) in enumerate(pairs, 1):
        for corners, label in zip(there.corners, there.classes, strict=True):
            width, height = corners[2:] - corners[:2]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": int(label), "bbox": [*corners[:2], width, height],
                 "area": width * height, "iscrowd": 0}
            )  # fmt: skip
        for corners, label, score in zip(said.corners, said.classes, said.scores, strict=True):
            found.append(
                {
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": [*corners[:2], *(corners[2:] - corners[:2])],
                    "score": score,
                }
            )
    truth.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": each} for each in range(3)],
        "info": {},
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def test_average_precision_is_that_of_cocos_own_tool() -> None:
    pairs = scenes(60)
    scorer = AveragePrecision()
    for truth, said in pairs:
        scorer.add(said, truth)
    assert scorer.pool().whole() == pytest.approx(coco_average_precision(pairs), abs=1e-6)


def test_average_precision_of_drawn_groups_is_that_of_the_items_drawn() -> None:
    pairs = scenes(40)
    scorer = AveragePrecision()
    for truth, said in pairs:
        scorer.add(said, truth)
    drawn = np.random.default_rng(1).integers(0, 40, (3, 40))
    value = scorer.pool().value(drawn)
    for row, expected in zip(drawn, value, strict=True):
        again = AveragePrecision()
        for item in row:
            again.add(pairs[item][1], pairs[item][0])
        assert again.pool().whole() == pytest.approx(expected, abs=1e-9)


def test_f1_of_boxes_counts_each_object_once() -> None:
    there = Boxes(np.array([[0, 0, 10, 10], [50, 50, 60, 60.0]]), np.array([0.9, 0.8]), np.array([1, 1]))
    said = Boxes(
        np.array([[0, 0, 10, 9], [0, 1, 10, 10], [50, 50, 60, 60.0]]), np.array([0.9, 0.7, 0.2]), np.array([1, 1, 1])
    )
    scorer = F1()
    scorer.add(said, there)  # one found, found twice, and one that it is not sure of
    assert scorer.pool().whole() == pytest.approx(f1_score([1, 0, 1], [1, 1, 0]))


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


@pytest.mark.parametrize("form", written(apart(8)))
def test_boxes_are_read_in_every_form_that_detectors_write(form: str) -> None:
    examples = (
        [written(apart(count))[form] for count in (8, 7, 8)]
        if form.startswith("YOLO")
        else [written(apart(8))[form]] * 3
    )
    metric = fitted(Metric.DETECTION, examples)
    read = metric.decode(examples[0])
    np.testing.assert_allclose(read.corners, apart(8).corners, atol=1e-3)
    np.testing.assert_allclose(read.scores, apart(8).scores, atol=1e-6)
    assert read.classes.tolist() == apart(8).classes.tolist()


@pytest.mark.parametrize(
    "answer",
    [
        {"logits": np.random.default_rng(0).normal(size=(10,)).astype(np.float32)},
        {"mask": np.random.default_rng(0).uniform(size=(3, 32, 32)).astype(np.float32)},
        {"steps": np.random.default_rng(0).uniform(size=(40, 6)).astype(np.float32)},
        {"boxes": np.zeros((5, 4), np.float32)},
    ],
    ids=str,
)
def test_what_holds_no_boxes_is_refused_with_its_shape(answer: dict[str, Array]) -> None:
    with pytest.raises(DataError, match=r"reads no boxes in \w+ \[") as refused:
        fitted(Metric.DETECTION, [answer] * 4)
    assert "YOLO" in refused.value.message


def test_of_two_boxes_of_a_class_that_overlap_the_surer_one_stays() -> None:
    corners = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10], [30, 30, 40, 40.0]])
    kept = suppress(corners, np.array([0.6, 0.9, 0.8, 0.1]), np.array([0, 0, 1, 0]))
    assert kept.scores.tolist() == [0.9, 0.8, 0.1]


# -------------------------------------------------------------------------------------------------------------- segmentation


def test_mean_overlap_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"scores": random.normal(size=(5, 12, 10)).astype(np.float32)} for _ in range(40)]
    labels = [np.where(random.random((12, 10)) < 0.7, answer["scores"].argmax(axis=0), 3) for answer in answers]
    reference = TaskReference(Metric.SEGMENTATION, fitted(Metric.SEGMENTATION, answers), answers, np.array(labels))
    truth = np.concatenate([label.ravel() for label in labels])
    said = np.concatenate([answer["scores"].argmax(axis=0).ravel() for answer in answers])
    assert reference.value == pytest.approx(jaccard_score(truth, said, average="macro"), abs=1e-6)


@pytest.mark.parametrize("shape", [(12, 10), (1, 12, 10), (1, 1, 12, 10)], ids=str)
def test_a_mask_of_one_score_is_judged_by_its_foreground(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"mask": random.uniform(size=shape).astype(np.float32)} for _ in range(40)]
    labels = [((answer["mask"] > 0.5) ^ (random.random(shape) < 0.1)).astype(np.int64) for answer in answers]
    reference = TaskReference(Metric.SEGMENTATION, fitted(Metric.SEGMENTATION, answers), answers, np.array(labels))
    truth = np.concatenate([label.ravel() for label in labels])
    said = np.concatenate([(answer["mask"] > 0.5).ravel() for answer in answers])
    assert reference.value == pytest.approx(jaccard_score(truth, said), abs=1e-6)


def test_places_that_are_ignored_do_not_count() -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"scores": random.normal(size=(5, 12, 10)).astype(np.float32)} for _ in range(12)]
    labels = np.array([np.where(np.arange(10) < 5, answer["scores"].argmax(axis=0), 255) for answer in answers])
    metric = fitted(Metric.SEGMENTATION, answers, ignore_label=255)
    assert TaskReference(Metric.SEGMENTATION, metric, answers, labels).value == 1
    with pytest.raises(DataError, match="ignoreLabel"):
        TaskReference(Metric.SEGMENTATION, fitted(Metric.SEGMENTATION, answers), answers, labels)


# ---------------------------------------------------------------------------------------------------------------------- text


def steps(text: str, alphabet: str = "-abc") -> Array:
    """Scores for each step, the best of which spell `text`."""
    found = np.full((len(text), len(alphabet)), 0.1, np.float32)
    found[np.arange(len(text)), [alphabet.index(letter) for letter in text]] = 0.9
    return found


def test_repeated_characters_are_merged_and_blanks_dropped() -> None:
    answers = [{"scores": steps("-aa--ab-c--")}, {"scores": steps("--a-b-ccc--")}]
    metric = fitted(Metric.TEXT, answers, classes=("", "a", "b", "c"))
    assert [metric.decode(answer) for answer in answers] == ["aabc", "abc"]
    assert metric.read(np.array("aabc"), answers[0]) == "aabc"


def test_without_a_blank_each_step_is_a_character() -> None:
    answers = [{"scores": steps("aabca", "abc")}, {"scores": steps("bcaab", "abc")}]
    assert fitted(Metric.TEXT, answers).decode(answers[0]) == [0, 0, 1, 2, 0]


def test_the_share_of_characters_read_right_is_one_less_the_error_rate() -> None:
    answers = [{"text": np.array(["kitten"], object)}, {"text": np.array(["flaw"], object)}]
    reference = TaskReference(Metric.TEXT, fitted(Metric.TEXT, answers), answers, np.array([["sitting"], ["lawn"]]))
    assert reference.value == pytest.approx(1 - (3 + 2) / (7 + 4))  # Levenshtein's own examples


def test_texts_beside_scores_need_the_characters_by_name() -> None:
    answers = [{"scores": steps("-a-b-c-a--")}] * 2
    with pytest.raises(DataError, match=r"data\.evaluation\.classes.*4 scores.*blank"):
        fitted(Metric.TEXT, answers).read(np.array("abca"), answers[0])


# ----------------------------------------------------------------------------------------------------------------- embedding


def test_precision_at_one_is_that_of_scikit_learns_neighbours() -> None:
    random = np.random.default_rng(RANDOM)
    labels = random.integers(0, 6, 80)
    vectors = random.normal(size=(6, 16))[labels] + random.normal(0, 1.2, (80, 16))
    answers = [{"vector": vector.astype(np.float32)} for vector in vectors]
    reference = TaskReference(Metric.EMBEDDING, fitted(Metric.EMBEDDING, answers), answers, labels)
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectors).kneighbors(return_distance=False)[:, 0]
    assert reference.value == pytest.approx(np.mean(labels[nearest] == labels), abs=1e-6)


def test_a_vector_turned_a_little_keeps_its_neighbour_and_another_one_loses_it() -> None:
    random = np.random.default_rng(RANDOM)
    vectors = random.normal(size=(60, 32))
    answers = [{"vector": vector.astype(np.float32)} for vector in vectors]
    reference = TaskReference(Metric.EMBEDDING, fitted(Metric.EMBEDDING, answers), answers, None)
    for noise, kept in ((0.0, 1.0), (1e-4, 1.0), (10.0, 0.2)):
        trial = reference.trial()
        for vector, answer in zip(vectors, answers, strict=True):
            trial.add(answer, {"vector": (vector + random.normal(0, noise, 32)).astype(np.float32)}, np.array(()))
        verdict = trial.verdict(0.05)
        assert verdict.value >= kept if kept == 1 else verdict.value <= kept
        assert verdict.drop is not None and verdict.drop.low <= 1 - verdict.value <= verdict.drop.high


# ------------------------------------------------------------------------------------------------------------------ evidence


def test_a_candidate_that_answers_as_the_original_lost_nothing_but_what_few_items_cannot_tell() -> None:
    answers = [{"output0": yolo(truth).T} for truth, _ in scenes(40)]
    reference = TaskReference(Metric.DETECTION, fitted(Metric.DETECTION, answers), answers, None)
    trial = reference.trial()
    for answer in answers:
        trial.add(answer, answer, np.array(()))
    found = trial.verdict(0.05)
    assert found.value == 1 and found.changed is None
    assert found.drop is not None and found.drop.value == 0 and 0.05 < found.drop.high < 0.15


def test_a_class_that_is_never_found_any_more_is_missed_though_it_is_rare() -> None:
    answers = [
        {"output0": yolo(apart(8 if item % 10 == 0 else 2)).T} for item in range(100)
    ]  # the third class in every tenth item
    without = [{"output0": yolo(apart(2)).T} for _ in answers]
    reference = TaskReference(Metric.DETECTION, fitted(Metric.DETECTION, answers), answers, None)
    for candidates, gone in ((answers, None), (without, "never finds 2, which the original finds in 10 items")):
        trial = reference.trial()
        for original, candidate in zip(answers, candidates, strict=True):
            trial.add(original, candidate, np.array(()))
        verdict = trial.verdict(0.05)
        assert verdict.gone is None if gone is None else gone in str(verdict.gone)


def test_labels_that_have_nothing_to_do_with_the_items_are_refused() -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"scores": random.normal(size=(4, 8, 8)).astype(np.float32)} for _ in range(30)]
    labels = np.stack([answer["scores"].argmax(axis=0) for answer in answers])
    metric = fitted(Metric.SEGMENTATION, answers)
    assert TaskReference(Metric.SEGMENTATION, metric, answers, labels).value == 1
    with pytest.raises(DataError, match="no better than with each label at the next item"):
        TaskReference(Metric.SEGMENTATION, metric, answers, np.roll(labels, -1, axis=0))


def test_items_in_which_nothing_is_found_prove_nothing() -> None:
    answers = [{"output0": yolo(boxes(np.random.default_rng(1), 0)).T} for _ in range(12)]
    with pytest.raises(DataError, match="finds no object in any of 12 items"):
        TaskReference(Metric.DETECTION, fitted(Metric.DETECTION, answers), answers, None)


def test_the_interval_of_lost_boxes_covers_the_truth_in_most_samples() -> None:
    """96 draws of 40 items from a large set in which the candidate loses a known share."""
    everything = scenes(2000)
    whole = F1()
    for truth, said in everything:
        whole.add(said, truth)
    lost = 1 - whole.pool().whole()
    random = np.random.default_rng(RANDOM)
    covered = 0
    for _ in range(96):
        itself, candidate = F1(), F1()
        for item in random.integers(0, 2000, 40):
            truth, said = everything[item]
            itself.add(truth, truth)
            candidate.add(said, truth)
        found = drop(itself.pool(), candidate.pool(), 0.05)
        assert found is not None
        covered += found.low <= lost <= found.high
    assert covered >= 85  # 91 are expected


def test_agreement_axis_says_where_the_classes_of_a_mask_lie() -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"scores": random.normal(size=(12, 10, 5)).astype(np.float32)} for _ in range(3)]
    metric = fitted(Metric.SEGMENTATION, answers, agreement=AgreementSpec(axis=3))
    np.testing.assert_array_equal(metric.decode(answers[0]), answers[0]["scores"].argmax(axis=-1).ravel())


# ---------------------------------------------------------------------------------------------------------------------- auto

SHAPES = hypothesis.extra.numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=20)
TYPES = strategies.sampled_from(["float32", "float16", "float64", "int64", "uint8", "bool", "object", "complex64"])


@given(strategies.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_model_answers_it_is_recognized_or_not_and_nothing_breaks(data: strategies.DataObject) -> None:
    shape, kind = data.draw(SHAPES), data.draw(TYPES)
    values = np.random.default_rng(data.draw(strategies.integers(0, 99))).normal(size=(3, *shape)) * 2
    answers = [{"y": np.full(shape, "text", object) if kind == "object" else value.astype(kind)} for value in values]
    with np.errstate(all="ignore"):
        found = recognized(signature(**answers[0]), answers, EvaluationSpec(uri="pvc://data/items.npz"))
    assert found is None or kind.startswith(("float", "int", "uint"))


def softmax(values: Array, axis: int) -> Array:
    shares = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(shares / shares.sum(axis=axis, keepdims=True), np.float32)


def kinds() -> dict[str, tuple[dict[str, Array], Metric | None]]:
    """Answers, and what they are surely for."""
    random = np.random.default_rng(RANDOM)
    discs = (np.add.outer((np.arange(32) - 16) ** 2, (np.arange(32) - 16) ** 2) < 80).astype(np.float32) * 0.98 + 0.01
    vector = random.normal(size=64)
    tags = softmax(5 * np.eye(6)[random.integers(0, 6, 40)], -1)
    spelled = "".join(f"{letter}--" for letter in "abcacbabccab")
    return {
        "boxes": (written(apart(8))["YOLO, a column a box"], Metric.DETECTION),
        "classes of a mask": ({"y": softmax(random.normal(size=(5, 32, 32)), 0)}, Metric.SEGMENTATION),
        "a mask": ({"y": discs[None]}, Metric.SEGMENTATION),
        "a text with blanks": ({"y": softmax(8 * steps(spelled), -1)}, Metric.TEXT),
        "an embedding": ({"y": (vector / np.linalg.norm(vector)).astype(np.float32)}, Metric.EMBEDDING),
        "classes": ({"y": softmax(random.normal(size=10), 0)}, None),
        "logits": ({"y": random.normal(size=1000).astype(np.float32)}, None),
        "tags": ({"y": tags}, None),
        "a vector of any length": ({"y": random.normal(size=64).astype(np.float32)}, None),
        "a picture": ({"y": random.uniform(size=(3, 32, 32)).astype(np.float32)}, None),
        "depth": ({"y": np.linspace(0, 1, 1024, dtype=np.float32).reshape(1, 32, 32)}, None),
        "logits of a mask": ({"y": random.normal(size=(5, 32, 32)).astype(np.float32)}, None),
        "a quantity": ({"y": np.array([3.5], np.float32)}, None),
        "texts": ({"y": np.array(["yes"], object)}, None),
    }


@pytest.mark.parametrize("kind", kinds())
def test_a_task_is_recognized_only_by_answers_that_hardly_are_anything_else(kind: str) -> None:
    answer, expected = kinds()[kind]
    assert recognized(signature(**answer), [answer] * 4, EvaluationSpec(uri="pvc://data/items.npz")) == expected


# ------------------------------------------------------------------------------------------------------------- what was read wrongly


def test_a_labelled_class_of_which_nothing_is_found_counts_as_nothing_found() -> None:
    scorer = AveragePrecision()
    there = Boxes(np.array([[0, 0, 9, 9], [20, 20, 30, 30.0]]), np.ones(2), np.array([0, 1]))
    scorer.add(Boxes(there.corners[:1], np.array([0.9]), np.array([0])), there)
    assert scorer.pool().whole() == pytest.approx(0.5)


def test_an_item_with_one_box_is_read_like_any_other() -> None:
    examples = [written(apart(count))["after NMS, one tensor"] for count in (8, 8, 8)]
    metric = fitted(Metric.DETECTION, examples)
    one = {"detections": examples[0]["detections"][:1]}
    assert len(metric.decode(one).scores) == 1


def test_boxes_that_do_not_even_match_themselves_were_not_read_right() -> None:
    random = np.random.default_rng(RANDOM)
    # Centre and size beside the scores of an SSD head: read as corners they have no area.
    answers = [
        {
            "boxes": np.concatenate([random.uniform(50, 99, (20, 2)), random.uniform(1, 9, (20, 2))], axis=1).astype(
                np.float32
            ),
            "scores": softmax(4 * random.normal(size=(20, 5)), -1),
        }
        for _ in range(12)
    ]
    with pytest.raises(DataError, match="against itself is 0, expected 1"):
        TaskReference(Metric.DETECTION, fitted(Metric.DETECTION, answers), answers, None)


def test_an_original_that_marks_the_same_in_every_item_proves_nothing() -> None:
    mask = {"mask": np.where(np.arange(256).reshape(16, 16) < 99, 0.99, 0.01).astype(np.float32)}
    with pytest.raises(DataError, match="answers the same to all 20 items"):
        TaskReference(Metric.SEGMENTATION, fitted(Metric.SEGMENTATION, [mask] * 20), [mask] * 20, None)


def test_where_one_place_changed_no_less_may_be_lost_than_where_nothing_changed() -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"mask": random.uniform(size=(16, 16)).astype(np.float32)} for _ in range(40)]
    reference = TaskReference(Metric.SEGMENTATION, fitted(Metric.SEGMENTATION, answers), answers, None)
    highs = []
    for places in (0, 1):
        trial = reference.trial()
        for item, answer in enumerate(answers):
            candidate = answer["mask"].copy()
            candidate.flat[:places] = 1 - candidate.flat[:places] if item == 0 else candidate.flat[:places]
            trial.add(answer, {"mask": candidate}, np.array(()))
        found = trial.verdict(0.05).drop
        assert found is not None
        highs.append(found.high)
    assert highs[1] >= highs[0] > 0.05


def test_answers_that_cannot_be_compared_are_the_candidates_fault() -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"mask": random.uniform(size=(16, 16)).astype(np.float32)} for _ in range(12)]
    trial = TaskReference(Metric.SEGMENTATION, fitted(Metric.SEGMENTATION, answers), answers, None).trial()
    with pytest.raises(RuntimeFailure) as refused:
        trial.add(answers[0], {"mask": random.uniform(size=(8, 8)).astype(np.float32)}, np.array(()))
    assert refused.value.reason is Reason.OUTPUTS_INVALID


def two_outputs(folder: Path, wrong: float) -> Judgement:
    """A candidate that marks as the original does, and answers another class in a share of the items."""
    random = np.random.default_rng(RANDOM)
    answers = [
        {"mask": random.uniform(size=(16, 16)).astype(np.float32), "kind": np.array(item % 3)} for item in range(200)
    ]
    ends = signature(mask=answers[0]["mask"], kind=np.array([]))
    kind = Tensor(name="kind", dtype="INT64", shape=(-1,), batch_axis=0)
    ends = ends.model_copy(update={"outputs": (ends.outputs[0], kind)})
    reference = Reference(folder, ends, None, EvaluationSpec(uri="-", metric=Metric.SEGMENTATION), generated=False)
    reference.add(answers)
    reference.finish()
    other = ({**answer, "kind": (answer["kind"] + (item < wrong * 200)) % 3} for item, answer in enumerate(answers))
    return reference.judge(other, lossy=True, alpha=0.05)


def test_what_the_metric_does_not_look_at_is_lost_as_well(tmp_path: Path) -> None:
    ruined, faithful = two_outputs(tmp_path / "ruined", 0.3).drop, two_outputs(tmp_path / "faithful", 0).drop
    assert ruined is not None and ruined.value == pytest.approx(0.3)
    assert faithful is not None and faithful.value == 0
