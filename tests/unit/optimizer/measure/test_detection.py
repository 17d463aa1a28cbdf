"""Metric Detection: boxes are read in every form that detectors write, and judged as the field's own tools do it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import f1_score
from tests.unit.optimizer.measure.task_answers import (
    POPULATION,
    RANDOM,
    apart,
    boxes,
    covered,
    fitted,
    scenes,
    scored,
    softmax,
    written,
    yolo,
)

from fettle.api.vocabulary import Metric
from fettle.errors import DataError
from fettle.optimizer.measure.tasks.average_precision import AveragePrecision
from fettle.optimizer.measure.tasks.base import Pool
from fettle.optimizer.measure.tasks.boxes import Boxes, suppress
from fettle.optimizer.measure.tasks.detection import F1
from fettle.optimizer.measure.tasks.judging import TaskReference
from fettle.store.arrays import Array


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
    pool = scored(AveragePrecision(), (said for _, said in pairs), (truth for truth, _ in pairs))
    assert pool.whole() == pytest.approx(coco_average_precision(pairs), abs=1e-6)


def crowd(objects: int, said: int) -> tuple[Boxes, Boxes]:
    """Objects in rows, and boxes at those of the first places, half of each class of two."""
    random = np.random.default_rng(RANDOM)
    corner = np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2) * 60.0
    every = Boxes.best(np.concatenate([corner, corner + 50], axis=1), random.uniform(0.1, 1, 400), np.arange(400) % 2)
    chosen = random.permutation(400)
    truth = every.some(np.sort(chosen[:objects]))
    return Boxes(truth.corners, np.ones(objects), truth.classes), every.some(np.sort(chosen[:said]))


def test_a_hundred_boxes_of_a_class_and_item_count_as_in_cocos_own_tool() -> None:
    truth, said = crowd(objects=150, said=400)  # twice a hundred boxes of each class
    scorer = AveragePrecision()
    scorer.add(said, truth)
    assert scorer.pool().whole() == pytest.approx(coco_average_precision([(truth, said)]), abs=1e-6)


def test_where_a_class_has_more_than_a_hundred_objects_in_an_item_all_of_them_may_be_found() -> None:
    truth, said = crowd(objects=400, said=400)
    scorer = AveragePrecision()
    scorer.add(said, truth)
    assert scorer.pool().whole() == 1 > coco_average_precision([(truth, said)]) + 0.3


def test_average_precision_of_drawn_groups_is_that_of_the_items_drawn() -> None:
    pairs = scenes(40)
    truth, said = ([pair[side] for pair in pairs] for side in (0, 1))
    drawn = np.random.default_rng(1).integers(0, 40, (3, 40))
    value = scored(AveragePrecision(), said, truth).value(drawn)
    for row, expected in zip(drawn, value, strict=True):
        again = scored(AveragePrecision(), (said[item] for item in row), (truth[item] for item in row))
        assert again.whole() == pytest.approx(expected, abs=1e-9)


def test_f1_of_boxes_is_counted_at_several_scores_and_overlaps() -> None:
    there = Boxes(np.array([[0, 0, 10, 10], [50, 50, 60, 60.0]]), np.array([0.9, 0.4]), np.array([1, 1]))
    said = Boxes(
        np.array([[0, 0, 10, 9], [0, 1, 10, 10], [50, 50, 60, 57.0]]), np.array([0.9, 0.6, 0.35]), np.array([1, 1, 1])
    )
    scorer = F1()
    scorer.add(said, there)  # one found, one found twice, and one that is less tight
    rows = [  # whether an object is there, and whether it is said, at each of three scores and two overlaps
        ([1, 0, 1], [1, 1, 1]), ([1, 0, 1, 0], [1, 1, 0, 1]),
        ([1, 0], [1, 1]), ([1, 0], [1, 1]),
        ([1], [1]), ([1], [1]),
    ]  # fmt: skip
    there_flags, said_flags = ([flag for row in rows for flag in row[side]] for side in (0, 1))
    assert scorer.pool().whole() == pytest.approx(f1_score(there_flags, said_flags))


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
    with pytest.raises(DataError, match=r"finds no boxes in \w+ \[") as refused:
        fitted(Metric.DETECTION, [answer] * 4)
    assert "YOLO" in refused.value.message


@pytest.mark.parametrize("form", ["YOLO, a column a box", "YOLOX", "after NMS, one tensor", "SSD"])
@pytest.mark.parametrize("nowhere", [np.nan, np.inf])
def test_a_box_that_lies_nowhere_is_none(form: str, nowhere: float) -> None:
    answers = [written(apart(count))[form] for count in (8, 7, 6) * 5]
    metric = fitted(Metric.DETECTION, answers[:3] if form.startswith("YOLO") else answers[:1])
    broken = {name: np.full_like(array, nowhere) for name, array in answers[0].items()}
    with np.errstate(all="ignore"):
        assert len(metric.decode(broken).scores) == 0
        assert TaskReference(Metric.DETECTION, metric, [*answers, broken], None).value == 1


def test_of_two_boxes_of_a_class_that_overlap_the_surer_one_stays() -> None:
    corners = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10], [30, 30, 40, 40.0]])
    scores = np.array([0.6, 0.9, 0.8, 0.1])
    kept = suppress(corners, scores, np.array([0, 0, 1, 0]))
    assert scores[kept].tolist() == [0.9, 0.8, 0.1]


def test_items_in_which_nothing_is_found_prove_nothing() -> None:
    answers = [{"output0": yolo(boxes(np.random.default_rng(1), 0)).T} for _ in range(12)]
    with pytest.raises(DataError, match=r"finds no object \(a score of 0.25 or more\) in any of 12 items"):
        TaskReference(Metric.DETECTION, fitted(Metric.DETECTION, answers), answers, None)


def test_the_interval_of_lost_boxes_covers_the_truth_in_most_samples() -> None:
    everything = scenes(POPULATION)
    truth, said = ([scene[side] for scene in everything] for side in (0, 1))

    def pool(found: list[Boxes], items: Array) -> Pool:
        return scored(F1(), (found[item] for item in items), (truth[item] for item in items))

    assert covered(partial(pool, truth), partial(pool, said), draws=60) >= 53  # 57 are expected


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


@pytest.mark.parametrize("form", ["centre and size", "offsets"])
def test_boxes_that_are_no_corners_are_refused(form: str) -> None:
    random = np.random.default_rng(RANDOM)
    centres, sizes = random.uniform(50, 99, (12, 20, 2)), random.uniform(1, 9, (12, 20, 2))
    places = np.concatenate([centres, sizes], axis=2) if form == "centre and size" else random.normal(size=(12, 20, 4))
    answers = [
        {"boxes": place.astype(np.float32), "scores": softmax(4 * random.normal(size=(20, 5)), -1)} for place in places
    ]
    with pytest.raises(DataError, match="finds no boxes"):
        fitted(Metric.DETECTION, answers)
