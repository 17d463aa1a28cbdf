"""What the store lost is made again by a retry: every task really run, on a store from which things go missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.data import models
from tests.probed_once import probed_once
from tests.unit.cli.in_process import SHORT
from tests.unit.plan.optimize.world import Answer, World, make_spec
from tests.warm import warm

from fettle.api.constraints import Constraints, SpeedupConstraint
from fettle.api.reasons import Reason
from fettle.api.report import MeasureReport
from fettle.api.task import MeasureTask
from fettle.errors import FettleError
from fettle.optimizer import measure, stage
from fettle.optimizer.measure import process
from fettle.plan.run.state import AnyReport, TaskPhase, TaskRequest, TaskState
from fettle.store.manifest import fetch_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts

STORE = "pvc://fettle-store"


SPEC = make_spec(
    targets=[{"name": "cpu", "runtimes": ["onnxruntime"]}],
    recipes=[{"name": "optimized", "steps": [{"optimize": {}}]}],
    constraints={"accuracy": {"maxDrop": 0.02}, "speedup": {"min": 0.01}},
)


def run_on(mounts: Mounts) -> Answer:
    """Tasks as their Jobs run them."""

    def run(request: TaskRequest) -> AnyReport | TaskState:
        try:
            with probed_once():
                return stage.run(request.task, mounts)
        except FettleError as error:
            told = {"reason": error.reason, "message": error.message, "retryable": error.retryable}
            return TaskState("", TaskPhase.FAILED, **told)

    return run


def mounts_of(folder: Path) -> Mounts:
    return Mounts({"models": folder / "models", "fettle-store": folder / "store"})


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """A measuring stage that does not time for long."""
    measured = measure.run

    def quickly(task: MeasureTask, store: Store) -> MeasureReport:
        return measured(task, store, SHORT)

    with warm(process), pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "run", quickly)
        yield


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, quick: None) -> tuple[Path, World]:
    """A folder with a model, items and a store, and the run that has published there."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("models", "store"):
        (folder / name).mkdir()
    models.save(models.dynamic_batch(), folder / "models" / "digits.onnx")
    np.savez(folder / "models" / "evaluation.npz", image=models.images(60))
    world = World(SPEC, answer=run_on(mounts_of(folder)))
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED, world.ready.message
    return folder, world


@pytest.fixture
def mounts(published: tuple[Path, World], tmp_path: Path) -> Mounts:
    """A copy of that folder."""
    shutil.copytree(published[0], tmp_path, dirs_exist_ok=True)
    return mounts_of(tmp_path)


@pytest.fixture
def world(published: tuple[Path, World], mounts: Mounts) -> World:
    """That run, on the copy."""
    before = published[1]
    return World(SPEC, answer=run_on(mounts), status=before.status, tasks=dict(before.tasks), now=before.now)


def manifest_of(store: Path, world: World) -> Path:
    return store / "artifacts" / world.status.artifacts[0].sha256 / "manifest.json"


def model_of(store: Path, world: World) -> Path:
    (file,) = json.loads(manifest_of(store, world).read_bytes())["model"]["files"]
    return store / "blobs" / str(file["sha256"])


def reference_of(store: Path, world: World) -> Path:
    return store / "blobs" / str(json.loads(manifest_of(store, world).read_bytes())["reference"]["sha256"])


def delete(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    path.write_bytes(b"not what it was")


@pytest.mark.parametrize("happens", [delete, damage])
@pytest.mark.parametrize("file_of", [manifest_of, model_of, reference_of])
def test_a_published_artifact_that_was_lost_is_made_again_by_a_retry(
    world: World,
    mounts: Mounts,
    tmp_path: Path,
    file_of: Callable[[Path, World], Path],
    happens: Callable[[Path], None],
) -> None:
    happens(file_of(tmp_path / "store", world))
    world.retry = "one"
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED, world.ready.message
    (published,) = world.status.artifacts
    fetch_artifact(published.uri, published.sha256, tmp_path / "fetched", mounts)


def test_a_retry_of_what_is_published_and_whole_looks_and_does_no_more(world: World, tmp_path: Path) -> None:
    before = world.status.artifacts
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "results").iterdir()}
    world.retry = "one"
    world.settle()
    assert [task.stage for task in world.started] == ["publish"]
    assert world.status.artifacts == before
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.parametrize("what", ["artifacts", "blobs", "results", "reports"])
def test_a_run_whose_jobs_are_gone_answers_nothing_from_what_the_store_lost(
    world: World, mounts: Mounts, tmp_path: Path, what: str
) -> None:
    """Such as one that was deleted and applied again: its tasks are the same, and their answers are in the store."""
    shutil.rmtree(tmp_path / "store" / what)
    again = World(world.spec, answer=world.answer)
    again.settle()
    assert again.ready.reason == Reason.PUBLISHED, again.ready.message
    (published,) = again.status.artifacts
    fetch_artifact(published.uri, published.sha256, tmp_path / "fetched", mounts)
    assert again.status.report is not None
    assert Store.open(STORE, mounts).exists(again.status.report.uri.removeprefix(f"{STORE}/"))


def test_a_new_spec_is_not_stopped_by_what_was_lost_of_the_artifact_that_is_published(
    world: World, mounts: Mounts, tmp_path: Path
) -> None:
    delete(reference_of(tmp_path / "store", world))
    world.generation, world.spec = (
        2,
        SPEC.model_copy(update={"constraints": Constraints(speedup=SpeedupConstraint(min=0.02))}),
    )
    world.settle()
    assert world.ready.reason == Reason.PUBLISHED, world.ready.message
    (published,) = world.status.artifacts
    fetch_artifact(published.uri, published.sha256, tmp_path / "fetched", mounts)
