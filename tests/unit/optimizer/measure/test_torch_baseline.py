"""A script of PyTorch's is measured as it came, beside candidates of other runtimes, in the same rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.optimizer.measure.models import SHORT, Bench, candidate

from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.report import MeasureReport
from fettle.api.task import StoredModel
from fettle.api.vocabulary import Basis, FormatName, RuntimeName
from fettle.optimizer.measure import one_thread
from fettle.store.manifest import read_stored

pytestmark = pytest.mark.timeout(300)  # PyTorch takes seconds to start in each process
ORT, TORCH = RuntimeName.ONNXRUNTIME, RuntimeName.TORCHSCRIPT


def script_of(bench: Bench) -> StoredModel:
    """The same linear classifier as a script."""
    import torch

    layer = torch.nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(bench.data.weights.T))
        layer.bias.copy_(torch.from_numpy(bench.data.bias))

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(pixels)}

    path = Path(bench.folder, "script", "model.pt")
    path.parent.mkdir()
    torch.jit.trace(Classifier().eval(), torch.zeros(2, 64), strict=False).save(str(path))
    file = bench.store.put_file(path, path.name)
    return StoredModel(format=FormatName.TORCH_SCRIPT, entry=path.name, files=(file,))


@pytest.fixture(scope="module")
def script(bench: Bench) -> StoredModel:
    """It, in the store."""
    return script_of(bench)


@pytest.fixture(scope="module")
def report(bench: Bench, script: StoredModel) -> MeasureReport:
    """That run. `bench.original` is what the script would be converted to."""
    original = candidate("original", script, TORCH, untouched=True)
    twice = replace(SHORT, least_starts=2, looks=(2,))  # one start claims no speed-up
    return bench.measure(original, candidate("portable", bench.original), baseline=original, schedule=twice)


@pytest.fixture
def rows(report: MeasureReport) -> dict[str, CandidateStatus]:
    """Its rows by name."""
    return {row.name: row for row in report.candidates}


def test_every_gain_is_one_against_the_script_in_pytorch(
    rows: dict[str, CandidateStatus], report: MeasureReport
) -> None:
    assert report.baseline.runtime == TORCH
    assert rows["original"].measurements == report.baseline.measurements
    for name, row in rows.items():
        assert row.speedup is not None, f"{name}: {row.message}"
        assert row.speedup.basis == Basis.SOURCE_RUNTIME
        assert row.speedup.value > 0
        assert row.measurements[0].latency_milliseconds.p50 is not None
    assert rows["original"].speedup is not None and rows["original"].speedup.value == 1.0


def test_its_answers_are_the_reference_of_all(rows: dict[str, CandidateStatus], report: MeasureReport) -> None:
    assert report.baseline.accuracy is not None
    assert report.baseline.accuracy.value > 0.9
    for row in rows.values():
        assert (row.exact, row.samples) == (True, 797)
        assert row.accuracy_drop is not None
        assert (row.accuracy_drop.low, row.accuracy_drop.high) == (0, 0)


def test_what_would_be_published_of_it_is_the_script_itself(
    bench: Bench, script: StoredModel, rows: dict[str, CandidateStatus]
) -> None:
    manifest = read_stored(bench.store, str(rows["original"].artifact))
    assert (manifest.runtime, manifest.model) == (TORCH, script)


@pytest.mark.parametrize(("faster", "threads"), [(0.0, 1), (float("inf"), 2)], ids=["faster", "not faster"])
def test_a_script_that_is_no_candidate_has_one_thread_where_it_is_faster_so(
    bench: Bench, script: StoredModel, monkeypatch: pytest.MonkeyPatch, faster: float, threads: int
) -> None:
    monkeypatch.setattr(one_thread, "FASTER", faster)  # what is faster here is the machine's affair
    original = candidate("original", script, TORCH, untouched=True)
    two = original.plan.settings.model_copy(update={"threads": 2})
    original = original.model_copy(update={"plan": original.plan.model_copy(update={"settings": two})})
    report = bench.measure(candidate("portable", bench.original), baseline=original, schedule=SHORT)
    told = [note for note in report.notes if note.startswith("the original runs with one thread, because it is then ")]
    assert len(told) == (threads == 1)
    assert report.baseline.runtime == TORCH
    assert all(note.endswith("times as fast as with 2") for note in told)
