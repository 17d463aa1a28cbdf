"""Sources, data and the store on a real S3 server, which is killed in the middle of each stage."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tools.demo.kube import ROOT
from tools.integrations.s3 import Gateway, S3Server

from fettle.api.reasons import Reason
from fettle.cli.main import main
from fettle.errors import StoreError
from fettle.store.manifest import check_fetched
from fettle.store.remote import RemoteFiles
from fettle.store.store import Store
from fettle.store.uris import Mounts, locate

# How long the server stays killed; 60 is the promise.
AWAY_SECONDS = float(os.environ.get("FETTLE_TEST_AWAY_SECONDS", "5"))
STAGES = ("prepare", "build", "measure", "publish")
DIGITS = ROOT / "examples" / "digits"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    server = Gateway(tmp_path / "gateway")
    (tmp_path / "gateway").mkdir()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def bucket(gateway: Gateway) -> S3Server:
    return gateway.bucket("models")


def mounts(bucket: S3Server, folder: Path, **others: str) -> Mounts:
    return Mounts(secrets={"s3://models": bucket.keys(folder, **others)})


def document(bucket: S3Server) -> dict[str, Any]:
    def at(path: str) -> dict[str, str]:
        return {"uri": f"s3://{bucket.bucket}/{path}", "secretName": "minio"}

    spec = {
        "source": at("first/model.onnx"),
        "data": {"evaluation": at("evaluation.npz")},
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime"]}],
        "recipes": [{"name": "optimized", "steps": [{"optimizeGraph": {}}]}],
        "constraints": {"speedup": {"min": 0.01}},
        "store": at("store"),
    }
    return {"apiVersion": "fettle.dev/v1alpha1", "kind": "OptimizedModel", "metadata": {"name": "digits"}, "spec": spec}


def upload(files: RemoteFiles, *names: str) -> None:
    for name in names:
        with (DIGITS / name).open("rb") as stream:
            files.write(name, stream)


class Killer(threading.Thread):
    """Kills the server once in each stage, as soon as its log begins, and starts it again."""

    def __init__(self, gateway: Gateway, logs: Path) -> None:
        super().__init__(daemon=True)
        self.gateway, self.logs, self.killed = gateway, logs, set[str]()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            stages = {path.name.split("-")[0] for path in self.logs.rglob("*.log")} & {*STAGES} - self.killed
            for stage in stages:
                self.killed.add(stage)
                self.gateway.kill()
                time.sleep(AWAY_SECONDS)
                self.gateway.start()


@pytest.mark.timeout(1800)
def test_a_server_that_is_killed_in_each_stage_loses_nothing(
    gateway: Gateway, bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = mounts(bucket, tmp_path / "minio")
    files = locate("s3://models", where).filesystem
    upload(files, "first/model.onnx", "evaluation.npz")
    Path("om.yaml").write_text(yaml.safe_dump(document(bucket)))
    killer = Killer(gateway, tmp_path / "fettle-store" / "logs")
    killer.start()
    command = ["optimize", "-f", "om.yaml", "--map", f"secret/minio={tmp_path / 'minio'}", "--measure-seconds", "1"]
    done = CliRunner().invoke(main, command)
    killer.over.set()
    killer.join()
    assert done.exit_code == 0, done.output
    assert killer.killed == {*STAGES}
    (uri,) = {word for word in done.output.split() if "/artifacts/" in word}
    pulled = CliRunner().invoke(main, ["pull", uri, "winner", "--secret", str(tmp_path / "minio")])
    assert pulled.exit_code == 0, pulled.output
    check_fetched(Path("winner"), uri.rsplit("/", 1)[-1])
    left = "\n".join(path.read_text() for path in (tmp_path / "fettle-store").rglob("*.log"))
    for secret in (bucket.key, bucket.secret):
        assert secret not in done.output + left


def test_large_files_go_and_come_in_parts_whoever_else_writes(bucket: S3Server, tmp_path: Path) -> None:
    store = Store.open("s3://models/store", mounts(bucket, tmp_path / "minio"))
    content = os.urandom(1 << 20) * 70  # above the bound of a single request
    (tmp_path / "large.bin").write_bytes(content)
    with ThreadPoolExecutor(3) as pool:
        (stored,) = set(pool.map(store.put_file, [tmp_path / "large.bin"] * 3))
    assert store.has_blob(stored.sha256, len(content))
    assert store.fetch_file(stored, tmp_path / "fetched").read_bytes() == content


@pytest.mark.parametrize(
    ("uri", "keys", "reason", "words"),
    [
        (
            "s3://models/m",
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            Reason.FORBIDDEN,
            "were refused: correct AWS_ACCESS_KEY_ID",
        ),
        ("s3://models/m", {"AWS_ACCESS_KEY_ID": "nobody"}, Reason.FORBIDDEN, "were refused: correct AWS_ACCESS_KEY_ID"),
        ("s3://nobodys/m", {}, Reason.STORE_NOT_FOUND, "there is no bucket of this name"),
    ],
)
def test_what_the_server_refuses_is_told_with_what_to_do(
    uri: str, keys: dict[str, str], reason: Reason, words: str, bucket: S3Server, tmp_path: Path
) -> None:
    store = Store.open(uri, Mounts(secrets={uri: bucket.keys(tmp_path / "minio", **keys)}))
    with pytest.raises(StoreError) as caught:
        store.put_bytes(b"x")
    assert (caught.value.reason, words in caught.value.message) == (reason, True), caught.value.message
