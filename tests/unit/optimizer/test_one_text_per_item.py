"""A classifier that answers the name of a class, one text an item, as scikit-learn's do: from its file to a server's answer."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.data import models
from tests.unit.optimizer.measure.models import SHORT
from tests.unit.optimizer.prepare.workbench import Workbench
from tools.serving import ServerProcess

from fettle.api.data import EvaluationSpec
from fettle.api.recipe import RuntimeSettings
from fettle.api.report import MeasureReport, PrepareReport
from fettle.api.task import BuiltCandidate, CandidatePlan, MeasureTask
from fettle.api.vocabulary import AgreementMode, Evidence, RuntimeName
from fettle.optimizer import measure
from fettle.store.manifest import read_stored

pytestmark = pytest.mark.timeout(300)  # many processes, on machines that may be busy
NAMES = np.array(["ham", "spam", "eggs"])
WEIGHTS = np.random.default_rng(47).standard_normal((3, 3)).astype(np.float32)
X = np.random.default_rng(48).standard_normal((200, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """The classifier."""
    made = Workbench(tmp_path_factory.mktemp("texts"))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["i"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "i"], ["label"]),
    ]
    weights = [
        models.stored("w", WEIGHTS),
        helper.make_tensor("names", TensorProto.STRING, [3], [*map(str.encode, NAMES)]),
    ]
    output = models.tensor("label", ["N"], TensorProto.STRING)
    made.put(models.model(nodes, [models.tensor("x", ["N", 3])], [output], weights))
    return made


@pytest.fixture(scope="module")
def prepared(bench: Workbench) -> PrepareReport:
    uri = bench.data("evaluation", x=X, labels=NAMES[(X @ WEIGHTS).argmax(1)])
    return bench.prepare(bench.task(evaluation=EvaluationSpec(uri=uri)))


@pytest.fixture(scope="module")
def measured(bench: Workbench, prepared: PrepareReport) -> MeasureReport:
    plan = CandidatePlan(
        name="original", recipe="original", runtime=RuntimeName.ONNXRUNTIME, settings=RuntimeSettings(threads=1)
    )
    original = BuiltCandidate(plan=plan, model=prepared.original)
    portable = BuiltCandidate(
        plan=plan.model_copy(update={"name": "portable", "recipe": "fp32"}), model=prepared.portable
    )
    task = MeasureTask(
        store="pvc://claim/store",
        target="cpu",
        threads=1,
        batch_sizes=(1,),
        source_sha256=prepared.source.sha256,
        signature=prepared.signature,
        baseline=original,
        candidates=(original, portable),
        items=prepared.items,
        screening=prepared.screening,
        generated=prepared.generated,
        evaluation=EvaluationSpec(uri="pvc://claim/evaluation.npz"),
        labels=prepared.labels,
        alpha=0.05,
    )
    return measure.run(task, bench.store, SHORT)


def test_it_has_a_batch_axis_and_its_labels_are_texts(prepared: PrepareReport) -> None:
    (output,) = prepared.signature.outputs
    assert (output.dtype, output.shape, output.batch_axis) == ("BYTES", (-1,), 0)
    assert prepared.items.labelled


def test_it_is_judged_by_the_texts_of_its_labels(measured: MeasureReport) -> None:
    for row in measured.candidates:
        assert (row.exact, row.evidence) == (True, Evidence.LABELS), row.message
        assert row.accuracy is not None
        assert row.accuracy.value == 1.0
        assert row.agreement is not None
        assert (row.agreement.mode, row.agreement.value) == (AgreementMode.EXACT, 1.0)


def test_its_artifact_is_served(bench: Workbench, measured: MeasureReport, tmp_path: Path) -> None:
    sha256 = str(measured.candidates[0].artifact)
    assert read_stored(bench.store, sha256).comparisons["label"].mode == AgreementMode.EXACT
    server = ServerProcess(bench.folder / "store", sha256, tmp_path / "model")
    try:
        rows = X[:5]
        request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [5, 3], "data": rows.reshape(-1).tolist()}]}
        answer = httpx.post(f"http://127.0.0.1:{server.port}/v2/models/model/infer", json=request).json()
    finally:
        server.stop()
    (output,) = answer["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [5])
    assert output["data"] == NAMES[(rows @ WEIGHTS).argmax(1)].tolist()
