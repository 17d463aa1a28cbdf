"""`fettle pull` and `fettle prune` on a store in a bucket, as on one in a claim."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.servers import s3
from tests.unit.cli.api_server import api_server
from tests.unit.cli.test_pull import artifact

from fettle.cli.access.bucket import BucketFiles, location_of
from fettle.cli.main import main
from fettle.cli.pods import prune as program
from fettle.errors import StoreError
from fettle.store import store as stores
from fettle.store.manifest import check_fetched, copy_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts

HOUR = 3600
pytest.importorskip("obstore")
pytest.importorskip("moto")


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3Server]:
    with s3.running("artifacts") as running:
        yield running


@pytest.fixture
def keys(server: s3.S3Server, tmp_path: Path) -> Path:
    return server.keys(tmp_path / "keys")


@pytest.fixture
def store(keys: Path, request: pytest.FixtureRequest) -> Store:
    return Store.open(f"s3://artifacts/{request.node.name}", Mounts(secrets={"s3://artifacts": keys}))


def sweep(store: Store, keep: list[str], keys: Path, *, older: int = -60, dry: bool = False) -> dict[str, object]:
    return program.sweep(BucketFiles(location_of(store.uri, keys)), {"keep": keep, "older": older, "dry": dry})


def test_an_artifact_is_pulled_from_a_bucket(store: Store, keys: Path, tmp_path: Path) -> None:
    sha256 = artifact(store, tmp_path / "made")
    uri, to = f"{store.uri}/artifacts/{sha256}", tmp_path / "winner"
    result = CliRunner().invoke(main, ["pull", uri, str(to), "--secret", str(keys)])
    assert result.exit_code == 0, result.output
    assert "all digests verified" in result.output
    check_fetched(to, sha256)


def test_other_files_of_a_bucket_are_left_to_other_tools(store: Store, keys: Path) -> None:
    result = CliRunner().invoke(main, ["pull", f"{store.uri}/models/model.onnx", "--secret", str(keys)])
    assert result.exit_code == 2
    assert "expected the address of an artifact in a store" in result.output


def test_what_is_kept_stays_whole_and_the_rest_goes(store: Store, keys: Path, tmp_path: Path) -> None:
    kept = artifact(store, tmp_path / "kept")
    lost = store.put_bytes(b"nobody names this one")
    dry = sweep(store, [kept], keys, dry=True)
    assert store.has_blob(lost), "a dry run removes nothing"
    assert sweep(store, [kept], keys) == dry
    assert dry["removed"] == {"files": 1, "bytes": 21}
    assert not store.has_blob(lost)
    copy_artifact(store, kept, tmp_path / "whole")
    check_fetched(tmp_path / "whole", kept)


def test_checkpoints_of_a_training_that_nobody_goes_on_with_go(store: Store, keys: Path) -> None:
    kept, folder = store.put_bytes(b"whole"), f"checkpoints/{'a' * 64}"
    for number in (1, 2):
        store.write_bytes(f"{folder}/{number:08}.pt", b"state")
    for _ in range(2):
        store.remove(f"{folder}/{1:08}.pt")
    assert store.names(folder) == [f"{2:08}.pt"], "a training that goes on removes its older ones, once or twice"
    assert sweep(store, [kept], keys, older=HOUR)["removed"] == {"files": 0, "bytes": 0}
    assert sweep(store, [kept], keys)["removed"] == {"files": 1, "bytes": 5}
    assert store.names(folder) == []


def test_a_blob_that_was_used_lately_stays(store: Store, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FRESH_SECONDS", -1.0)
    sha256 = store.put_bytes(b"used")
    written = BucketFiles(location_of(store.uri, keys)).sizes("blobs")[f"blobs/{sha256}"][1]
    time.sleep(1.1)  # the server counts in seconds
    assert store.has_blob(sha256)
    files = BucketFiles(location_of(store.uri, keys))
    assert files.sizes("blobs")[f"blobs/{sha256}"][1] > written
    sweep(store, [], keys)
    assert store.names("used") == [], "its mark goes with it"


def test_where_there_is_no_store_nothing_is_removed(store: Store, keys: Path) -> None:
    with pytest.raises(StoreError, match="a store has a folder 'blobs'"):
        sweep(store, [], keys)


def test_the_command_takes_the_address_of_a_bucket(store: Store, keys: Path, tmp_path: Path) -> None:
    sha256 = store.put_bytes(b"young")
    with api_server() as server:
        groups = ("/apis/fettle.dev/v1alpha1", "/apis/batch/v1", "/apis/apps/v1")
        plurals = ("optimizedmodels", "modeldeployments", "jobs", "controllerrevisions")
        for group in groups:
            server.objects |= {f"{group}/namespaces/default/{plural}": {"items": []} for plural in plurals}
        reached = ["--kubeconfig", str(server.kubeconfig(tmp_path))]
        result = CliRunner().invoke(main, ["prune", store.uri, "--secret", str(keys), *reached])
    assert result.exit_code == 0, result.output
    assert "nothing to remove; 5 B in 1 files kept" in result.output
    assert store.has_blob(sha256)
