"""What the init container refuses to bring into a pod, and in which words."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers import s3
from tests.servers.registry import RAW, TITLE, RegistryServer
from tests.servers.web import serving
from tests.unit.cli.test_pull import artifact
from tests.unit.runtimes.fake_cuda import FakeCuda
from tests.unit.server.serving import SIGNATURE, publish

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.uris import store_of
from fettle.cli.access.packs import files_at, pack_of, push_pack
from fettle.errors import FettleError
from fettle.runtimes import cuda
from fettle.server.fetch import fetch, told
from fettle.server.settings import ServerSettings
from fettle.store.manifest import check_fetched, read_stored, write_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store that holds an artifact."""
    monkeypatch.setenv("FETTLE_MOUNTS", json.dumps({"store": str(tmp_path / "store")}))
    return tmp_path


def settings_of(root: Path, sha256: str) -> ServerSettings:
    return ServerSettings(artifact=f"pvc://store/artifacts/{sha256}", sha256=sha256, folder=root / "model", model="m")


def refused(root: Path, sha256: str) -> FettleError:
    settings = settings_of(root, sha256)
    with pytest.raises(FettleError) as caught:
        fetch(settings)
    return caught.value


def test_a_cpu_that_lacks_what_the_artifact_needs_is_named(root: Path) -> None:
    digest = publish(root)
    store = Store.open("pvc://store", Mounts({"store": root / "store"}))
    demanding = read_stored(store, digest).model_copy(update={"requires": ("an-instruction-of-2040",)})
    error = refused(root, write_artifact(store, demanding))
    assert error.reason == Reason.NODE_INCOMPATIBLE
    for words in ("this node's CPU", "lacks an-instruction-of-2040", "template.nodeSelector"):
        assert words in error.message


@pytest.mark.parametrize(
    ("requires", "here", "told"),
    [
        (("nvidia-sm89",), "sm89", ""),
        (("nvidia",), "sm75", ""),
        (("nvidia-sm89",), "sm86", "and GPU (NVIDIA Fake, sm86) lacks nvidia-sm89, which the artifact needs"),
        (("nvidia-sm89",), None, "this node has no NVIDIA GPU that the pod may use"),
        (("nvidia",), None, "this node has no NVIDIA GPU that the pod may use"),
    ],
    ids=["an engine's own GPU", "any GPU for what any runs", "an engine's on another", "an engine's on none", "no GPU"],
)
def test_a_gpu_that_the_artifact_cannot_use_ends_the_pod_before_it_loads(
    requires: tuple[str, ...], here: str | None, told: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> FakeCuda:
        if here is None:
            raise cuda.no_device("no device is visible")
        return FakeCuda(sm=here)

    monkeypatch.setattr(cuda, "connect", connect)
    digest = publish(root)
    store = Store.open("pvc://store", Mounts({"store": root / "store"}))
    bound = write_artifact(store, read_stored(store, digest).model_copy(update={"requires": requires}))
    if told:
        error = refused(root, bound)
        assert error.reason == Reason.NODE_INCOMPATIBLE
        assert told in error.message
        return
    fetch(ServerSettings(artifact=f"pvc://store/artifacts/{bound}", sha256=bound, folder=root / "model", model="m"))


def test_an_artifact_that_nobody_published_is_not_found(root: Path) -> None:
    publish(root)
    error = refused(root, "0" * 64)
    assert error.reason == Reason.ARTIFACT_NOT_FOUND
    assert f"pvc://store/artifacts/{'0' * 64}" in error.message


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_node_whose_disk_is_full_is_told_apart_from_a_store_that_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    sha256 = publish(root)

    def full(path: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code), str(target))

    monkeypatch.setattr(Path, "replace", full)
    error = refused(root, sha256)
    assert error.reason == Reason.MODEL_LOAD_FAILED and error.retryable
    assert "this node's disk has no room" in error.message and os.strerror(code) in error.message
    assert not list((root / "model").rglob("*.partial"))


