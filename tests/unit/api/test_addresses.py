"""Which addresses an object may have, as the API server judges them."""

from __future__ import annotations

from typing import Any

import pytest

from fettle.api.base import API_VERSION
from fettle.cli.local import admission

SHA = "a" * 64
CREDENTIALS = "must not contain a user, a password or a query"
OUTSIDE = "belongs to an address outside of the cluster"


def complaints(**spec: Any) -> list[str]:
    whole = {"source": {"uri": "pvc://models/m.onnx"}, "targets": [{"name": "cpu"}], **spec}
    return judged("OptimizedModel", whole)


def judged(kind: str, spec: dict[str, Any]) -> list[str]:
    schema = admission.schema_of(kind)
    document = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "m"}, "spec": spec}
    return admission.complaints(admission.completed(document, schema), schema)


READ = [
    ("pvc://models", None),
    ("pvc://models/a/m.onnx", None),
    ("s3://bucket", None),
    ("s3://My.Bucket-1/a/m.onnx", None),
    ("gs://bucket/m.onnx", None),
    ("az://container/m.onnx", None),
    ("https://host/m.onnx", None),
    ("http://host.svc:8080/a/m.onnx", None),
    ("s3://bucket/a@b/m.onnx", None),
    ("hf://org/name", None),
    ("hf://org/name@v1.0/onnx/m.onnx", None),
    ("hf://datasets/org/name@refs%2Fpr%2F1/test.parquet", None),
    ("oci://registry:5000/team/digits", None),
    ("oci://registry/digits:v1.0", None),
    ("oci://registry/digits@sha256:" + SHA, None),
    ("oci://registry/digits:v1@sha256:" + SHA + "/data/Test 1.npz", None),
    ("mlflow://digits/3", None),
    ("mlflow://main.ml.digits@champion/model.onnx", None),
    ("pvc://", "must be pvc://CLAIM/PATH"),
    ("s3://", "must be pvc://CLAIM/PATH"),
    ("https://host", "must be pvc://CLAIM/PATH"),
    ("https://host/", "must be pvc://CLAIM/PATH"),
    ("hf://name", "must be pvc://CLAIM/PATH"),
    ("hf://org/name@", "must be pvc://CLAIM/PATH"),
    ("hf://token@org/name", CREDENTIALS),
    ("oci://registry", "must be pvc://CLAIM/PATH"),
    ("oci://registry/digits/Model.onnx", "must be pvc://CLAIM/PATH"),
    ("oci://registry/digits@sha256:abc", "must be pvc://CLAIM/PATH"),
    ("oci://me:secret@registry/digits:v1", CREDENTIALS),
    ("mlflow://digits", "must be pvc://CLAIM/PATH"),
    ("mlflow://digits/latest", "must be pvc://CLAIM/PATH"),
    ("mlflow://digits@champion?token=a", CREDENTIALS),
    ("ftp://host/m.onnx", "must be pvc://CLAIM/PATH"),
    ("file:///m.onnx", "file:// works in `fettle optimize` only"),
    ("https://me:secret@host/m.onnx", CREDENTIALS),
    ("https://token@host/m.onnx", CREDENTIALS),
    ("s3://key:secret@bucket/m.onnx", CREDENTIALS),
    ("https://host/m.onnx?X-Amz-Signature=a", CREDENTIALS),
    ("https://host/m.onnx#a", CREDENTIALS),
]


@pytest.mark.parametrize(("uri", "fault"), READ, ids=[line[0] for line in READ])
@pytest.mark.parametrize("place", ["source", "calibration", "evaluation", "custom", "training", "loss"])
def test_what_may_be_read(place: str, uri: str, fault: str | None) -> None:
    if place == "source":
        found, field = complaints(source={"uri": uri}), "source.uri"
    elif place == "loss":
        train = {"loss": "Custom", "custom": {"uri": uri}}
        found, field = complaints(recipes=[{"name": "r", "train": train}]), "train.custom.uri"
    elif place == "custom":
        evaluation = {"uri": "pvc://models/e.npz", "metric": "Custom", "custom": {"uri": uri}}
        found, field = complaints(data={"evaluation": evaluation}), "data.evaluation.custom.uri"
    else:
        found, field = complaints(data={place: {"uri": uri}}), f"data.{place}.uri"
    if fault is None:
        assert found == []
    else:
        assert len(found) == 1
        assert f"{field} " in found[0]
        assert fault in found[0]
        assert "secretName" in found[0] or fault != CREDENTIALS


