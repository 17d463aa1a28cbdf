"""What the measuring Job says of other items and other models than the usual: few, ruined, unlabelled, made up, or none that fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.measure.models import SIGNATURE, STATIC, Bench, candidate

from fettle.api.bounds import Rules, misses_accuracy
from fettle.api.constraints import AccuracyConstraint, Constraints
from fettle.api.data import AgreementSpec, EvaluationSpec
from fettle.api.labels import LabelForm, LabelReading
from fettle.api.reasons import Reason
from fettle.api.report import MeasureReport
from fettle.api.signature import Signature
from fettle.api.vocabulary import AgreementMode, CandidateState, Evidence, Metric, Objective
from fettle.errors import DataError, RuntimeFailure
from fettle.store.manifest import read_stored

pytestmark = pytest.mark.timeout(300)  # many processes, on machines that may be busy
NUMBERS = LabelReading(form=LabelForm.NUMBERS, told="numbers, as the model should output them")
BOUND = Constraints(accuracy=AccuracyConstraint(max_drop=0.1))
ALONE = Signature(
    inputs=(SIGNATURE.inputs[0].model_copy(update={"shape": (1, 64), "batch_axis": None}),),
    outputs=(SIGNATURE.outputs[0].model_copy(update={"shape": (1, 10), "batch_axis": None}),),
)


@pytest.fixture(scope="module")
def ruined(bench: Bench) -> MeasureReport:
    """A run of one candidate that loses most answers, and of one that loses too many for so few screening items to show it."""
    weights, bias = bench.data.weights, bench.data.bias
    screening = bench.store.put_data({"pixels": bench.data.training[:32], "labels": bench.data.training_labels[:32]})
    return bench.measure(
        candidate("most", bench.model("most", np.round(weights * 0.2), bias), steps=STATIC),
        candidate("many", bench.model("many", np.round(weights * 0.6), bias), steps=STATIC),
        screening=screening,
        constraints=BOUND,
    )


def test_a_finalist_that_loses_too_much_is_not_timed(ruined: MeasureReport) -> None:
    _, row = ruined.candidates
    assert (row.state, row.samples, row.speedup, row.artifact) == (CandidateState.MEASURED, 797, None, None)
    assert row.accuracy_drop is not None
    assert row.accuracy_drop.low > 0.1
    assert row.flips is not None
    assert row.flips.worse > row.flips.better
    assert ruined.baseline.measurements, "the baseline is timed all the same"


def test_what_ruins_the_screening_items_never_sees_those_that_certify(ruined: MeasureReport) -> None:
    row, _ = ruined.candidates
    assert (row.state, row.reason, row.samples) == (CandidateState.REJECTED, Reason.PRUNED, 32)
    assert "on 32 screening items the accuracy drop is" in (row.message or "")
    rules = Rules(BOUND, Objective.LATENCY, 1, False, 0.05)
    assert misses_accuracy(row, rules)


def test_without_labels_agreement_with_the_original_is_what_counts(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": bench.data.images})
    ruined = bench.model("unlabelled", np.round(bench.data.weights * 0.5), bench.data.bias)
    (row,) = bench.measure(candidate("ruined", ruined, steps=STATIC), items=items).candidates
    assert row.evidence == Evidence.AGREEMENT
    assert row.agreement is not None
    assert row.accuracy is not None
    assert row.accuracy_drop is not None
    assert row.agreement.mode == AgreementMode.ELEMENTWISE
    assert row.accuracy.metric == Metric.AGREEMENT
    assert row.accuracy_drop.value == pytest.approx(1 - row.agreement.value)
    assert row.accuracy_drop.high == pytest.approx(1 - row.agreement.low)


def test_generated_items_prove_nothing_about_a_lossy_candidate(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": bench.data.images[:64]})
    moved = bench.model("moved", bench.data.weights * 1.05, bench.data.bias)
    report = bench.measure(
        candidate("lossy", bench.original, steps=STATIC),
        candidate("exact", bench.original),
        candidate("moved", moved),
        items=items,
        generated=True,
        evaluation=None,
    )
    lossy, exact, moved_row = report.candidates
    assert (lossy.state, lossy.reason) == (CandidateState.REJECTED, Reason.EVALUATION_DATA_MISSING)
    assert lossy.measurements
    assert exact.exact
    assert exact.evidence == Evidence.GENERATED
    assert (moved_row.state, moved_row.reason) == (CandidateState.REJECTED, Reason.NUMERICAL_MISMATCH)


def test_a_metric_that_needs_a_bootstrap_is_not_claimed_on_few_items(bench: Bench) -> None:
    near = bench.model("near", bench.data.weights * 1.05, bench.data.bias)
    evaluation = EvaluationSpec(uri="pvc://data/x.npz", metric=Metric.MEAN_SQUARED_ERROR)
    targets = bench.data.images[:20] @ bench.data.weights + bench.data.bias + 0.1
    items = bench.store.put_data({"pixels": bench.data.images[:20], "labels": targets})
    report = bench.measure(candidate("near", near, steps=STATIC), items=items, evaluation=evaluation, labels=NUMBERS)
    (row,) = report.candidates
    assert (row.state, row.reason) == (CandidateState.REJECTED, Reason.EVALUATION_TOO_SMALL)
    assert "30 items" in (row.message or "")


def test_a_model_without_a_batch_axis_is_judged_one_item_at_a_time(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": bench.data.images[:40, None], "labels": bench.data.labels[:40]})
    report = bench.measure(candidate("ort", bench.original), items=items, signature=ALONE, batch_sizes=(1, 8))
    row = report.candidates[0]
    assert row.exact
    assert [one.batch_size for one in row.measurements] == [1]
    assert any("batch size 1" in note for note in report.notes)
    assert row.artifact is not None
    reference = read_stored(bench.store, row.artifact).reference
    assert reference is not None
    assert arrays_in(bench.store, reference.sha256)["input.pixels"].shape == (1, 64)


def test_a_batch_that_the_model_cannot_take_is_refused_before_anything_runs(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": bench.data.images[:40, None]})
    with pytest.raises(RuntimeFailure, match=r"use \[1\]"):
        bench.measure(items=items, signature=ALONE, batch_sizes=(4,))


def test_a_baseline_that_does_not_run_ends_the_job_with_its_reason(bench: Bench) -> None:
    broken = bench.store.put_model(_text_file(bench.folder / "broken"), "model.onnx")
    with pytest.raises(RuntimeFailure) as caught:
        bench.measure(candidate("ort", bench.original), original=broken)
    assert caught.value.reason == Reason.MODEL_LOAD_FAILED


def test_labels_that_fit_no_answer_end_the_job(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": bench.data.images[:40], "labels": np.zeros((40, 3), np.int64)})
    with pytest.raises(DataError, match="labelKey"):
        bench.measure(candidate("ort", bench.original), items=items)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            lambda labels: np.random.default_rng(0).permutation(labels),
            r"right on \d+ of 797 items.*best constant predictor",
        ),
        (lambda labels: (labels + 1) % 10, r"right on \d+ of 797 items.*the labels number the classes differently"),
    ],
    ids=["in another order", "of the classes beside"],
)
def test_an_original_that_does_not_know_the_items_ends_the_job(
    labels: Callable[[Any], Any], words: str, bench: Bench
) -> None:
    wrong = bench.store.put_data({"pixels": bench.data.images, "labels": labels(bench.data.labels)})
    with pytest.raises(DataError, match=words):
        bench.measure(candidate("ort", bench.original), items=wrong)


def test_items_that_the_original_all_answers_alike_prove_nothing_lossy(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": np.repeat(bench.data.images[:1], 400, axis=0)})
    evaluation = EvaluationSpec(uri="pvc://data/x.npz", agreement=AgreementSpec(mode=AgreementMode.TOP_ONE))
    report = bench.measure(
        candidate("lossy", bench.original, steps=STATIC),
        candidate("exact", bench.original),
        items=items,
        evaluation=evaluation,
    )
    lossy, exact = report.candidates
    assert (lossy.state, lossy.reason) == (CandidateState.REJECTED, Reason.DATA_INVALID)
    assert "gives the same answer for all 400 items" in (lossy.message or "")
    assert exact.exact


def _text_file(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_text("this is no model")
    return folder
