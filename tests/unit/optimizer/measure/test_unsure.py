"""What `agreement.unsure: Skip` leaves out, and what the rest proves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.measure.models import STATIC, Bench, candidate

from fettle.api.data import AgreementSpec, EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import AgreementMode, Metric, Objective, UnsureItems
from fettle.optimizer.measure.accuracy import Reference
from fettle.optimizer.report import text
from fettle.store.arrays import Array
from fettle.store.comparison import Outcome, compare
from fettle.store.manifest import read_stored

SURE, UNSURE = 300, 100  # items in this order
EVALUATION = EvaluationSpec(uri="-")


def skipping(
    unsure: UnsureItems = UnsureItems.SKIP, metric: Metric = Metric.AGREEMENT, **agreement: Any
) -> EvaluationSpec:
    """An evaluation by agreement that skips what the original is unsure of."""
    return EvaluationSpec(uri="-", metric=metric, agreement=AgreementSpec(unsure=unsure, **agreement))


def probabilities(best: Array, second: Array) -> Array:
    """Of three classes, the best of which is the item's number modulo 3."""
    answers = np.zeros((len(best), 3), np.float32)
    place = np.arange(len(best))
    answers[place, place % 3] = best
    answers[place, (place + 1) % 3] = second
    answers[place, (place + 2) % 3] = 1 - best - second
    return answers


def original() -> Array:
    """Probabilities of a model that is sure of the first 300 items, and of the next 100 says that it may well be wrong."""
    best = np.concatenate([np.full(SURE, 0.996), np.linspace(0.4, 0.5, UNSURE)])
    return probabilities(best, np.where(best > 0.9, 0.003, 0.35))


def swapped(answers: Array, items: slice) -> Array:
    """The same answers, but that the second class wins on `items`."""
    changed = answers.copy()
    places = np.arange(len(answers))[items]
    changed[places, places % 3], changed[places, (places + 1) % 3] = (
        answers[places, (places + 1) % 3],
        answers[places, places % 3],
    )
    return changed


def reference(folder: Path, evaluation: EvaluationSpec, labels: Array | None = None, **outputs: Array) -> Reference:
    """The original's answers to all items, judged."""
    names = {"x": (4,)} | {name: answers.shape[1:] for name, answers in outputs.items()}
    ends = tuple(Tensor(name=name, dtype="FP32", shape=(-1, *shape), batch_axis=0) for name, shape in names.items())
    reading = LabelReading(form=LabelForm.CLASSES, told="numbers", classes=3) if labels is not None else None
    found = Reference(folder, Signature(inputs=ends[:1], outputs=ends[1:]), labels, evaluation, False, reading)
    found.add(rows(**outputs))
    found.finish()
    return found


def rows(**outputs: Array) -> list[dict[str, Array]]:
    count = len(next(iter(outputs.values())))
    return [{name: answers[item] for name, answers in outputs.items()} for item in range(count)]


def test_a_candidate_that_differs_only_where_the_original_is_unsure_agrees_and_what_was_skipped_is_counted(
    tmp_path: Path,
) -> None:
    found = reference(tmp_path, skipping(), y=original())
    judged = found.judge(rows(y=swapped(original(), slice(SURE, None))), lossy=True, alpha=0.05)
    assert (judged.agreement.value, judged.agreement.unsure, judged.samples) == (1, UNSURE, SURE + UNSURE)
    assert judged.drop is not None
    assert 0 < judged.drop.high < 0.02, "the interval is that of the 300 items that are left"
    assert judged.no_evidence is None
    assert found.skipped is not None
    assert "100 of 400 items do not count in the agreement" in found.skipped.told
    assert "0.99 in y" in found.skipped.told


