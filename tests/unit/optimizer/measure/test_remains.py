"""What is left of an output in a candidate's answers, and when a part of it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fettle.api.data import AgreementSpec, EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import AgreementMode, Metric
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.measure.judgement import Judgement
from fettle.store.arrays import Array

RNG = np.random.default_rng(8)


def judge(
    original: Sequence[Array],
    candidate: Sequence[Array],
    folder: Path,
    labels: Array | None = None,
    metric: Metric = Metric.ACCURACY,
    **agreement: Any,
) -> Judgement:
    """A lossy candidate's answers to the items of one output `y` of a model with batches, against the original's."""
    rank = np.asarray(original[0]).ndim
    kind = "FP32" if np.asarray(original[0]).dtype.kind == "f" else "INT64"
    output = Tensor(name="y", dtype=kind, shape=(-1,) * (rank + 1), batch_axis=0)
    signature = Signature(inputs=(output.model_copy(update={"name": "x"}),), outputs=(output,))
    spec = EvaluationSpec(uri="-", metric=metric, agreement=AgreementSpec(**agreement))
    form = LabelForm.CLASSES if metric == Metric.ACCURACY else LabelForm.NUMBERS
    reading = LabelReading(form=form, told="as they are") if labels is not None else None
    reference = Reference(folder, signature, labels, spec, generated=False, reading=reading)
    reference.add([{"y": np.asarray(answer)} for answer in original])
    reference.finish()
    return reference.judge(({"y": np.asarray(answer)} for answer in candidate), lossy=True, alpha=0.05)


def two_heads(folder: Path, other: Array, **agreement: Any) -> Judgement:
    """A candidate of two heads of classes that answers the labelled one as the original, and `other` in the second, whose are 0, 1, 2."""
    labels, soft = RNG.integers(0, 5, len(other)), np.eye(3, dtype=np.float32) * 0.7 + 0.1
    ends = [
        Tensor(name=name, dtype="FP32", shape=(-1, size), batch_axis=0) for name, size in (("x", 4), ("y", 5), ("z", 3))
    ]
    spec = EvaluationSpec(uri="-", agreement=AgreementSpec(**agreement))
    reading = LabelReading(form=LabelForm.CLASSES, told="numbers", classes=5)
    signature = Signature(inputs=tuple(ends[:1]), outputs=tuple(ends[1:]))
    reference = Reference(folder, signature, labels, spec, generated=False, reading=reading)
    answers = [np.eye(5, dtype=np.float32)[label] for label in labels]
    reference.add([{"y": answer, "z": soft[item % 3]} for item, answer in enumerate(answers)])
    reference.finish()
    changed = ({"y": answer, "z": soft[one]} for answer, one in zip(answers, other, strict=True))
    return reference.judge(changed, lossy=True, alpha=0.05)


def test_decisions_of_an_output_without_labels_count_as_changed_too(tmp_path: Path) -> None:
    same = np.arange(600) % 3
    other = np.where(np.arange(600) % 5 < 2, (same + 1) % 3, same)
    found = two_heads(tmp_path / "one", other).changed
    assert found is not None and found.value == pytest.approx(0.4) and found.low > 0.35
    for judged in (two_heads(tmp_path / "two", same), two_heads(tmp_path / "three", other, outputs=("y",))):
        assert judged.changed is not None and judged.changed.value == 0


def detector(items: int = 200) -> Array:
    """4 coordinates and 3 scores of 6 anchors; the last score is rarely anything but 0."""
    answers = RNG.uniform(size=(items, 7, 6)).astype(np.float32)
    answers[:, :4] *= 640
    answers[:, 6] *= RNG.random((items, 6)) < 0.02
    return answers


def with_channel(answers: Array, channel: int, values: Any) -> Array:
    changed = answers.copy()
    changed[:, channel] = values
    return changed


def test_a_faithful_candidate_keeps_its_variance_and_nothing_is_gone(tmp_path: Path) -> None:
    answers = detector()
    found = judge(answers, answers * np.float32(1.001), tmp_path)
    assert found.gone is None
    assert found.agreement.variance_kept == pytest.approx(1, abs=1e-4)
    assert found.agreement.worst_channel is not None


@pytest.mark.parametrize("channel", [0, 4, 6])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_channel_that_answers_one_number_is_dead_and_named(tmp_path: Path, channel: int, value: float) -> None:
    answers = detector()
    found = judge(answers, with_channel(answers, channel, value), tmp_path)
    assert found.gone is not None
    assert f"y[:, {channel}, :]" in found.gone
    assert "dead" in found.gone
    assert (found.agreement.variance_kept, found.agreement.worst_channel) == (0, f"y[:, {channel}, :]")


@pytest.mark.parametrize("agreement", [{"atol": 700.0}, {"rtol": 0.5, "atol": 10.0}])
def test_no_tolerance_hides_a_dead_channel(tmp_path: Path, agreement: dict[str, float]) -> None:
    answers = detector()
    found = judge(answers, with_channel(answers, 4, 0), tmp_path, **agreement)
    assert found.gone is not None


def test_a_rare_score_that_is_always_0_is_dead_though_nearly_all_items_agree(tmp_path: Path) -> None:
    answers = np.zeros((600, 3), np.float32)
    answers[:, :2] = RNG.uniform(size=(600, 2))
    answers[::40, 2] = 0.9
    found = judge(answers, with_channel(answers, 2, 0), tmp_path)
    assert found.agreement.value == pytest.approx(0.975)
    assert found.gone is not None
    assert "y[:, 2]" in found.gone


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (np.append(np.linspace(0, 1, 599), 1000), "one answer agrees with the original's to all but 1 of 600 items"),
        (np.linspace(999.999, 1000.001, 600), "the original gives the same answer for all 600 items"),
        (np.where(np.arange(600) % 100, 0, 1), "one answer agrees with the original's to all but 6 of 600 items"),
    ],
    ids=["one far outlier", "no more than noise", "six events"],
)
def test_agreement_that_one_answer_to_everything_would_reach_proves_nothing(
    tmp_path: Path, answers: Array, words: str
) -> None:
    original = answers.astype(np.float32)[:, None]
    found = judge(original, np.where(original > 500, original, np.median(original)), tmp_path)
    assert found.no_evidence is not None
    assert words in found.no_evidence
    assert "a candidate that ignores its input would pass: provide items with different answers" in found.no_evidence


def two_outputs(folder: Path, other: Array, **agreement: Any) -> Judgement:
    """The judgement of the original's own answers, whose second output `z` is `other`; the first one differs from item to item."""
    first = np.linspace(0, 1, len(other), dtype=np.float32)[:, None]
    ends = [Tensor(name=name, dtype="FP32", shape=(-1, 1), batch_axis=0) for name in "xyz"]
    spec = EvaluationSpec(uri="-", agreement=AgreementSpec(**agreement))
    reference = Reference(folder, Signature(inputs=tuple(ends[:1]), outputs=tuple(ends[1:])), None, spec, False)
    answers = [{"y": one, "z": np.float32([two])} for one, two in zip(first, other, strict=True)]
    reference.add(answers)
    reference.finish()
    return reference.judge(iter(answers), lossy=True, alpha=0.05)


