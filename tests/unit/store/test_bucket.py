"""A store in a bucket: what is written is there whole, whoever else writes; and nothing is lost while the server is away."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from tests.servers import s3
from tests.unit.store.test_store import model_folder

from fettle.api.data import PreprocessSpec
from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Color
from fettle.errors import StoreError
from fettle.optimizer.data import items
from fettle.optimizer.data.columns import Room
from fettle.optimizer.data.items import ItemsRequest
from fettle.store import remote
from fettle.store import store as stores
from fettle.store.cache import read_build, write_build
from fettle.store.store import Store
from fettle.store.uris import Mounts, locate

pytest.importorskip("obstore")
pytest.importorskip("moto")


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.running("artifacts") as running:
        yield running


@pytest.fixture
def mounts(server: s3.S3Server, tmp_path: Path) -> Mounts:
    return Mounts(secrets={"s3://artifacts": server.keys(tmp_path / "keys")})


@pytest.fixture
def store(mounts: Mounts, request: pytest.FixtureRequest) -> Store:
    return Store.open(f"s3://artifacts/{request.node.name.replace('[', '-').strip(']')}", mounts)


def spoil(store: Store, sha256: str, content: bytes) -> None:
    store.root.filesystem.write(store.root.child(f"blobs/{sha256}").path, io.BytesIO(content))


def test_a_model_comes_back_as_it_was_put(store: Store, tmp_path: Path) -> None:
    stored = store.put_model(model_folder(tmp_path), "model.onnx")
    entry = store.fetch_model(stored, tmp_path / "fetched")
    assert entry.read_bytes() == b"graph"
    assert (tmp_path / "fetched/deep/weights.bin").read_bytes() == b"weights"


def test_what_exists_is_not_written_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store.put_model(model_folder(tmp_path), "model.onnx")

    def never(*_: object) -> None:
        raise AssertionError("nothing need be written")

    monkeypatch.setattr(remote.RemoteFiles, "write", never)
    assert store.put_model(tmp_path / "model", "model.onnx") == stored


@pytest.mark.parametrize("content", [b"GRAPH", b"gr", b""])
def test_a_changed_blob_is_never_handed_out(store: Store, tmp_path: Path, content: bytes) -> None:
    stored = store.put_model(model_folder(tmp_path), "model.onnx")
    spoil(store, stored.files[1].sha256, content)
    with pytest.raises(StoreError) as caught:
        store.fetch_model(stored, tmp_path / "fetched")
    assert caught.value.reason == Reason.ARTIFACT_TAMPERED
    assert not (tmp_path / "fetched/model.onnx").exists()


def test_a_blob_of_another_size_is_written_again(store: Store, tmp_path: Path) -> None:
    stored = store.put_model(model_folder(tmp_path), "model.onnx")
    spoil(store, stored.files[1].sha256, b"gr")
    store.put_model(tmp_path / "model", "model.onnx")
    assert store.fetch_model(stored, tmp_path / "fetched").read_bytes() == b"graph"


def test_a_large_file_goes_and_comes_in_parts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WHOLE", 8 << 20)
    monkeypatch.setattr(remote, "PART", 5 << 20)
    content = os.urandom(1 << 20) * 12
    (tmp_path / "large.bin").write_bytes(content)
    stored = store.put_file(tmp_path / "large.bin")
    info = store.root.filesystem.info(store.root.child(f"blobs/{stored.sha256}").path)
    assert info["size"] == len(content)
    assert store.fetch_file(stored, tmp_path / "fetched").read_bytes() == content


def test_what_was_never_written_is_absent(store: Store) -> None:
    assert not store.exists("builds/nothing.json")
    assert read_build(store, "0" * 64) is None
    assert store.names("reports/default/digits") == []
    with pytest.raises(StoreError) as caught:
        store.read_bytes("builds/nothing.json")
    assert caught.value.reason == Reason.STORE_NOT_FOUND


def test_a_build_is_remembered(store: Store, tmp_path: Path) -> None:
    built = store.put_model(model_folder(tmp_path), "model.onnx")
    write_build(store, "1" * 64, built)
    assert read_build(store, "1" * 64) == built
    assert store.names("builds") == [f"{'1' * 64}.json"]


def test_two_writers_at_once_both_find_it_whole(store: Store, tmp_path: Path) -> None:
    folder, together = model_folder(tmp_path), threading.Barrier(8)

    def put(number: int) -> object:
        together.wait()
        store.write_bytes("reports/who.json", bytes([65 + number]) * 100_000)
        return store.put_model(folder, "model.onnx")

    with ThreadPoolExecutor(8) as pool:
        stored = set(pool.map(put, range(8)))
    (model,) = stored
    assert store.fetch_model(model, tmp_path / "fetched").read_bytes() == b"graph"  # type: ignore[attr-defined]
    left = store.read_bytes("reports/who.json")
    assert len(left) == 100_000 and len(set(left)) == 1, "the last one's, whole"


def test_a_blob_that_was_asked_for_counts_as_used(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = store.put_bytes(b"seldom used")
    assert store.names("used") == []
    monkeypatch.setattr(stores, "FRESH_SECONDS", -1.0)
    assert store.has_blob(sha256)
    assert store.names("used") == [sha256]


def test_a_store_that_is_away_has_lost_nothing(mounts: Mounts, tmp_path: Path, server: s3.S3Server) -> None:
    keys = server.keys(tmp_path / "away", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    away = Store.open("s3://artifacts/x", Mounts(secrets={"s3://artifacts": keys}))
    for question in (
        lambda: away.exists("builds/a.json"),
        lambda: away.has_blob("0" * 64),
        lambda: away.put_bytes(b"x"),
        lambda: away.result("0" * 64),
    ):
        with pytest.raises(StoreError) as caught:
            question()
        assert (caught.value.reason, caught.value.retryable) == (Reason.STORE_UNREACHABLE, True)
        assert "the connection was refused" in caught.value.message


def test_a_bucket_that_is_not_there_is_named(mounts: Mounts, server: s3.S3Server, tmp_path: Path) -> None:
    gone = Store.open("s3://nobodys/x", Mounts(secrets={"s3://nobodys": server.keys(tmp_path / "gone")}))
    with pytest.raises(StoreError, match=r"s3://nobodys/x/blobs/\w+: there is no bucket of this name") as caught:
        gone.put_bytes(b"x")
    assert caught.value.reason == Reason.STORE_NOT_FOUND


def test_pictures_of_a_bucket_are_items_and_their_folders_are_labels(mounts: Mounts) -> None:
    files = locate("s3://artifacts/photos", mounts).filesystem
    for name, color in {"ape/1.png": 10, "ape/2.png": 20, "zebra/1.png": 30}.items():
        picture = io.BytesIO()
        Image.new("L", (4, 4), color).save(picture, "PNG")
        files.write(f"photos/{name}", picture)
    image = Tensor(name="image", dtype="FP32", shape=(-1, 1, 4, 4), batch_axis=0)
    asked = ItemsRequest("s3://artifacts/photos", 3, "labels", PreprocessSpec(color=Color.GRAYSCALE))
    found = items.read(asked, mounts, Signature(inputs=(image,), outputs=()), {"image": 0}, Room())
    assert found.labels is not None
    pixels = sorted((found.arrays["image"][:, 0, 0, 0, 0] * 255).round().tolist())
    assert (pixels, sorted(found.labels.tolist())) == ([10, 20, 30], [0, 0, 1])


def test_every_blob_has_the_name_of_its_content(store: Store) -> None:
    assert store.put_bytes(b"content") == hashlib.sha256(b"content").hexdigest()