def test_decisions_that_do_not_count_in_items_that_do_are_told(tmp_path: Path) -> None:
    """A mask is many decisions: no item is skipped, and a quarter of what it says is not compared."""
    masks = np.stack([np.roll(original(), 3 * turn, axis=0)[:399] for turn in range(60)]).transpose(0, 2, 1)
    found = reference(tmp_path, skipping(axis=1), y=masks)
    assert found.skipped is not None
    assert found.skipped.items == 0
    assert (
        "0 of 60 items, and 24.67 % of the decisions in the others, do not count in the agreement" in found.skipped.told
    )


def test_where_the_original_is_sure_every_item_counts_as_ever(tmp_path: Path) -> None:
    changed = rows(y=swapped(original(), slice(0, 30)))
    judged = reference(tmp_path, skipping(), y=original()).judge(changed, lossy=True, alpha=0.05)
    assert judged.agreement.value == pytest.approx(0.9)
    assert judged.flips is not None
    assert judged.flips.worse == 30


def test_by_default_every_item_counts(tmp_path: Path) -> None:
    changed = rows(y=swapped(original(), slice(SURE, None)))
    judged = reference(tmp_path, EVALUATION, y=original()).judge(changed, lossy=True, alpha=0.05)
    assert (judged.agreement.value, judged.agreement.unsure) == (0.75, None)


def test_what_counts_here_is_what_counts_in_the_analysis_of_a_rollout(tmp_path: Path) -> None:
    changed = rows(y=swapped(original(), slice(SURE - 10, None)))
    found = reference(tmp_path, skipping(), y=original())
    judged = found.judge(changed, lossy=True, alpha=0.05)
    assert found.skipped is not None
    said = [compare(found.skipped.rules, one, other) for one, other in zip(rows(y=original()), changed, strict=True)]
    assert said.count(Outcome.UNSURE) == judged.agreement.unsure == found.skipped.items == UNSURE
    assert said.count(Outcome.DISAGREED) == 10 == round((1 - judged.agreement.value) * SURE)


def test_with_labels_they_say_where_the_original_is_unsure_and_the_drop_counts_every_item(tmp_path: Path) -> None:
    labels = np.arange(SURE + UNSURE) % 3
    labels[SURE::2] = (labels[SURE::2] + 1) % 3  # half of the unsure answers are wrong
    found = reference(tmp_path, skipping(metric=Metric.ACCURACY), labels, y=original() * np.float32(8))
    judged = found.judge(rows(y=swapped(original() * np.float32(8), slice(SURE, SURE + 90))), lossy=True, alpha=0.05)
    assert judged.agreement.unsure is not None
    assert 90 <= judged.agreement.unsure <= UNSURE, "a decision in 200 may be wrong above the margin"
    assert judged.agreement.value == 1
    assert judged.flips is not None
    assert (judged.flips.worse, judged.flips.better) == (45, 45)
    assert judged.changed is not None
    assert judged.changed.value == pytest.approx(90 / 400), "maxChanged bounds all answers"


def test_scores_that_are_no_probabilities_leave_the_surer_half(tmp_path: Path) -> None:
    scores = np.random.default_rng(5).normal(size=(200, 3)).astype(np.float32) * 10
    found = reference(tmp_path, skipping(mode=AgreementMode.TOP_ONE), y=scores)
    assert found.skipped is not None
    assert found.skipped.items == 100


def test_a_model_that_is_sure_of_everything_skips_nothing(tmp_path: Path) -> None:
    sure = probabilities(np.full(60, 0.999), np.full(60, 0.0005))
    found = reference(tmp_path, skipping(), y=sure)
    assert found.skipped is not None
    assert (found.skipped.items, found.no_evidence) == (0, None)


HALVES = probabilities(np.linspace(0.4, 0.6, 400), np.full(400, 0.35))
FEW: list[tuple[str, dict[str, Array], str]] = [
    ("20 of 40 items are left", {"y": HALVES[::10]}, "sure of its answers to 20 of 40 items"),
    (
        "three outputs are sure of other halves each",
        {"a": HALVES, "b": np.roll(HALVES, 201, axis=0), "c": np.roll(HALVES, 102, axis=0)},
        "at least 100 are needed",
    ),
]


