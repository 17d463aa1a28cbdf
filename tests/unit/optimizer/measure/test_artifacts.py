"""What the measuring Job leaves in the store, and what it does with an artifact that is published already."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.optimizer.measure.models import MOUNTS, SHORT, STATIC, Bench, candidate, task

from fettle.api import catalog
from fettle.api.data import EvaluationSpec, PreprocessSpec
from fettle.api.optimizedmodel_status import CandidateStatus
from fettle.api.report import MeasureReport
from fettle.api.task import StoredData, StoredTokenizer
from fettle.api.vocabulary import AgreementMode, Metric, Objective, RuntimeName
from fettle.optimizer.measure import artifact, incumbent, items
from fettle.optimizer.measure.candidate import MeasuredCandidate
from fettle.optimizer.measure.items import MappedItems
from fettle.runtimes.base import Session, get
from fettle.store.cache import runtime_versions
from fettle.store.manifest import (
    MODEL_FOLDER,
    REFERENCE,
    Manifest,
    fetch_artifact,
    model_entry,
    put_tokenizer,
    read_figures,
    read_profile,
    read_reference,
    read_stored,
    write_artifact,
)

pytestmark = pytest.mark.timeout(300)  # many processes, on machines that may be busy
ORT, OPENVINO = RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO


@pytest.fixture(scope="module")
def report(bench: Bench) -> MeasureReport:
    """A run that leaves three artifacts."""
    fine = bench.model("fine", np.round(bench.data.weights * 64) / 64, bench.data.bias)
    return bench.measure(
        candidate("original", bench.original, untouched=True),
        candidate("fp32-openvino", bench.original, OPENVINO),
        candidate("fine", fine, steps=STATIC),
        objective=Objective.SIZE,
    )


@pytest.fixture(scope="module")
def rows(report: MeasureReport) -> dict[str, CandidateStatus]:
    """Its rows by name."""
    return {row.name: row for row in report.candidates}


@pytest.fixture(scope="module")
def again(bench: Bench, rows: dict[str, CandidateStatus]) -> dict[str, CandidateStatus]:
    """A second run, with the exact artifact published, the lossy one made again, and one that is often wrong."""
    wrong = bench.model("often-wrong", np.round(bench.data.weights * 0.5), bench.data.bias)
    report = bench.measure(
        candidate("fine", read_stored(bench.store, str(rows["fine"].artifact)).model, steps=STATIC),
        candidate("often-wrong", wrong, steps=STATIC),
        incumbent=str(rows["fp32-openvino"].artifact),
        places=2,
        objective=Objective.SIZE,
        schedule=replace(SHORT, least_starts=2, looks=(2,)),
    )
    return {row.name: row for row in report.candidates}


def opened(bench: Bench, sha256: str, folder: Path) -> tuple[Manifest, Session]:
    """An artifact as a server would load it."""
    manifest = fetch_artifact(f"{bench.store.uri}/artifacts/{sha256}", sha256, folder, MOUNTS)
    return manifest, get(manifest.runtime).load(model_entry(folder, manifest), manifest.settings, manifest.signature)


def test_an_artifact_gives_its_reference_again_within_its_tolerance(
    bench: Bench, rows: dict[str, CandidateStatus], tmp_path: Path
) -> None:
    for name in ("original", "fp32-openvino", "fine"):
        folder = tmp_path / name
        manifest, session = opened(bench, str(rows[name].artifact), folder)
        assert (folder / MODEL_FOLDER).is_dir()
        inputs, outputs = read_reference(folder / REFERENCE)
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


@pytest.mark.parametrize("name", ["original", "often-wrong"])
def test_an_artifact_is_sure_from_the_margin_on_that_its_own_answers_show(
    bench: Bench, rows: dict[str, CandidateStatus], again: dict[str, CandidateStatus], tmp_path: Path, name: str
) -> None:
    manifest, session = opened(bench, str((again | rows)[name].artifact), tmp_path)
    scores = session.infer({"pixels": bench.data.images})["logits"]
    session.close()
    second, first = np.sort(scores, axis=1).T[-2:]
    margins, wrong = first - second, scores.argmax(axis=1) != bench.data.labels
    sure = [margin for margin in margins if wrong[margins >= margin].mean() <= 0.005]
    rule = manifest.comparisons["logits"]
    assert rule.mode == AgreementMode.TOP_ONE
    assert rule.margin == pytest.approx(min([*sure, np.median(margins)]), rel=0.03)  # the manifest keeps two digits
    assert bool(min(sure) < np.median(margins)) == (name == "original"), (
        "of the other, half of the decisions count all the same"
    )


def test_figures_lie_beside_the_artifact(bench: Bench, rows: dict[str, CandidateStatus], report: MeasureReport) -> None:
    folder = bench.folder / "store" / "artifacts" / str(rows["fine"].artifact) / "measurements"
    (path,) = folder.iterdir()
    document = json.loads(path.read_bytes())
    assert document["measuredOn"] == report.measured_on.to_json()
    runtimes = {rows[name].runtime for name in ("original", "fine")}
    assert document["libraries"] == runtime_versions(runtimes)
    assert document["row"]["name"] == "fine"


def test_a_fetched_artifact_comes_with_its_figures_and_with_how_the_evaluation_data_is_distributed(
    bench: Bench, rows: dict[str, CandidateStatus], tmp_path: Path
) -> None:
    for name in ("original", "fp32-openvino", "fine"):
        folder = tmp_path / name
        opened(bench, str(rows[name].artifact), folder)[1].close()
        (figures,) = read_figures(folder)
        assert figures.row["name"] in (name, "published")  # which it is, measured once more
        profile = read_profile(folder)
        assert profile is not None
        items = len(bench.data.images)
        assert {sum(each.counts) for each in (*profile.inputs, *profile.outputs)} == {items}
        assert {each.tensor for each in profile.inputs} == {"pixels"}
        assert [each.feature for each in profile.outputs] == [str(n) for n in range(len(profile.outputs))]


def test_the_same_work_on_the_same_cpu_writes_the_same_artifact(
    rows: dict[str, CandidateStatus], again: dict[str, CandidateStatus]
) -> None:
    assert again["fine"].artifact == rows["fine"].artifact


def test_the_published_artifact_is_measured_in_the_same_rounds(
    rows: dict[str, CandidateStatus], again: dict[str, CandidateStatus]
) -> None:
    row = again["published"]
    assert (row.recipe, row.artifact) == ("fp32-openvino", rows["fp32-openvino"].artifact)
    assert row.speedup is not None


def test_a_candidate_that_is_the_published_artifact_keeps_its_name(
    bench: Bench, rows: dict[str, CandidateStatus]
) -> None:
    published = str(rows["fine"].artifact)
    same = candidate("fine-again", read_stored(bench.store, published).model, steps=STATIC)
    (row,) = bench.measure(same, incumbent=published).candidates
    assert (row.name, row.artifact) == ("fine-again", published)


@pytest.mark.parametrize("other", ["source", "store"])
def test_a_published_artifact_that_cannot_be_compared_with_is_left_alone(
    bench: Bench, rows: dict[str, CandidateStatus], other: str, tmp_path: Path
) -> None:
    told: dict[str, dict[str, Any]] = {
        "source": {"incumbent": str(rows["fine"].artifact), "source_sha256": "1" * 64},
        "store": {"incumbent": "2" * 64},
    }
    asked = task(bench.store, bench.original, bench.items, **told[other])
    notes: list[str] = []
    certifying = mapped(bench, bench.items, tmp_path)
    assert incumbent.mark(asked, bench.store, [], lambda _: pytest.fail("it is no subject"), notes, certifying) == []
    assert any("does not exist" in note for note in notes) == (other == "store")


def mapped(bench: Bench, data: StoredData, folder: Path) -> MappedItems:
    """Stored items, as the measuring Job opens them."""
    files = items.unpack(bench.store, data, folder)
    return items.opened({"pixels": files["pixels"]}, task(bench.store, bench.original, bench.items).signature)


@pytest.mark.parametrize(
    ("learned", "lost", "note"),
    [
        (slice(0, 3), False, "3 of the items that it was trained on are evaluation items now"),
        (slice(0, 0), False, None),
        (slice(0, 0), True, "the store no longer has the items that it was trained on"),
    ],
    ids=["some certify", "none certifies", "lost"],
)
def test_a_published_artifact_is_never_certified_by_items_that_it_was_trained_on(
    bench: Bench,
    rows: dict[str, CandidateStatus],
    learned: slice,
    lost: bool,
    note: str | None,
    tmp_path: Path,
) -> None:
    others = bench.data.images[:40] + np.float32(0.01)
    training = bench.store.put_data({"pixels": np.concatenate([bench.data.images[learned], others])})
    manifest = read_stored(bench.store, str(rows["fine"].artifact))
    record = manifest.data.model_copy(update={"training": "3" * 64 if lost else training.sha256})
    published = write_artifact(bench.store, manifest.model_copy(update={"data": record}))
    certifying = mapped(bench, bench.items, tmp_path)

    def marked(**told: Any) -> tuple[int, list[str]]:
        asked = task(bench.store, bench.original, bench.items, incumbent=published, **told)
        notes: list[str] = []
        found = incumbent.mark(
            asked, bench.store, [], lambda built: MeasuredCandidate(built, tmp_path), notes, certifying
        )
        return len(found), notes

    found, notes = marked()
    assert found == (note is None)
    assert [note in told for told in notes if note] == [True] * (note is not None)
    assert marked(training_sha256=record.training) == (1, []), "what this run trains on was held against them already"


def test_with_objective_throughput_the_best_batch_is_in_the_artifacts_settings(bench: Bench) -> None:
    streams = candidate("streams", bench.original)
    settings = streams.plan.settings.model_copy(update={"streams": 2})
    streams = streams.model_copy(update={"plan": streams.plan.model_copy(update={"settings": settings})})
    (row,) = bench.measure(streams, objective=Objective.THROUGHPUT, batch_sizes=(1, 16)).candidates
    assert row.settings.preferred_batch in (1, 16)
    assert row.artifact is not None
    assert read_stored(bench.store, row.artifact).settings == row.settings
    assert {one.batch_size for one in row.measurements} == {1, 16}


PICTURES = EvaluationSpec(uri="pvc://data/photos", metric=Metric.ACCURACY, preprocess=PreprocessSpec(crop=0.875))


def test_an_artifact_records_how_pictures_became_its_evaluation_items(bench: Bench) -> None:
    report = bench.measure(candidate("original", bench.original, untouched=True), evaluation=PICTURES)
    (row,) = report.candidates
    assert read_stored(bench.store, str(row.artifact)).preprocess == PICTURES.preprocess


@pytest.mark.parametrize("before", [None, PreprocessSpec(crop=0.5)], ids=["none", "another"])
def test_a_published_artifact_that_prepares_pictures_otherwise_is_replaced_even_by_the_same_model(
    bench: Bench, before: PreprocessSpec | None
) -> None:
    same = candidate("original", bench.original, untouched=True)
    then = PICTURES.model_copy(update={"preprocess": before})
    (first,) = bench.measure(same, evaluation=then).candidates
    report = bench.measure(same, evaluation=PICTURES, incumbent=str(first.artifact))
    (row,) = report.candidates
    assert read_stored(bench.store, str(row.artifact)).preprocess == PICTURES.preprocess
    assert any("preprocesses images differently" in note for note in report.notes)


@pytest.mark.parametrize(
    ("changes", "recorded"),
    [
        ({"evaluation": PICTURES}, True),
        ({}, False),
        ({"evaluation": PICTURES, "generated": True}, False),
        ({"evaluation": None}, False),
        ({"evaluation": PICTURES, "signature": "UINT8"}, True),
        ({"evaluation": PICTURES, "signature": "UINT16"}, False),
        ({"evaluation": PICTURES, "signature": "INT64"}, False),
    ],
    ids=["pictures", "a file", "generated items", "no items", "bytes", "8 or 16 bits", "8 or 16 bits in 64"],
)
def test_only_items_that_were_pictures_of_a_known_depth_say_how_they_were_made(
    bench: Bench, changes: dict[str, Any], recorded: bool
) -> None:
    asked = task(bench.store, bench.original, bench.items, **{k: v for k, v in changes.items() if k != "signature"})
    if "signature" in changes:
        image = asked.signature.inputs[0].model_copy(update={"dtype": changes["signature"]})
        asked = asked.model_copy(update={"signature": asked.signature.model_copy(update={"inputs": (image,)})})
    assert artifact.preprocess(asked) == (PICTURES.preprocess if recorded else None)


def test_a_published_artifact_that_encodes_texts_otherwise_is_replaced_even_by_the_same_model(bench: Bench) -> None:
    same = candidate("original", bench.original, untouched=True)
    tokenizer: StoredTokenizer = put_tokenizer(bench.store, b"{}", lower=True)
    (first,) = bench.measure(same).candidates
    report = bench.measure(same, tokenizer=tokenizer, incumbent=str(first.artifact))
    (row,) = report.candidates
    assert read_stored(bench.store, str(row.artifact)).tokenizer == tokenizer
    assert any("tokenizes texts differently" in note for note in report.notes)