STORES = [
    ("pvc://fettle-store", None),
    ("s3://artifacts/team-a", None),
    ("gs://artifacts", None),
    ("https://host/store", "store.uri must be pvc://CLAIM"),
    ("oci://registry/store:v1", "store.uri must be pvc://CLAIM"),
    ("s3://key:secret@artifacts", CREDENTIALS),
]


@pytest.mark.parametrize(("uri", "fault"), STORES, ids=[line[0] for line in STORES])
def test_what_may_be_a_store(uri: str, fault: str | None) -> None:
    found = complaints(store={"uri": uri})
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]


REPOSITORIES = [
    ("oci://registry.example:5000/team/models/digits", None),
    ("oci://registry/a.b/c__d/e-f--g_h", None),
    ("oci://registry/models/", "publish.uri must be oci://REGISTRY/REPOSITORY, without a tag"),
    ("oci://registry/models//digits", "publish.uri must be oci://REGISTRY/REPOSITORY, without a tag"),
    ("oci://registry/-models", "publish.uri must be oci://REGISTRY/REPOSITORY, without a tag"),
    ("oci://registry/models:v1", "publish.uri must be oci://REGISTRY/REPOSITORY, without a tag"),
    ("oci://registry/models@sha256:" + SHA, "publish.uri must be oci://REGISTRY/REPOSITORY, without a tag"),
    ("oci://registry", "publish.uri must be oci://REGISTRY/REPOSITORY, without a tag"),
    ("s3://artifacts", "publish.uri must be oci://REGISTRY/REPOSITORY, without a tag"),
]


@pytest.mark.parametrize(("uri", "fault"), REPOSITORIES, ids=[line[0] for line in REPOSITORIES])
def test_what_artifacts_may_be_pushed_to(uri: str, fault: str | None) -> None:
    found = complaints(publish={"uri": uri, "secretName": "registry"})
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]


ARTIFACTS = [
    ("pvc://fettle-store/artifacts/1", None),
    ("s3://artifacts/team-a/artifacts/1", None),
    ("oci://registry/models/digits@sha256:" + SHA, None),
    ("oci://registry/models/digits:v1", "model.uri must be pvc://CLAIM/PATH"),
    ("s3://artifacts", "model.uri must be pvc://CLAIM/PATH"),
    ("https://host/artifacts/1", "model.uri must be pvc://CLAIM/PATH"),
]


@pytest.mark.parametrize(("uri", "fault"), ARTIFACTS, ids=[line[0] for line in ARTIFACTS])
def test_what_may_be_served(uri: str, fault: str | None) -> None:
    model = {"uri": uri, "sha256": SHA, "runtime": "onnxruntime"}
    found = judged("ModelDeployment", {"model": model})
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"source": {"uri": "s3://b/m.onnx", "secretName": "minio"}}, None),
        ({"store": {"uri": "s3://b", "secretName": "minio"}}, None),
        ({"source": {"uri": "pvc://models/m.onnx", "secretName": "minio"}}, f"source.secretName {OUTSIDE}"),
        ({"store": {"uri": "pvc://store", "secretName": "minio"}}, f"store.secretName {OUTSIDE}"),
        ({"source": {"uri": "s3://b/m.onnx", "secretName": ""}}, "source.secretName"),
        ({"source": {"uri": "s3://b/m.onnx", "secretName": "../x"}}, "source.secretName"),
    ],
)
def test_a_secret_stands_beside_an_address_outside(spec: dict[str, Any], fault: str | None) -> None:
    found = complaints(**spec)
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]


def test_a_model_that_is_followed_needs_no_secret_of_its_own() -> None:
    model = {"ref": {"name": "m", "target": "cpu"}, "secretName": "minio"}
    (found,) = judged("ModelDeployment", {"model": model})
    assert f"model.secretName {OUTSIDE}" in found