@pytest.mark.parametrize(("sentence", "outputs", "message"), FEW, ids=[line[0] for line in FEW])
def test_too_few_items_that_count_prove_nothing_of_a_lossy_candidate(
    tmp_path: Path, sentence: str, outputs: dict[str, Array], message: str
) -> None:
    found = reference(tmp_path, skipping(), **outputs)
    lossy = found.judge(rows(**outputs), lossy=True, alpha=0.05)
    assert lossy.no_evidence is not None
    assert message in lossy.no_evidence
    assert "agreement.unsure to Count" in lossy.no_evidence
    exact = found.judge(rows(**outputs), lossy=False, alpha=0.05)
    assert (exact.exact, exact.no_evidence) == (True, None)


def test_where_no_item_is_left_nothing_is_claimed(tmp_path: Path) -> None:
    halves = {"a": HALVES, "b": np.roll(HALVES[::-1], 1, axis=0)}  # b is sure where a is not
    found = reference(tmp_path, skipping(), **halves)
    assert found.skipped is not None
    judged = found.judge(rows(**halves), lossy=True, alpha=0.05)
    left = len(HALVES) - found.skipped.items
    assert left <= 2
    assert judged.no_evidence is not None
    assert judged.drop is not None
    assert judged.drop.high > 0.5


def test_the_default_stands_in_no_task_and_no_key() -> None:
    count = EvaluationSpec(uri="-", agreement=AgreementSpec(unsure=UnsureItems.COUNT))
    assert "unsure" not in EVALUATION.to_json()["agreement"]
    assert count.digest == EVALUATION.digest
    assert skipping().to_json()["agreement"]["unsure"] == "Skip"
    assert EvaluationSpec.model_validate(skipping().to_json()) == skipping()


@pytest.fixture(scope="module")
def measured(bench: Bench) -> dict[str, CandidateStatus]:
    """A run of the digits' classifier without their labels, and a candidate with coarse weights."""
    coarse = bench.model("coarse", np.round(bench.data.weights * 4) / 4, bench.data.bias)
    report = bench.measure(
        candidate("original", bench.original, untouched=True),
        candidate("coarse", coarse, steps=STATIC),
        evaluation=skipping(mode=AgreementMode.TOP_ONE),
        objective=Objective.SIZE,
    )
    assert any("items do not count in the agreement" in note for note in report.notes)
    return {row.name: row for row in report.candidates}


@pytest.mark.timeout(300)
def test_rows_manifests_and_the_report_say_how_many_items_do_not_count(
    bench: Bench, measured: dict[str, CandidateStatus]
) -> None:
    row = measured["coarse"]
    assert row.agreement is not None
    assert row.agreement.unsure is not None
    assert 0 < row.agreement.unsure <= 399, "scores without probabilities: the surer half of 797 counts"
    assert row.reason != Reason.DATA_INVALID
    assert measured["original"].agreement is not None
    assert measured["original"].agreement.unsure == row.agreement.unsure
    manifest = read_stored(bench.store, str(measured["original"].artifact))
    assert manifest.data.unsure == row.agreement.unsure
    assert f"of which {row.agreement.unsure} do not count in the agreement" in text.proof(row)


def test_an_original_that_is_sure_of_one_answer_alone_proves_nothing_of_a_candidate_that_always_gives_it(
    tmp_path: Path,
) -> None:
    answers = np.array([[0.996, 0.004]] * SURE + [[0.45, 0.55]] * UNSURE, np.float32)
    always = np.array([[0.9, 0.1]] * (SURE + UNSURE), np.float32)
    judged = reference(tmp_path, skipping(), y=answers).judge(rows(y=always), lossy=True, alpha=0.05)
    assert (judged.agreement.value, judged.agreement.unsure) == (1, UNSURE)
    assert "the same answer for all 300 items of whose answers it is sure" in (judged.no_evidence or "")