def expecting(signature: Signature, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stable revision's clients use `signature`: as a pod is told."""
    monkeypatch.setenv("FETTLE_SERVER_REPLACES", told(signature))


def test_an_artifact_that_clients_of_the_stable_revision_could_not_use_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = publish(root)
    (y,) = SIGNATURE.outputs
    expecting(Signature(inputs=(Tensor(name="x", dtype="FP32", shape=(-1, -1)),), outputs=(y,)), monkeypatch)
    error = refused(root, sha256)
    assert error.reason == Reason.SIGNATURE_INCOMPATIBLE and not error.retryable
    assert error.message == (
        "clients of the stable revision could not use this one (-1 = any size): input x is FP32 [-1, 4] instead of FP32 [-1, -1]. "
        "Publish a model that takes the same requests, or run kubectl fettle retry m to roll this one out all the same"
    )


def test_an_artifact_that_takes_more_than_the_stable_one_is_brought_in(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = publish(root)
    expecting(Signature(inputs=(Tensor(name="x", dtype="FP32", shape=(1, 4)),), outputs=()), monkeypatch)
    assert fetch(settings_of(root, sha256)) == SIGNATURE


def test_inputs_and_outputs_that_kubernetes_would_cut_off_are_not_told() -> None:
    def wide(inputs: int) -> Signature:
        return Signature(
            inputs=tuple(Tensor(name=f"x{n}", dtype="FP32", shape=(-1,)) for n in range(inputs)), outputs=()
        )

    assert Signature.model_validate_json(told(wide(40))) == wide(40)
    assert told(wide(200)) == ""


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3.S3Server]:
    pytest.importorskip("moto")
    with s3.running("artifacts") as server:
        yield server


def in_bucket(bucket: s3.S3Server, keys: Path, folder: Path) -> tuple[str, dict[str, str], str]:
    """An artifact's address, what a pod is told to open it with, and its digest."""
    store = Store.open("s3://artifacts/team", Mounts(secrets={"s3://artifacts/team": bucket.keys(folder / "writer")}))
    sha256 = artifact(store, folder / "made")
    uri = f"{store.uri}/artifacts/{sha256}"
    return uri, Mounts(secrets={store_of(uri): keys}).to_environment(), sha256


def test_an_artifact_of_a_bucket_is_brought_in(
    bucket: s3.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, told, sha256 = in_bucket(bucket, bucket.keys(tmp_path / "minio"), tmp_path)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    fetch(ServerSettings(artifact=uri, sha256=sha256, folder=tmp_path / "model", model="m"))
    check_fetched(tmp_path / "model", sha256)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "a-key-nobody-may-see"}, "Forbidden: s3://artifacts/team"),
        (None, "the Secret nothing does not exist in this namespace, or is empty"),
    ],
)
def test_a_pod_with_wrong_credentials_says_so_and_shows_none(
    bucket: s3.S3Server, tmp_path: Path, wrong: dict[str, str] | None, words: str
) -> None:
    keys = tmp_path / "nothing" if wrong is None else bucket.keys(tmp_path / "minio", **wrong)
    uri, told, sha256 = in_bucket(bucket, keys, tmp_path)
    settings = {"ARTIFACT": uri, "SHA256": sha256, "FOLDER": str(tmp_path / "model"), "MODEL": "m"}
    environment = {**os.environ, **told, **{f"FETTLE_SERVER_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "fettle.server", "fetch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    for secret in (bucket.key, bucket.secret, "a-key-nobody-may-see"):
        assert secret not in done.stderr + done.stdout
    assert not (tmp_path / "model" / "manifest.json").exists()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RegistryServer]:
    pytest.importorskip("obstore")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    with serving(RegistryServer()) as server:
        yield server


def test_an_artifact_of_a_registry_is_brought_in(registry: RegistryServer, root: Path) -> None:
    digest = publish(root)
    with files_at(root / "store/artifacts" / digest) as folder:
        uri = push_pack(pack_of(folder), f"oci://{registry.host}/models/lookup:v1", None, lambda _: None)
    assert uri.startswith(f"oci://{registry.host}/models/lookup@sha256:")
    for _ in range(2):  # a container that starts again finds its files
        fetch(ServerSettings(artifact=uri, sha256=digest, folder=root / "model", model="m"))
        check_fetched(root / "model", digest)
    blobs = [request.path for request in registry.requests if request.method == "GET" and "/blobs/" in request.path]
    assert len(blobs) == 4, "three files, and the manifest once more"


def test_an_artifact_of_a_registry_is_the_one_that_was_meant(registry: RegistryServer, root: Path) -> None:
    with files_at(root / "store/artifacts" / publish(root)) as folder:
        uri = push_pack(pack_of(folder), f"oci://{registry.host}/models/lookup:v1", None, lambda _: None)
    other = registry.publish("models/other", "v1", [(RAW, {TITLE: "model.onnx"}, b"graph")])
    nobody = f"oci://{registry.host}/models/nobody@sha256:{'0' * 64}"
    for address, reason in (
        (uri, Reason.ARTIFACT_TAMPERED),
        (f"oci://{registry.host}/models/other@{other}", Reason.ARTIFACT_NOT_FOUND),
        (nobody, Reason.ARTIFACT_NOT_FOUND),
    ):
        with pytest.raises(FettleError) as caught:
            fetch(ServerSettings(artifact=address, sha256="0" * 64, folder=root / "model", model="m"))
        assert caught.value.reason == reason, caught.value.message
