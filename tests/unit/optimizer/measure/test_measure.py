"""The measuring Job on real models in real processes: what a run of it says, and what it leaves in the store."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import helper
from tests.unit.optimizer.measure.models import (
    SIGNATURE,
    STATIC,
    Digits,
    candidate,
    classifier,
    digits,
    open_store,
    put_model,
    task,
)

from fettle.api import catalog
from fettle.api.bounds import Rules, misses_accuracy
from fettle.api.constraints import AccuracyConstraint, Constraints
from fettle.api.optimizedmodel import EvaluationSpec
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import MeasureReport
from fettle.api.signature import Signature
from fettle.api.task import StoredData, StoredModel
from fettle.api.vocabulary import (
    AgreementMode,
    Basis,
    CandidateState,
    Evidence,
    Metric,
    Objective,
    Precision,
    RuntimeName,
)
from fettle.errors import DataError, RuntimeFailure
from fettle.optimizer import measure
from fettle.runtimes import base, cpu
from fettle.runtimes.base import get
from fettle.store.manifest import MODEL_FOLDER, REFERENCE, fetch_artifact, model_entry, read_reference, read_stored
from fettle.store.store import Store
from fettle.store.uris import Mounts

pytestmark = pytest.mark.timeout(900)  # many processes, on machines that may be busy
MOUNTS = Mounts(allow_files=True)
ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO


@dataclass(frozen=True)
class Bench:
    """A store with models and items."""

    store: Store
    folder: Path
    data: Digits
    original: StoredModel
    items: StoredData

    def model(self, name: str, *arguments: Any) -> StoredModel:
        """Store a classifier."""
        return put_model(self.store, self.folder / "models", name, classifier(*arguments))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The digits, their linear classifier, 797 labelled items."""
    folder = tmp_path_factory.mktemp("measure")
    store, data = open_store(folder / "store"), digits()
    original = put_model(store, folder / "models", "original", classifier(data.weights, data.bias))
    return Bench(store, folder, data, original, store.put_data({"pixels": data.images, "labels": data.labels}))