def test_an_output_that_one_far_outlier_decides_proves_nothing_and_a_constant_one_does(tmp_path: Path) -> None:
    outlier = np.append(np.linspace(0, 1, 599), 1000)
    found = two_outputs(tmp_path / "outlier", outlier)
    assert found.no_evidence is not None
    assert "in output z, one answer agrees with the original's to all but 1 of 600 items" in found.no_evidence
    assert two_outputs(tmp_path / "named", outlier, outputs=("y",)).no_evidence is None
    assert two_outputs(tmp_path / "constant", np.full(600, 7)).no_evidence is None


@pytest.mark.parametrize(("items", "every"), [(600, 60), (12, 3)])
def test_ten_items_with_other_answers_are_evidence_or_a_third_of_few(tmp_path: Path, items: int, every: int) -> None:
    answers = np.where(np.arange(items) % every, 0, 1).astype(np.float32)[:, None]
    assert judge(answers, answers, tmp_path).no_evidence is None


def test_what_one_item_alone_says_may_be_lost_by_chance(tmp_path: Path) -> None:
    answers = np.zeros((600, 3), np.float32)
    answers[:, :2] = RNG.uniform(size=(600, 2))
    answers[:5, 2] = 0.9
    assert judge(answers, with_channel(answers, 2, 0), tmp_path).gone is None


