"""`fettle reproduce`: the same bytes again, or which file differs and why."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tests.data import models
from tests.unit.cli.in_process import InProcess

from fettle.api.recipe import RecipeSpec, RuntimeSettings
from fettle.api.task import MeasureTask
from fettle.api.training import TrainSpec
from fettle.api.vocabulary import RuntimeName
from fettle.cli.local.manifests import read
from fettle.cli.local.mounts import places
from fettle.cli.local.partial import Built, UntilBuilt
from fettle.cli.local.reproduction import compared, spec_for
from fettle.cli.local.run import LocalRun, RunInput
from fettle.cli.main import main
from fettle.store.cache import version
from fettle.store.manifest import DataRecord, Manifest, RecipeRecord, Tolerance, write_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts

STORE = "pvc://fettle-store"


def manifest_text(folder: Path) -> str:
    """An OptimizedModel with one int8 recipe, of a model and items in `folder`."""
    spec = {
        "source": {"uri": str(folder / "model.onnx")},
        "data": {"evaluation": {"uri": str(folder / "items.npz"), "metric": "Agreement"}},
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime"]}],
        "recipes": [{"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}],
        "constraints": {"accuracy": {"maxDrop": 0.05}},
    }
    metadata = {"name": "small"}
    return yaml.safe_dump(
        {"apiVersion": "fettle.dev/v1alpha1", "kind": "OptimizedModel", "metadata": metadata, "spec": spec}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its items, and the manifest."""
    made = tmp_path_factory.mktemp("reproduce")
    models.save(models.dynamic_batch(), made / "model.onnx")
    images = np.random.default_rng(3).normal(size=(160, 1, 16, 16)).astype(np.float32)
    np.savez(made / "items.npz", image=images)
    (made / "om.yaml").write_text(manifest_text(made))
    return made


@pytest.fixture(scope="module")
def task(folder: Path) -> MeasureTask:
    """What a run of it built."""
    (document,) = read((folder / "om.yaml").read_text(), "om.yaml", folder).models
    located = places(document.spec, {}, folder / "store")
    given = RunInput("default", "small", 1, located.spec, located.store)
    with pytest.raises(Built) as built:
        asyncio.run(LocalRun(given, UntilBuilt(InProcess(located.mounts))).run())
    return built.value.task


@pytest.fixture(scope="module")
def manifest(task: MeasureTask) -> Manifest:
    """The artifact of its int8 candidate."""
    (int8,) = [candidate for candidate in task.candidates if candidate.steps]
    return Manifest(
        source_sha256=task.source_sha256,
        recipe=RecipeRecord(name="int8", steps=int8.steps, revisions=(2,)),
        data=DataRecord(calibration=task.calibration_sha256),
        libraries={"onnxruntime": version("onnxruntime")},
        runtime=RuntimeName.ONNXRUNTIME,
        settings=RuntimeSettings(),
        signature=task.signature,
        tolerances={"scores": Tolerance(rtol=0, atol=0)},
        model=int8.model,
    )


def test_an_artifact_is_built_again_byte_for_byte(folder: Path, manifest: Manifest) -> None:
    sha256 = write_artifact(Store.open(STORE, Mounts({"fettle-store": folder / "store"})), manifest)
    command = ["reproduce", str(folder / "store" / "artifacts" / sha256), "-f", str(folder / "om.yaml")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert (
        f"artifact {sha256[:12]} (int8 in onnxruntime): reproduced, 1 of 1 files are the same, byte for byte"
        in result.output
    )


def test_other_bytes_are_told_with_what_may_explain_them(task: MeasureTask, manifest: Manifest) -> None:
    files = tuple(file.model_copy(update={"sha256": "0" * 64}) for file in manifest.model.files)
    other = manifest.model_copy(
        update={
            "model": manifest.model.model_copy(update={"files": files}),
            "libraries": {"onnxruntime": "1.0"},
            "data": DataRecord(calibration="1" * 64),
        }
    )
    found = compared(other, task)
    assert not found.equal
    assert found.files == {files[0].path: ("0" * 64, manifest.model.files[0].sha256)}
    assert found.others == (
        f"onnxruntime is {version('onnxruntime')} here, but was 1.0",
        "the calibration items differ",
    )


def test_only_the_recorded_source_recipe_and_runtime_are_built(folder: Path, manifest: Manifest) -> None:
    (document,) = read((folder / "om.yaml").read_text(), "om.yaml", folder).models
    spec = spec_for(manifest, document.spec)
    assert spec.source.sha256 == manifest.source_sha256
    assert [recipe.steps for recipe in spec.recipes] == [manifest.recipe.steps]
    assert [target.runtimes for target in spec.targets] == [(RuntimeName.ONNXRUNTIME,)]


def test_what_was_trained_is_trained_again_as_its_recipe_says(folder: Path, manifest: Manifest) -> None:
    (document,) = read((folder / "om.yaml").read_text(), "om.yaml", folder).models
    given = RecipeSpec(name=manifest.recipe.name, train=TrainSpec(epochs=3, seed=7))
    spec = spec_for(manifest, document.spec.model_copy(update={"recipes": (given,)}))
    assert [recipe.train for recipe in spec.recipes] == [given.train]


def test_a_folder_without_an_artifact_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["reproduce", str(tmp_path), "model.onnx"])
    assert result.exit_code != 0
    assert "has no manifest.json: name a folder that `fettle pull` made" in result.output
    result = CliRunner().invoke(main, ["reproduce", str(tmp_path / "winner"), "model.onnx"])
    assert "winner does not exist: name a folder that `fettle pull` made" in result.output
