"""Metrics of tasks: each gives its reference library's value, and an interval that holds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import jaccard_score
from sklearn.neighbors import NearestNeighbors
from tests.unit.optimizer.measure.task_answers import (
    RANDOM,
    apart,
    fitted,
    judged,
    reference,
    scenes,
    signature,
    steps,
    yolo,
)

from fettle.api.data import AgreementSpec, EvaluationSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Tensor
from fettle.api.vocabulary import AgreementMode, Metric
from fettle.errors import DataError, RuntimeFailure
from fettle.optimizer.measure import items
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.judgement import Judgement
from fettle.optimizer.measure.tasks.base import examples_of
from fettle.optimizer.measure.tasks.judging import TaskReference
from fettle.optimizer.measure.tasks.segmentation import Segmentation
from fettle.store.arrays import Array

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


def greedy(scores: Array) -> list[int]:
    """The best path of CTC by its definition: runs of equal classes, without those of the blank (class 0)."""
    return [number for number, _ in groupby(scores.argmax(-1).tolist()) if number]


@pytest.mark.parametrize("form", [(18, 5), (1, 18, 5), (18, 1, 5), (1, 18, 1, 5)])
def test_a_text_is_read_along_its_steps_wherever_a_batch_of_one_stands(form: tuple[int, ...]) -> None:
    random = np.random.default_rng(RANDOM)
    letters = random.integers(1, 5, (24, 6))
    numbers = np.stack([0 * letters, letters, letters], axis=2).reshape(24, 18)  # a blank, and each letter twice
    scores = [np.eye(5, dtype=np.float32)[row] + random.uniform(0, 0.9, (18, 5)).astype(np.float32) for row in numbers]
    answers = [{"scores": each.reshape(form)} for each in scores]
    metric = fitted(Metric.TEXT, answers)
    assert metric.blank == 0
    assert [metric.decode(answer) for answer in answers] == [greedy(each) for each in scores] == letters.tolist()


def test_a_model_that_puts_the_steps_before_the_batch_answers_a_text_for_each_item() -> None:
    texts = ["-ab-c--a-", "-b-a-c-b-", "--c-a-b-c"]
    ends = signature(scores=steps(texts[0]))
    ends = ends.model_copy(
        update={"outputs": (ends.outputs[0].model_copy(update={"shape": (9, -1, 4), "batch_axis": 1}),)}
    )
    whole = np.stack([steps(text) for text in texts], axis=1)
    apart = items.answers(ends, {"scores": whole}, len(texts))
    metric = fitted(Metric.TEXT, apart, classes=("", "a", "b", "c"))
    assert [metric.decode(answer) for answer in apart] == ["abca", "bacb", "cabc"]


def test_steps_of_several_texts_in_one_answer_are_refused_with_their_shape() -> None:
    answers = [{"scores": np.stack([steps("-a-b-c"), steps("-b-a-c")], axis=1)}] * 2
    with pytest.raises(DataError, match=r"scores \[6, 2, 4\].*\[steps, 1, characters\]"):
        fitted(Metric.TEXT, answers)


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
    # The third class in every tenth item.
    answers = [{"output0": yolo(apart(8 if item % 10 == 0 else 2)).T} for item in range(100)]
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


def test_agreement_axis_says_where_the_classes_of_a_mask_lie() -> None:
    random = np.random.default_rng(RANDOM)
    answers = [{"scores": random.normal(size=(12, 10, 5)).astype(np.float32)} for _ in range(3)]
    metric = fitted(Metric.SEGMENTATION, answers, agreement=AgreementSpec(axis=3))
    np.testing.assert_array_equal(metric.decode(answers[0]), answers[0]["scores"].argmax(axis=-1))


# ------------------------------------------------------------------------------------------------------------- what was read wrongly


def test_an_original_that_marks_the_same_in_every_item_proves_nothing() -> None:
    mask = {"mask": np.where(np.arange(256).reshape(16, 16) < 99, 0.99, 0.01).astype(np.float32)}
    with pytest.raises(DataError, match="gives the same answer for all 20 items"):
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