def test_boxes_that_no_longer_follow_their_items_are_gone_though_they_stay_within_the_tolerance(tmp_path: Path) -> None:
    anchors = np.linspace(0, 640, 50)
    answers = (anchors + RNG.normal(size=(100, 50))).astype(np.float32)
    found = judge(answers, np.tile(anchors, (100, 1)).astype(np.float32), tmp_path)
    assert found.agreement.value > 0.95
    assert found.gone is not None
    assert "dead" in found.gone


def test_errors_as_large_as_what_a_channel_says_are_no_agreement_unless_a_person_allows_them(tmp_path: Path) -> None:
    anchors = np.linspace(0, 640, 50)
    answers = (anchors + RNG.normal(size=(100, 50))).astype(np.float32)
    noisy = (answers + RNG.normal(size=answers.shape)).astype(np.float32)
    found = judge(answers, noisy, tmp_path / "default")
    assert found.gone is not None
    assert "at least half is required" in found.gone
    assert judge(answers, noisy, tmp_path / "given", atol=6.4).gone is None


def test_a_shift_by_the_same_number_for_every_item_takes_no_variance(tmp_path: Path) -> None:
    answers = RNG.normal(size=(100, 3)).astype(np.float32)
    assert judge(answers, answers + 5, tmp_path).agreement.variance_kept == pytest.approx(1)


def test_of_a_sequence_of_any_length_each_feature_is_a_channel(tmp_path: Path) -> None:
    answers = [RNG.normal(size=(2 + item % 5, 4)).astype(np.float32) for item in range(100)]
    dead = [answer * np.float32([1, 1, 0, 1]) for answer in answers]
    found = judge(answers, dead, tmp_path)
    assert found.agreement.worst_channel == "y[:, :, 2]"
    assert found.gone is not None


def test_items_of_another_length_than_those_that_certify_are_screened_all_the_same(tmp_path: Path) -> None:
    output = Tensor(name="y", dtype="FP32", shape=(-1, -1, 4), batch_axis=0)
    signature = Signature(inputs=(output.model_copy(update={"name": "x"}),), outputs=(output,))
    certifying, screening = (
        Reference(tmp_path / name, signature, None, None, generated=False) for name in ("certifying", "screening")
    )
    certifying.add([{"y": RNG.normal(size=(7, 4)).astype(np.float32)} for _ in range(50)])
    certifying.finish()
    longer = [{"y": RNG.normal(size=(9, 4)).astype(np.float32)} for _ in range(30)]
    screening.add(longer)
    screening.finish_beside(certifying)
    found = screening.judge(iter(longer), lossy=True, alpha=0.05)
    assert (found.agreement.value, found.gone) == (1.0, None)


def test_on_items_whose_mean_is_another_a_dead_channel_is_named_all_the_same(tmp_path: Path) -> None:
    output = Tensor(name="y", dtype="FP32", shape=(-1, 7, 6), batch_axis=0)
    signature = Signature(inputs=(output.model_copy(update={"name": "x"}),), outputs=(output,))
    certifying, screening = (
        Reference(tmp_path / name, signature, None, None, generated=False) for name in ("certifying", "screening")
    )
    certifying.add([{"y": answer} for answer in detector(100)])
    certifying.finish()
    few = detector(32) * np.float32(1.3)
    screening.add([{"y": answer} for answer in few])
    screening.finish_beside(certifying)
    dead = with_channel(few, 4, 0.4)
    found = screening.judge(({"y": answer} for answer in dead), lossy=True, alpha=0.05)
    assert "y[:, 4, :] hardly varies any more (0 " in (found.gone or "")
    assert found.agreement.worst_channel == "y[:, 4, :]"