@contextmanager
def killed(name: str) -> Iterator[None]:
    """As soon as a worker of that candidate appears, it dies as a crash in native code would end it."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for child in psutil.Process().children():
                try:
                    if name in child.cmdline():
                        child.send_signal(signal.SIGSEGV)
                        return
                except psutil.NoSuchProcess:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def report(bench: Bench) -> MeasureReport:
    """One run with everything that can happen to a candidate."""
    weights, bias = bench.data.weights, bench.data.bias
    logarithm = [helper.make_node("Log", ["sum"], ["log"])]
    narrow = [
        helper.make_node("Constant", [], ["few"], value_ints=[0, 1, 2]),
        helper.make_node("Gather", ["sum", "few"], ["gathered"], axis=1),
    ]
    with killed("crashes"):
        return measure.run(
            task(
                bench.store,
                bench.original,
                bench.items,
                candidate("original", bench.original, untouched=True),
                candidate("fp32-openvino", bench.original, OPENVINO),
                candidate("crashes", bench.model("crashes", weights, bias)),
                candidate("nan", bench.model("nan", weights, bias, logarithm, "log")),
                candidate("narrow", bench.model("narrow", weights, bias, narrow, "gathered")),
                candidate("fine", bench.model("fine", np.round(weights * 64) / 64, bias), steps=STATIC),
                candidate("half-onnxruntime", bench.original, ORT, precision=Precision.FLOAT16),
                objective=Objective.SIZE,  # no one is too slow
            ),
            bench.store,
        )


@pytest.fixture
def rows(report: MeasureReport) -> dict[str, CandidateStatus]:
    """Its rows by name."""
    return {row.name: row for row in report.candidates}


def test_every_candidate_is_a_row_in_the_order_asked(report: MeasureReport) -> None:
    assert [row.name for row in report.candidates] == [
        "original",
        "fp32-openvino",
        "crashes",
        "nan",
        "narrow",
        "fine",
        "half-onnxruntime",
    ]
    assert report.measured_on == cpu.detect()
    assert report.baseline.accuracy is not None
    assert report.baseline.accuracy.value > 0.9
    assert report.baseline.measurements[0].latency_milliseconds.p50 is not None


@pytest.mark.parametrize(
    ("name", "state", "reasons", "message"),
    [
        ("crashes", CandidateState.FAILED, {Reason.MODEL_LOAD_FAILED, Reason.JOB_FAILED}, "SIGSEGV"),
        ("nan", CandidateState.REJECTED, {Reason.OUTPUTS_INVALID}, "NaN or infinite"),
        ("narrow", CandidateState.REJECTED, {Reason.OUTPUTS_INVALID}, "shape"),
        ("half-onnxruntime", CandidateState.REJECTED, {Reason.RECIPE_NOT_APPLICABLE}, "Float16"),
    ],
)
def test_a_candidate_that_breaks_is_one_row_with_its_reason(
    rows: dict[str, CandidateStatus], name: str, state: CandidateState, reasons: set[Reason], message: str
) -> None:
    row = rows[name]
    assert row.state == state
    assert row.reason in reasons
    assert message in (row.message or "")
    assert row.artifact is None
    assert not row.measurements


def test_the_original_is_a_candidate_that_loses_and_wins_nothing(
    rows: dict[str, CandidateStatus], report: MeasureReport
) -> None:
    row = rows["original"]
    assert row.state == CandidateState.MEASURED
    assert row.exact
    assert row.speedup is not None
    assert (row.speedup.value, row.speedup.basis) == (1.0, Basis.SOURCE_RUNTIME)
    assert row.measurements == report.baseline.measurements
    assert row.artifact is not None


def test_another_runtime_in_float32_is_exact_and_its_drop_needs_no_interval(rows: dict[str, CandidateStatus]) -> None:
    row = rows["fp32-openvino"]
    assert row.exact
    assert row.accuracy_drop is not None
    assert (row.accuracy_drop.value, row.accuracy_drop.low, row.accuracy_drop.high) == (0, 0, 0)
    assert row.agreement is not None
    assert (row.agreement.value, row.agreement.mode) == (1.0, AgreementMode.TOP_ONE)
    assert row.executed is not None
    assert row.executed.total >= 1
    assert row.measurements[0].peak_memory_bytes > 10_000_000


def test_what_a_lossy_candidate_lost_is_judged_on_all_labelled_items(rows: dict[str, CandidateStatus]) -> None:
    row = rows["fine"]
    assert (row.evidence, row.samples, row.exact) == (Evidence.LABELS, 797, False)
    assert row.accuracy_drop is not None
    assert row.accuracy_drop.low < row.accuracy_drop.value < row.accuracy_drop.high < 0.03


def ruined(bench: Bench, name: str, **changes: Any) -> MeasureReport:
    """A run whose only candidate loses a quarter of the answers."""
    model = bench.model(name, np.round(bench.data.weights * 0.5), bench.data.bias)
    asked = task(
        bench.store,
        bench.original,
        bench.items,
        candidate("ruined", model, steps=STATIC),
        **{"constraints": Constraints(accuracy=AccuracyConstraint(max_drop=0.05)), **changes},
    )
    return measure.run(asked, bench.store)


def test_a_finalist_that_loses_too_much_spends_its_share_of_the_error_and_no_time(bench: Bench) -> None:
    report = ruined(bench, "ruined-finalist")
    (row,) = report.candidates
    assert (row.state, row.samples, row.speedup, row.artifact) == (CandidateState.MEASURED, 797, None, None)
    assert row.accuracy_drop is not None
    assert row.accuracy_drop.low > 0.2
    assert row.flips is not None
    assert row.flips.worse > 100
    assert report.certified == 1
    assert report.baseline.measurements, "the baseline is timed all the same"


def test_what_ruins_the_screening_items_never_sees_those_that_certify(bench: Bench) -> None:
    data = bench.data
    screening = bench.store.put_data({"pixels": data.training[:32], "labels": data.training_labels[:32]})
    report = ruined(bench, "ruined-screened", screening=screening)
    (row,) = report.candidates
    assert (row.state, row.reason, row.samples) == (CandidateState.REJECTED, Reason.PRUNED, 32)
    assert "on 32 screening items the drop of Accuracy is" in (row.message or "")
    assert report.certified == 0
    rules = Rules(Constraints(accuracy=AccuracyConstraint(max_drop=0.05)), Objective.LATENCY, 1, False, 0.05)
    assert misses_accuracy(row, rules), "so that the other preset is tried"


def test_an_artifact_gives_its_reference_again_within_its_tolerance(
    bench: Bench, rows: dict[str, CandidateStatus], tmp_path: Path
) -> None:
    for name in ("original", "fp32-openvino", "fine"):
        sha256 = rows[name].artifact
        assert sha256 is not None
        folder = tmp_path / name
        manifest = fetch_artifact(f"{bench.store.uri}/artifacts/{sha256}", sha256, folder, MOUNTS)
        assert (folder / MODEL_FOLDER).is_dir()
        inputs, outputs = read_reference(folder / REFERENCE)
        session = get(manifest.runtime).load(model_entry(folder, manifest), manifest.settings, manifest.signature)
        found = session.infer(inputs)
        session.close()
        assert len(inputs["pixels"]) == 8
        for output, expected in outputs.items():
            tolerance = manifest.tolerances[output]
            np.testing.assert_allclose(found[output], expected, rtol=tolerance.rtol, atol=tolerance.atol)


def test_a_lossy_artifact_names_what_made_it_and_an_exact_one_does_not_depend_on_calibration(
    bench: Bench, rows: dict[str, CandidateStatus]
) -> None:
    fine, exact = (read_stored(bench.store, str(rows[name].artifact)) for name in ("fine", "fp32-openvino"))
    assert fine.recipe.steps == STATIC
    entry = catalog.step(STATIC[0], ORT)
    assert entry is not None
    assert fine.recipe.revisions == (entry.revision,)
    assert set(fine.libraries) == {"onnx", "onnxruntime"}
    assert set(exact.libraries) == {"openvino"}
    assert exact.data.calibration is None
    assert exact.tolerances["logits"].atol < fine.tolerances["logits"].atol


def test_an_artifact_says_how_its_answers_are_compared_and_when_it_is_sure_of_them(
    bench: Bench, rows: dict[str, CandidateStatus]
) -> None:
    (often_wrong,) = ruined(bench, "ruined-and-timed", constraints=Constraints()).candidates
    exact, wrong = (read_stored(bench.store, str(row.artifact)) for row in (rows["original"], often_wrong))
    rule, coarse = exact.comparisons["logits"], wrong.comparisons["logits"]
    assert (rule.mode, coarse.mode) == (AgreementMode.TOP_ONE, AgreementMode.TOP_ONE)
    assert rule.margin > 0 and coarse.margin > 0  # which ones: test_sureness


def test_figures_lie_beside_the_artifact(bench: Bench, rows: dict[str, CandidateStatus], report: MeasureReport) -> None:
    folder = bench.folder / "store" / "artifacts" / str(rows["fine"].artifact) / "measurements"
    (path,) = folder.iterdir()
    document = bench.store.read_json(f"artifacts/{rows['fine'].artifact}/measurements/{path.name}")
    assert document["measuredOn"] == report.measured_on.to_json()
    assert document["row"]["name"] == "fine"


def test_the_same_work_on_the_same_cpu_writes_the_same_artifacts(
    bench: Bench, rows: dict[str, CandidateStatus]
) -> None:
    fine = read_stored(bench.store, str(rows["fine"].artifact)).model
    again = measure.run(
        task(
            bench.store,
            bench.original,
            bench.items,
            candidate("fp32-openvino", bench.original, OPENVINO),
            candidate("fine", fine, steps=STATIC),
            objective=Objective.SIZE,
        ),
        bench.store,
    )
    assert [row.artifact for row in again.candidates] == [rows["fp32-openvino"].artifact, rows["fine"].artifact]


def test_the_published_artifact_is_measured_in_the_same_rounds(bench: Bench, rows: dict[str, CandidateStatus]) -> None:
    published = str(rows["fine"].artifact)
    fine = read_stored(bench.store, published).model
    asked = task(
        bench.store, bench.original, bench.items, candidate("fp32", bench.original, OPENVINO), incumbent=published
    )
    _, row = measure.run(asked, bench.store).candidates
    assert (row.name, row.recipe, row.artifact) == ("published", "fine", published)
    assert row.speedup is not None
    same = asked.model_copy(update={"candidates": (candidate("fine-again", fine, steps=STATIC),)})
    (row,) = measure.run(same, bench.store).candidates
    assert (row.name, row.artifact) == ("fine-again", published)


@pytest.mark.parametrize("other", ["source", "store"])
def test_a_published_artifact_that_cannot_be_compared_with_is_left_alone(
    bench: Bench, rows: dict[str, CandidateStatus], other: str
) -> None:
    told = {
        "source": {"incumbent": str(rows["fine"].artifact), "source_sha256": "1" * 64},
        "store": {"incumbent": "2" * 64},
    }
    report = measure.run(task(bench.store, bench.original, bench.items, **told[other]), bench.store)
    assert report.candidates == ()
    assert any("does not exist" in note for note in report.notes) == (other == "store")


def test_with_objective_throughput_the_best_batch_is_in_the_artifacts_settings(bench: Bench) -> None:
    streams = candidate("streams", bench.original)
    settings = streams.plan.settings.model_copy(update={"streams": 2})
    streams = streams.model_copy(update={"plan": streams.plan.model_copy(update={"settings": settings})})
    asked = task(bench.store, bench.original, bench.items, streams, objective=Objective.THROUGHPUT, batch_sizes=(1, 16))
    (row,) = measure.run(asked, bench.store).candidates
    assert row.settings.preferred_batch in (1, 16)
    assert row.artifact is not None
    assert read_stored(bench.store, row.artifact).settings == row.settings
    assert row.speedup is not None
    assert {one.batch_size for one in row.measurements} == {1, 16}


# ------------------------------------------------------------------------------------------------- other data, other models


def test_without_labels_agreement_with_the_original_is_what_counts(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": bench.data.images})
    ruined = bench.model("unlabelled", np.round(bench.data.weights * 0.5), bench.data.bias)
    asked = task(bench.store, bench.original, items, candidate("ruined", ruined, steps=STATIC))
    row = measure.run(asked, bench.store).candidates[0]
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
    asked = task(
        bench.store,
        bench.original,
        items,
        candidate("lossy", bench.original, steps=STATIC),
        candidate("exact", bench.original),
        candidate("moved", moved),
        generated=True,
        evaluation=None,
    )
    lossy, exact, moved_row = measure.run(asked, bench.store).candidates
    assert (lossy.state, lossy.reason) == (CandidateState.REJECTED, Reason.EVALUATION_DATA_MISSING)
    assert lossy.measurements
    assert exact.exact
    assert exact.evidence == Evidence.GENERATED
    assert (moved_row.state, moved_row.reason) == (CandidateState.REJECTED, Reason.NUMERICAL_MISMATCH)


def test_a_metric_that_needs_a_bootstrap_is_not_claimed_on_few_items(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": bench.data.images[:20], "labels": bench.data.labels[:20]})
    near = bench.model("near", bench.data.weights * 1.05, bench.data.bias)
    evaluation = EvaluationSpec(uri="pvc://data/x.npz", metric=Metric.MEAN_SQUARED_ERROR)
    targets = np.tile(np.eye(10, dtype=np.float32)[:1], (20, 1))
    items = bench.store.put_data({"pixels": bench.data.images[:20], "labels": targets})
    asked = task(bench.store, bench.original, items, candidate("near", near, steps=STATIC), evaluation=evaluation)
    row = measure.run(asked, bench.store).candidates[0]
    assert (row.state, row.reason) == (CandidateState.REJECTED, Reason.EVALUATION_TOO_SMALL)
    assert "30 items" in (row.message or "")


def test_a_model_without_a_batch_axis_is_judged_one_item_at_a_time(bench: Bench) -> None:
    signature = Signature(
        inputs=(SIGNATURE.inputs[0].model_copy(update={"shape": (1, 64), "batch_axis": None}),),
        outputs=(SIGNATURE.outputs[0].model_copy(update={"shape": (1, 10), "batch_axis": None}),),
    )
    items = bench.store.put_data({"pixels": bench.data.images[:40, None], "labels": bench.data.labels[:40]})
    asked = task(
        bench.store, bench.original, items, candidate("ort", bench.original), signature=signature, batch_sizes=(1, 8)
    )
    report = measure.run(asked, bench.store)
    row = report.candidates[0]
    assert row.exact
    assert [one.batch_size for one in row.measurements] == [1]
    assert any("batch size 1" in note for note in report.notes)
    assert row.artifact is not None
    reference = read_stored(bench.store, row.artifact).reference
    assert reference is not None
    assert bench.store.load_arrays(reference.sha256)["input.pixels"].shape == (1, 64)


def test_a_batch_that_the_model_cannot_take_is_refused_before_anything_runs(bench: Bench) -> None:
    signature = Signature(
        inputs=(SIGNATURE.inputs[0].model_copy(update={"shape": (1, 64), "batch_axis": None}),),
        outputs=(SIGNATURE.outputs[0].model_copy(update={"shape": (1, 10), "batch_axis": None}),),
    )
    items = bench.store.put_data({"pixels": bench.data.images[:40, None]})
    with pytest.raises(RuntimeFailure, match=r"use \[1\]"):
        measure.run(task(bench.store, bench.original, items, signature=signature, batch_sizes=(4,)), bench.store)


def test_a_baseline_that_does_not_run_ends_the_job_with_its_reason(bench: Bench) -> None:
    broken = bench.store.put_model(_text_file(bench.folder / "broken"), "model.onnx")
    with pytest.raises(RuntimeFailure) as caught:
        measure.run(task(bench.store, broken, bench.items, candidate("ort", bench.original)), bench.store)
    assert caught.value.reason == Reason.MODEL_LOAD_FAILED


def test_labels_that_fit_no_answer_end_the_job(bench: Bench) -> None:
    items = bench.store.put_data({"pixels": bench.data.images[:40], "labels": np.zeros((40, 3), np.int64)})
    with pytest.raises(DataError, match="labelKey"):
        measure.run(task(bench.store, bench.original, items, candidate("ort", bench.original)), bench.store)


def test_no_worker_outlives_the_job(bench: Bench, report: MeasureReport) -> None:
    # A zombie is no worker any more: only its exit status is left.
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in alive if base.__package__ in " ".join(child.cmdline())]


def _text_file(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_text("this is no model")
    return folder
