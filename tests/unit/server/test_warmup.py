"""What is found out before the first request: how many items a run takes best, and how long it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.server.serving import SIGNATURE, publish
from tools.serving import CLAIM, open_store

from fettle.api.recipe import QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import QuantizeMode
from fettle.runtimes import cpu
from fettle.server import describe, warmup
from fettle.server.model import Batching, load
from fettle.server.settings import ServerSettings
from fettle.server.warmup import items_at_once
from fettle.store.manifest import (
    Manifest,
    MeasurementRecord,
    RecipeRecord,
    fetch_artifact,
    read_fetched,
    read_figures,
    write_measurement,
)
from fettle.store.uris import Mounts

DYNAMIC = RecipeRecord(name="int8", steps=(RecipeStep(quantize=QuantizeStep(mode=QuantizeMode.DYNAMIC)),))
NO_AXIS = Signature(inputs=SIGNATURE.inputs, outputs=(SIGNATURE.outputs[0].model_copy(update={"batch_axis": None}),))


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The look-up model as a pod has it."""
    root = tmp_path_factory.mktemp("warm")
    sha256 = publish(root)
    fetch_artifact(f"pvc://{CLAIM}/artifacts/{sha256}", sha256, root / "model", Mounts({CLAIM: root / "store"}))
    return root / "model", sha256


@pytest.fixture
def manifest(fetched: tuple[Path, str]) -> Manifest:
    return read_fetched(*fetched)


def prefers(batch: int) -> dict[str, Any]:
    return {"settings": RuntimeSettings(preferred_batch=batch)}


@pytest.mark.parametrize(
    ("what", "artifact", "asked", "items"),
    [
        ("nothing says", {}, None, None),
        ("a setting is a bound to what will be measured", {}, 16, None),
        ("a setting switches it off", {}, 1, 1),
        ("the artifact's measurement", prefers(8), None, 8),
        ("the artifact's measurement, bounded", prefers(8), 4, 4),
        ("a setting beyond what was measured", prefers(8), 32, 8),
        ("the artifact gains nothing", prefers(1), 8, 1),
        ("a file of a static batch", {"settings": RuntimeSettings(batch_size=4)}, None, 4),
        ("certified one item at a time", {"items_per_run": 1}, 8, 1),
        ("dynamic ranges, which an older artifact does not speak of", {"recipe": DYNAMIC, **prefers(8)}, 8, 1),
        ("no batch axis was proved", {"signature": NO_AXIS}, 8, 1),
    ],
)
def test_how_many_items_of_several_requests_share_a_run(
    manifest: Manifest, what: str, artifact: dict[str, Any], asked: int | None, items: int | None
) -> None:
    assert items_at_once(manifest.model_copy(update=artifact), asked) == items


@pytest.mark.parametrize(
    ("what", "milliseconds", "asked", "items"),
    [
        ("a run of many takes no longer", {1: 1, 2: 1, 4: 1, 8: 1}, None, 8),
        ("each item costs what it costs alone", {1: 1, 2: 2, 4: 4, 8: 8}, None, 1),
        ("a little is within what a busy machine makes up", {1: 1, 2: 1.8, 4: 3.5, 8: 7}, None, 1),
        ("more items gain nothing more", {1: 1, 2: 1, 4: 2, 8: 4}, None, 2),
        ("many gain and few do not", {1: 1, 2: 2, 4: 4, 8: 2}, None, 8),
        ("no more than is asked for", {1: 1, 2: 1, 3: 1}, 3, 3),
        ("a run that takes long is not tried more often than once", {1: 300}, None, 1),
        ("a long run that gains nothing from two items is not tried with more", {1: 20, 2: 39}, None, 1),
        ("a long run that gains is tried as far as there is time", {1: 20, 2: 21}, None, 2),
    ],
)
def test_what_nobody_measured_is_tried(
    what: str, milliseconds: dict[int, float], asked: int | None, items: int
) -> None:
    seconds = {1: milliseconds[1] / 1000}
    assert warmup._tried(lambda count: milliseconds[count] / 1000, seconds, asked) == items
    assert seconds.keys() == milliseconds.keys()


@pytest.mark.parametrize(("what", "took", "runs"), [("short", 0.001, 6), ("long", 0.03, 3), ("very long", 0.3, 1)])
def test_a_run_is_repeated_as_often_as_it_has_to_be(
    what: str, took: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, begun = 0.0, 0

    def run(inputs: Any, rows: int) -> dict[str, Any]:
        nonlocal now, begun
        now, begun = now + took, begun + 1
        return {}

    monkeypatch.setattr(warmup.time, "perf_counter", lambda: now)
    assert warmup._middle(run, {}, 1) == pytest.approx(took)
    assert begun == runs


def test_a_small_model_runs_in_the_event_loop_from_the_first_request_on(
    fetched: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fettle.server.model.short_seconds", lambda cores: 10.0)  # however busy this machine is
    model = load(*fetched, None, 8, Batching(items=1))
    try:
        assert model.pace.is_short(np.zeros((1, 4), np.float32).nbytes)
        assert model.batcher.items == 1
    finally:
        model.close()


def test_the_model_knows_what_was_measured_of_its_artifact(tmp_path: Path) -> None:
    sha256 = publish(tmp_path)
    row = {"name": "int8", "speedup": {"value": 2.1, "low": 2.0, "high": 2.2}}
    machine = cpu.detect()
    write_measurement(open_store(tmp_path / "store"), sha256, "k", MeasurementRecord(measured_on=machine, row=row))
    fetch_artifact(f"pvc://{CLAIM}/artifacts/{sha256}", sha256, tmp_path / "model", Mounts({CLAIM: tmp_path / "store"}))
    model = load(tmp_path / "model", sha256, None, 8)
    try:
        (measured,) = describe.model(ServerSettings(), model)["parameters"]["measured"]
        assert (measured["row"], measured["measuredOn"]) == (row, machine.to_json())
        (tmp_path / "model" / "measurements.json").write_text("[{]")
        assert read_figures(tmp_path / "model") == ()
    finally:
        model.close()
