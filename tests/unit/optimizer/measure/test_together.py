"""Certified as served: a candidate whose answers depend on its batch mates is judged, timed and served one item at a time."""

from __future__ import annotations

import pytest
from onnx import helper
from tests.data.stored import arrays as arrays_in
from tests.unit.optimizer.measure.models import STATIC, Bench, candidate

from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.report import MeasureReport
from fettle.api.vocabulary import Objective
from fettle.store.manifest import Manifest, read_stored, write_artifact

pytestmark = pytest.mark.timeout(300)  # many processes, on machines that may be busy
DYNAMIC = [
    helper.make_node("DynamicQuantizeLinear", ["sum"], ["q", "scale", "zero"]),
    helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rounded"]),
]


@pytest.fixture(scope="module")
def report(bench: Bench) -> MeasureReport:
    """A run of one candidate that takes a range over the whole run, though no step says so, and of one that does not."""
    dynamic = bench.model("dynamic", bench.data.weights, bench.data.bias, DYNAMIC, "rounded")
    return bench.measure(
        candidate("dynamic", dynamic, steps=STATIC),
        candidate("plain", bench.original),
        objective=Objective.SIZE,  # no one is too slow
        batch_sizes=(1, 16),
        places=2,
    )


@pytest.fixture
def dynamic(bench: Bench, report: MeasureReport) -> tuple[CandidateStatus, Manifest]:
    """The first one's row and manifest."""
    row = report.candidates[0]
    return row, read_stored(bench.store, str(row.artifact))


def test_it_is_seen_and_the_artifact_says_how_it_is_served(
    bench: Bench, report: MeasureReport, dynamic: tuple[CandidateStatus, Manifest]
) -> None:
    row, manifest = dynamic
    assert manifest.items_per_run == 1
    assert sorted(one.batch_size for one in row.measurements) == [1, 16]
    assert any("dynamic depends on the other items" in note for note in report.notes)
    assert manifest.reference is not None
    assert arrays_in(bench.store, manifest.reference.sha256)["input.pixels"].shape == (1, 64)


def test_what_does_not_depend_on_its_mates_is_served_in_any_number(bench: Bench, report: MeasureReport) -> None:
    manifest = read_stored(bench.store, str(report.candidates[1].artifact))
    assert manifest.items_per_run is None
    assert "itemsPerRun" not in manifest.to_json(), "the digest of such an artifact is what it was"


def test_an_artifact_that_is_served_in_batches_and_must_not_be_is_replaced(
    bench: Bench, dynamic: tuple[CandidateStatus, Manifest]
) -> None:
    _, manifest = dynamic
    published = write_artifact(bench.store, manifest.model_copy(update={"items_per_run": None}))
    again = candidate("again", manifest.model, steps=STATIC)
    (row,) = bench.measure(again, incumbent=published, objective=Objective.SIZE).candidates
    assert row.artifact not in (None, published)
    assert read_stored(bench.store, str(row.artifact)).items_per_run == 1


def test_an_artifact_that_is_served_one_by_one_stays(bench: Bench, dynamic: tuple[CandidateStatus, Manifest]) -> None:
    row, manifest = dynamic
    (again,) = bench.measure(
        candidate("again", manifest.model, steps=STATIC), incumbent=row.artifact, objective=Objective.SIZE
    ).candidates
    assert again.artifact == row.artifact