def test_an_output_of_one_number_is_a_channel_itself(tmp_path: Path) -> None:
    answers = RNG.normal(size=100).astype(np.float32)
    found = judge(answers, np.full(100, answers.mean()), tmp_path, atol=10.0)
    assert found.agreement.worst_channel == "y"
    assert found.gone is not None


def test_what_only_arithmetic_moves_is_no_channel(tmp_path: Path) -> None:
    answers = np.ones((100, 2), np.float32) + np.float32(1e-6) * RNG.normal(size=(100, 2)).astype(np.float32)
    found = judge(answers, np.ones((100, 2), np.float32), tmp_path)
    assert (found.gone, found.agreement.variance_kept) == (None, None)


def probabilities(items: int, rare: int) -> Array:
    """Softmax answers of three classes, the last of which is the highest for `rare` items."""
    logits = RNG.normal(size=(items, 3)) + np.array([2, 1, -8])
    logits[:rare, 2] += 14
    raised = np.exp(logits)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize(("rare", "gone"), [(12, True), (5, False)])
def test_a_class_that_is_never_answered_any_more_is_missed_though_it_is_rare(
    tmp_path: Path, rare: int, gone: bool
) -> None:
    answers = probabilities(1000, rare)
    never = answers.copy()
    never[:, 2] *= 0.01
    found = judge(answers, never, tmp_path)
    assert found.agreement.mode == AgreementMode.TOP_ONE
    assert found.agreement.value > 0.98
    assert (found.gone is not None) is gone


def test_a_class_that_was_never_the_highest_may_round_to_0(tmp_path: Path) -> None:
    answers = probabilities(1000, 0)
    rounded = answers.copy()
    rounded[:, 2] = 0
    assert judge(answers, rounded, tmp_path).gone is None


def test_a_label_that_is_never_answered_any_more_is_missed(tmp_path: Path) -> None:
    answers = [np.array([int(item % 50 == 0)], np.int64) for item in range(1000)]
    found = judge(answers, [np.zeros(1, np.int64)] * 1000, tmp_path)
    assert found.agreement.value == pytest.approx(0.98)
    assert "never gives the answer 1 in output y, which the original gives for 20 items" in (found.gone or "")


def test_labels_say_what_a_lost_class_costs(tmp_path: Path) -> None:
    answers = probabilities(1000, 12)
    never = answers.copy()
    never[:, 2] *= 0.01
    assert judge(answers, never, tmp_path, labels=answers.argmax(axis=1)).gone is None


def test_a_squared_error_does_not_see_a_small_target_that_is_dead(tmp_path: Path) -> None:
    targets = RNG.normal(size=(200, 2)).astype(np.float32) * np.float32([1000, 1])
    dead = targets * np.float32([1, 0])
    found = judge(targets, dead, tmp_path, labels=targets, metric=Metric.MEAN_SQUARED_ERROR)
    assert "y[:, 1]" in (found.gone or "")


def test_cosine_does_not_see_a_small_component_that_is_dead_unless_it_is_far_smaller_than_the_others(
    tmp_path: Path,
) -> None:
    vectors = RNG.normal(size=(200, 8)).astype(np.float32)
    vectors[:, 0] += 20
    dead = with_channel(vectors, 3, 0)
    found = judge(vectors, dead, tmp_path / "one", mode=AgreementMode.COSINE)
    assert found.agreement.value > 0.98
    assert "y[:, 3]" in (found.gone or "")
    vectors[:, 3] *= 0.01
    assert judge(vectors, with_channel(vectors, 3, 0), tmp_path / "two", mode=AgreementMode.COSINE).gone is None
