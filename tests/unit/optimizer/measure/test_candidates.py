"""One run of the measuring Job, on real models in real processes, with everything that can happen to a candidate: its rows."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from onnx import helper
from tests.unit.optimizer.measure.models import STATIC, Bench, candidate

from fettle.api import catalog
from fettle.api.constraints import AccuracyConstraint, Constraints
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.reasons import Reason
from fettle.api.report import MeasureReport
from fettle.api.vocabulary import AgreementMode, Basis, CandidateState, Evidence, Objective, Precision, RuntimeName
from fettle.optimizer.measure import process
from fettle.runtimes import cpu

pytestmark = pytest.mark.timeout(300)  # many processes, on machines that may be busy
ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO


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
    """That run."""
    weights, bias = bench.data.weights, bench.data.bias
    logarithm = [helper.make_node("Log", ["sum"], ["log"])]
    narrow = [
        helper.make_node("Constant", [], ["few"], value_ints=[0, 1, 2]),
        helper.make_node("Gather", ["sum", "few"], ["gathered"], axis=1),
    ]
    with killed("crashes"):
        return bench.measure(
            candidate("original", bench.original, untouched=True),
            candidate("fp32-openvino", bench.original, OPENVINO),
            candidate("crashes", bench.model("crashes", weights, bias)),
            candidate("nan", bench.model("nan", weights, bias, logarithm, "log")),
            candidate("narrow", bench.model("narrow", weights, bias, narrow, "gathered")),
            candidate("fine", bench.model("fine", np.round(weights * 64) / 64, bias), steps=STATIC),
            candidate("half-onnxruntime", bench.original, ORT, precision=Precision.FLOAT16),
            objective=Objective.SIZE,  # no one is too slow
            cold=True,
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
    assert 10_000_000 < row.measurements[0].peak_memory_bytes < catalog.runtime(OPENVINO).process_bytes


def test_what_a_lossy_candidate_lost_is_judged_on_all_labelled_items(rows: dict[str, CandidateStatus]) -> None:
    row = rows["fine"]
    assert (row.evidence, row.samples, row.exact) == (Evidence.LABELS, 797, False)
    assert row.accuracy_drop is not None
    assert row.accuracy_drop.low < row.accuracy_drop.value < row.accuracy_drop.high < 0.03


def test_no_worker_outlives_the_job(report: MeasureReport) -> None:
    # A zombie is no worker any more: only its exit status is left.
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in alive if process.CHILD in child.cmdline()]


def test_an_exhaustive_run_has_figures_of_every_candidate(bench: Bench) -> None:
    weights, bias = bench.data.weights, bench.data.bias
    wrong = bench.model("wrong", np.round(weights * 0.5), bias)
    report = bench.measure(
        candidate("wrong", wrong, steps=STATIC),
        candidate("fp32-openvino", bench.original, OPENVINO),
        candidate("often", bench.model("often", np.round(weights), bias), steps=STATIC),
        constraints=Constraints(accuracy=AccuracyConstraint(max_drop=0.01)),
        places=2,
        exhaustive=True,
    )
    rows = {row.name: row for row in report.candidates}
    assert all(row.artifact is not None and row.samples == 797 for row in rows.values()), "only what is timed is kept"
    assert rows["wrong"].accuracy_drop is not None
    assert rows["wrong"].accuracy_drop.low > 0.01, "it lost too much, and was timed all the same"
