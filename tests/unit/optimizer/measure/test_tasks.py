"""Metrics of tasks: each gives its reference library's value, and an interval that holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import f1_score, jaccard_score
from sklearn.neighbors import NearestNeighbors
from tests.unit.optimizer.measure.task_answers import (
    RANDOM,
    apart,
    boxes,
    fitted,
    judged,
    reference,
    scenes,
    signature,
    softmax,
    steps,
    written,
    yolo,
)

from fettle.api.optimizedmodel import AgreementSpec, EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Tensor
from fettle.api.vocabulary import AgreementMode, Metric
from fettle.errors import DataError, RuntimeFailure
from fettle.optimizer.measure.accuracy import Judgement, Reference
from fettle.optimizer.measure.tasks.average_precision import AveragePrecision
from fettle.optimizer.measure.tasks.base import drop, examples_of
from fettle.optimizer.measure.tasks.boxes import Boxes, suppress
from fettle.optimizer.measure.tasks.detection import F1
from fettle.optimizer.measure.tasks.judging import TaskReference
from fettle.optimizer.measure.tasks.segmentation import Segmentation

Array = np.ndarray[Any, Any]

# ----------------------------------------------------------------------------------------------------------------- detection


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
    with pytest.raises(DataError, match=r"reads no boxes in \w+ \[") as refused:
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


@pytest.mark.parametrize("nothing", [np.nan, 0.0])
def test_an_item_without_a_direction_says_nothing_of_the_others(nothing: float) -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"vector": vector.astype(np.float32)} for vector in random.normal(size=(60, 32))]
    answers[7] = {"vector": np.full(32, nothing, np.float32)}
    original = reference(Metric.EMBEDDING, answers)
    same = judged(original, answers)
    assert same.accuracy.value == 1 and same.informative == 59
    others = [{"vector": vector.astype(np.float32)} for vector in random.normal(size=(60, 32))]
    assert judged(original, others).accuracy.value < 0.1


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
    for candidates, gone in ((answers, None), (without, "loses class or character 2 in 10 of 10 items")):
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
    with pytest.raises(DataError, match="no better than with their labels in 20 other orders"):
        TaskReference(Metric.SEGMENTATION, metric, answers, np.roll(labels, -1, axis=0))


def test_items_in_which_nothing_is_found_prove_nothing() -> None:
    answers = [{"output0": yolo(boxes(np.random.default_rng(1), 0)).T} for _ in range(12)]
    with pytest.raises(DataError, match=r"finds no object \(a score of 0.25 or more\) in any of 12 items"):
        TaskReference(Metric.DETECTION, fitted(Metric.DETECTION, answers), answers, None)


def test_the_interval_of_lost_boxes_covers_the_truth_in_most_samples() -> None:
    """96 draws of 60 items from a large set in which the candidate loses a known share."""
    everything = scenes(2000)
    whole = F1()
    for truth, said in everything:
        whole.add(said, truth)
    lost = 1 - whole.pool().whole()
    random = np.random.default_rng(RANDOM)
    covered = 0
    for _ in range(96):
        itself, candidate = F1(), F1()
        for item in random.integers(0, 2000, 60):
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
    np.testing.assert_array_equal(metric.decode(answers[0]), answers[0]["scores"].argmax(axis=-1))


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


@pytest.mark.parametrize("form", ["centre and size", "offsets"])
def test_boxes_that_are_no_corners_are_refused(form: str) -> None:
    random = np.random.default_rng(RANDOM)
    centres, sizes = random.uniform(50, 99, (12, 20, 2)), random.uniform(1, 9, (12, 20, 2))
    places = np.concatenate([centres, sizes], axis=2) if form == "centre and size" else random.normal(size=(12, 20, 4))
    answers = [
        {"boxes": place.astype(np.float32), "scores": softmax(4 * random.normal(size=(20, 5)), -1)} for place in places
    ]
    with pytest.raises(DataError, match="reads no boxes"):
        fitted(Metric.DETECTION, answers)


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


# -------------------------------------------------------------------------------------------------------------------- memory


def test_a_metric_is_fitted_to_few_answers_where_these_are_large() -> None:
    large = ({"mask": np.zeros((4, 1024, 512), np.float32)} for _ in range(100))  # 8 MiB each
    small = ({"mask": np.zeros((4, 8, 8), np.float32)} for _ in range(100))
    assert (len(examples_of(large)), len(examples_of(small))) == (8, 32)


class Counted(Segmentation):
    """Counts how often an answer is decoded."""

    decoded = 0

    def decode(self, answer: Mapping[str, Array]) -> Array:
        type(self).decoded += 1
        return super().decode(answer)


@pytest.mark.parametrize(("room", "again"), [(64 << 20, 0), (10 * 256, 10), (0, 20)])
def test_the_original_is_decoded_once_for_all_candidates_where_there_is_room(
    room: int, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fettle.optimizer.measure.tasks.judging.HELD_BYTES", room)
    random = np.random.default_rng(RANDOM)
    answers = [{"mask": random.uniform(size=(16, 16)).astype(np.float32)} for _ in range(20)]
    original = TaskReference(
        Metric.SEGMENTATION,
        Counted.fit(signature(**answers[0]), answers, EvaluationSpec(uri="-", metric=Metric.SEGMENTATION)),
        answers,
        None,
    )
    for _ in range(3):
        Counted.decoded = 0
        trial = original.trial()
        for answer in answers:
            trial.add(answer, answer, np.array(()))
        assert Counted.decoded == 20 + again and trial.verdict(0.05).value == 1


# ------------------------------------------------------------------------------------------------------------ on live inputs


LIVE: dict[str, tuple[Metric, list[Array], AgreementMode, bool]] = {
    "boxes": (Metric.DETECTION, [yolo(apart(3)).T, yolo(apart(2)).T], AgreementMode.ELEMENTWISE, False),
    "mask": (
        Metric.SEGMENTATION,
        list(np.random.default_rng(1).uniform(size=(2, 8, 16))),
        AgreementMode.ELEMENTWISE,
        False,
    ),
    "text": (Metric.TEXT, [np.array([text], object) for text in ("one", "other")], AgreementMode.EXACT, True),
    "scores of a text": (Metric.TEXT, [steps("-a-b-c-a"), steps("-b-a-b-c")], AgreementMode.ELEMENTWISE, False),
    "vector": (Metric.EMBEDDING, list(np.random.default_rng(1).normal(size=(2, 16))), AgreementMode.COSINE, True),
}


@pytest.mark.parametrize("said", LIVE)
def test_live_answers_are_compared_by_numbers_only_where_these_tell_what_is_said(said: str) -> None:
    metric, two, mode, numbers_count = LIVE[said]
    (rule,) = reference(metric, [{"y": answer} for answer in two * 8]).live().values()
    assert (rule.mode, rule.judged_by is None) == (mode, numbers_count)
