"""An artifact is what its digest says, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fettle.api.data import PreprocessSpec
from fettle.api.reasons import Reason
from fettle.api.recipe import QuantizeStep, RecipeStep, RuntimeSettings
from fettle.api.report import CpuClass
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import RuntimeName
from fettle.cli.access.pull_files import require_room
from fettle.errors import StoreError
from fettle.store.manifest import (
    DataRecord,
    Manifest,
    MeasurementRecord,
    RecipeRecord,
    Tolerance,
    artifact_uri,
    check_fetched,
    fetch_artifact,
    is_whole,
    model_entry,
    put_reference,
    put_tokenizer,
    read_fetched,
    read_reference,
    write_artifact,
    write_measurement,
)
from fettle.store.store import Store
from fettle.store.uris import Mounts

INPUTS = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
OUTPUTS = {"y": np.arange(2, dtype=np.float32)}


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    (tmp_path / "claim").mkdir()
    return Mounts({"claim": tmp_path / "claim"})


@pytest.fixture
def store(mounts: Mounts) -> Store:
    return Store.open("pvc://claim", mounts)


@pytest.fixture
def manifest(store: Store, tmp_path: Path) -> Manifest:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.onnx").write_bytes(b"graph")
    return Manifest(
        source_sha256="a" * 64,
        recipe=RecipeRecord(name="int8", steps=(RecipeStep(quantize=QuantizeStep()),), revisions=(1,)),
        data=DataRecord(evaluation="b" * 64),
        libraries={"onnxruntime": "1.31.1"},
        runtime=RuntimeName.ONNXRUNTIME,
        settings=RuntimeSettings(threads=2),
        signature=Signature(
            inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),),
            outputs=(Tensor(name="y", dtype="FP32", shape=(-1,), batch_axis=0),),
        ),
        tolerances={"y": Tolerance(rtol=1e-3, atol=1e-6)},
        requires=("vnni",),
        model=store.put_model(tmp_path / "model", "model.onnx"),
        reference=put_reference(store, INPUTS, OUTPUTS),
    )


def test_an_artifact_is_fetched_whole(store: Store, manifest: Manifest, mounts: Mounts, tmp_path: Path) -> None:
    sha256 = write_artifact(store, manifest)
    uri = artifact_uri(store.uri, sha256)
    assert uri == f"pvc://claim/artifacts/{sha256}"
    fetched = fetch_artifact(uri, sha256, tmp_path / "served", mounts)
    assert fetched == manifest == read_fetched(tmp_path / "served", sha256)
    assert model_entry(tmp_path / "served", fetched).read_bytes() == b"graph"
    inputs, outputs = read_reference(tmp_path / "served/reference.npz")
    assert (inputs["x"] == INPUTS["x"]).all()
    assert (outputs["y"] == OUTPUTS["y"]).all()


def test_writing_an_artifact_twice_changes_nothing(store: Store, manifest: Manifest) -> None:
    assert write_artifact(store, manifest) == write_artifact(store, manifest) == manifest.digest


def test_every_parameter_of_a_recipe_stands_in_the_manifest(manifest: Manifest) -> None:
    step = json.loads(manifest.canonical())["recipe"]["steps"][0]
    assert step == {"quantize": {"mode": "Static", "operators": [], "preset": "Default"}}


def test_an_artifact_without_its_files_is_not_written(store: Store, manifest: Manifest) -> None:
    root = store.root.local
    assert root is not None
    (root / "blobs" / manifest.model.files[0].sha256).unlink()
    with pytest.raises(StoreError, match=r"missing: model\.onnx"):
        write_artifact(store, manifest)


def test_a_missing_artifact_is_not_found(store: Store, mounts: Mounts, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        fetch_artifact(artifact_uri(store.uri, "c" * 64), "c" * 64, tmp_path / "served", mounts)
    assert caught.value.reason == Reason.ARTIFACT_NOT_FOUND


def test_an_address_of_another_digest_is_not_followed(mounts: Mounts, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        fetch_artifact(f"pvc://claim/artifacts/{'c' * 64}", "d" * 64, tmp_path / "served", mounts)
    assert caught.value.reason == Reason.ARTIFACT_NOT_FOUND


@pytest.mark.parametrize("victim", ["manifest", "model", "reference"])
def test_nothing_that_was_changed_in_the_store_is_served(
    store: Store, manifest: Manifest, mounts: Mounts, tmp_path: Path, victim: str
) -> None:
    sha256 = write_artifact(store, manifest)
    root = store.root.local
    assert root is not None and manifest.reference is not None
    path = {
        "manifest": root / f"artifacts/{sha256}/manifest.json",
        "model": root / f"blobs/{manifest.model.files[0].sha256}",
        "reference": root / f"blobs/{manifest.reference.sha256}",
    }[victim]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StoreError) as caught:
        fetch_artifact(artifact_uri(store.uri, sha256), sha256, tmp_path / "served", mounts)
    assert caught.value.reason == Reason.ARTIFACT_TAMPERED
    assert not (tmp_path / "served/manifest.json").exists()


def test_a_model_changed_after_it_was_fetched_is_noticed(
    store: Store, manifest: Manifest, mounts: Mounts, tmp_path: Path
) -> None:
    sha256 = write_artifact(store, manifest)
    fetch_artifact(artifact_uri(store.uri, sha256), sha256, tmp_path / "served", mounts)
    check_fetched(tmp_path / "served", sha256)
    model_entry(tmp_path / "served", manifest).write_bytes(b"other")
    with pytest.raises(StoreError) as caught:
        check_fetched(tmp_path / "served", sha256)
    assert caught.value.reason == Reason.ARTIFACT_TAMPERED


def test_a_measurement_lies_beside_its_artifact(store: Store, manifest: Manifest) -> None:
    sha256 = write_artifact(store, manifest)
    record = MeasurementRecord(measured_on=CpuClass(vendor="GenuineIntel", avx2=True), row={"name": "int8"})
    write_measurement(store, sha256, "k", record)
    kept = store.read_bytes(f"artifacts/{sha256}/measurements/k.json")
    assert MeasurementRecord.model_validate_json(kept) == record


def test_an_artifact_that_takes_no_pictures_has_the_digest_that_it_always_had(manifest: Manifest) -> None:
    assert "preprocess" not in json.loads(manifest.canonical())
    taking = manifest.model_copy(update={"preprocess": PreprocessSpec()})
    assert taking.digest != manifest.digest
    assert json.loads(taking.canonical())["preprocess"] == {"layout": "NCHW", "color": "RGB", "mean": [], "std": []}
    assert Manifest.model_validate_json(taking.canonical()) == taking


def test_a_tokenizer_is_fetched_with_its_artifact_and_its_digest_is_checked(
    store: Store, manifest: Manifest, mounts: Mounts, tmp_path: Path
) -> None:
    assert "tokenizer" not in json.loads(manifest.canonical()), "artifacts without one have the digest that they had"
    reading = manifest.model_copy(update={"tokenizer": put_tokenizer(store, b'{"model": {}}', lower=True)})
    sha256 = write_artifact(store, reading)
    folder = tmp_path / "served"
    assert fetch_artifact(artifact_uri(store.uri, sha256), sha256, folder, mounts) == reading
    assert (folder / "tokenizer.json").read_bytes() == b'{"model": {}}'
    require_room(folder, sha256)  # it may be pulled once more
    (folder / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"tokenizer\.json does not match the manifest"):
        check_fetched(folder, sha256)


def test_an_artifact_whose_tokenizer_is_not_in_the_store_is_not_whole(store: Store, manifest: Manifest) -> None:
    tokenizer = put_tokenizer(store, b"{}", lower=False)
    reading = manifest.model_copy(update={"tokenizer": tokenizer})
    sha256, root = write_artifact(store, reading), store.root.local
    assert is_whole(store, sha256) and root is not None
    (root / "blobs" / tokenizer.file.sha256).unlink()
    assert not is_whole(store, sha256)
    with pytest.raises(StoreError, match=r"missing: tokenizer\.json"):
        write_artifact(store, reading)
