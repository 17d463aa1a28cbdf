"""`fettle push`, `pull`, `report`, `tensorboard` and `prune` on a bucket, as on a claim."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.servers import s3
from tests.unit.cli.api_server import api_server
from tests.unit.cli.test_pull import MODELS, artifact, model

from fettle.cli.access.bucket import BucketFiles, location_of
from fettle.cli.access.pull_files import pull_remote
from fettle.cli.main import main
from fettle.cli.pods import prune as program
from fettle.errors import StoreError, UsageError
from fettle.store import store as stores
from fettle.store.manifest import check_fetched, copy_artifact
from fettle.store.remote import RemoteFiles
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


def run(command: str, source: object, to: object, keys: Path) -> str:
    result = CliRunner().invoke(main, [command, str(source), str(to), "--secret", str(keys)])
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_an_artifact_is_pulled_from_a_bucket(store: Store, keys: Path, tmp_path: Path) -> None:
    sha256 = artifact(store, tmp_path / "made")
    uri, to = f"{store.uri}/artifacts/{sha256}", tmp_path / "winner"
    result = CliRunner().invoke(main, ["pull", uri, str(to), "--secret", str(keys)])
    assert result.exit_code == 0, result.output
    assert "all digests verified" in result.output
    check_fetched(to, sha256)


def test_a_folder_goes_to_a_bucket_and_comes_back(store: Store, keys: Path, tmp_path: Path) -> None:
    source, to = tmp_path / "digits", tmp_path / "back"
    (source / "deep").mkdir(parents=True)
    for name, text in (("model.onnx", "one"), ("deep/data", "two"), ("empty", "")):
        (source / name).write_text(text)
    for _ in range(2):
        pushed = run("push", source, f"{store.uri}/digits", keys)
        assert pushed == f"3 files pushed to {store.uri}/digits (6 B)"
    assert run("pull", f"{store.uri}/digits", to, keys) == f"3 files pulled to {to} (6 B)"
    assert {path.relative_to(to).as_posix(): path.read_text() for path in to.rglob("*") if path.is_file()} == {
        "model.onnx": "one",
        "deep/data": "two",
        "empty": "",
    }
    run("pull", f"{store.uri}/digits/deep/data", to, keys)
    assert (to / "data").read_text() == "two", "a single file goes into the folder"


def test_a_file_goes_below_a_folder_of_a_bucket(store: Store, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("weights")
    run("push", tmp_path / "model.onnx", f"{store.uri}/first/", keys)
    assert run("pull", f"{store.uri}/first/model.onnx", tmp_path / "m", keys).startswith("1 files pulled")
    assert (tmp_path / "m").read_text() == "weights"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["push", "FILE", "https://web.example/m.onnx"],
            "files cannot be uploaded to https://, expected one of pvc://, s3://",
        ),
        (["push", "nowhere", "s3://artifacts/m"], "nowhere: no such file or folder"),
        (["push", "FILE", "s3://artifacts/../m"], "'..' is not allowed"),
        (["push", "FILE", "s3://artifacts/a//m"], "s3://artifacts/a//m: expected a path in UTF-8"),
        (["push", "FILE", "s3://artifacts/a/./m"], "s3://artifacts/a/./m: expected a path in UTF-8"),
        (["push", "FILE", "s3://artifacts/a%0Am"], "and without empty parts, '.' and '..'"),
        (["push", "ODD", "s3://artifacts/odd"], "s3://artifacts/odd/\\udcff: expected a path in UTF-8"),
        (["pull", "s3://artifacts/a//m"], "s3://artifacts/a//m: expected a path in UTF-8"),
        (["pull", "s3://artifacts/nothing/here"], "s3://artifacts/nothing/here: not found"),
    ],
)
def test_what_cannot_be_copied_is_one_line(command: list[str], said: str, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "odd").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "odd") + b"/\xff")).write_text("x")
    words = [{"FILE": str(tmp_path / "file"), "ODD": str(tmp_path / "odd")}.get(word, word) for word in command]
    result = CliRunner().invoke(main, [*words, "--secret", str(keys)])
    assert result.exit_code in (1, 2), result.output
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_secret_that_is_missing_is_told_with_its_option(server: s3.S3Server, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = "correct secretName; on the command line, secretName is --secret"
    result = CliRunner().invoke(main, ["pull", "s3://artifacts/m", "--secret", str(tmp_path / "empty")])
    assert (result.exit_code, told in result.output) == (1, True), result.output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_in_which_nothing_can_be_written_is_no_fault_of_the_bucket(
    store: Store, keys: Path, tmp_path: Path
) -> None:
    store.write_bytes("m", b"model")
    (tmp_path / "closed").mkdir(0o500)
    result = CliRunner().invoke(main, ["pull", f"{store.uri}/m", str(tmp_path / "closed/m"), "--secret", str(keys)])
    assert (result.exit_code, result.output) == (2, f"Error: cannot write {tmp_path}/closed/m: Permission denied\n")


def test_a_key_that_would_leave_the_folder_is_refused(store: Store, keys: Path, tmp_path: Path) -> None:
    location = location_of(f"{store.uri}/data", keys)
    escaping = [f"{location.path}/../../outside"]

    class Listing(RemoteFiles):
        def find(self, path: str, *_: object, **__: object) -> list[str]:
            return escaping

    remote = location.filesystem
    hostile = replace(location, filesystem=Listing(remote._place, remote._missing))
    with pytest.raises(UsageError, match="leaves the folder"):
        pull_remote(hostile, tmp_path / "to")
    assert not (tmp_path / "outside").exists()


def test_a_report_and_its_curves_are_read_from_a_bucket(store: Store, keys: Path, tmp_path: Path) -> None:
    store.write_bytes("reports/1.html", b"<p>fast</p>")
    store.write_bytes("reports/1.tensorboard/lean/events", b"events")
    with api_server() as server:
        server.objects[f"{MODELS}/digits"] = model(report={"uri": f"{store.uri}/reports/1.html"})
        reached = ["--secret", str(keys), "--kubeconfig", str(server.kubeconfig(tmp_path))]
        report = CliRunner().invoke(main, ["report", "digits", str(tmp_path / "digits.html"), *reached])
        curves = CliRunner().invoke(
            main, ["tensorboard", "digits", str(tmp_path / "curves"), *reached], env={"PATH": ""}
        )
    assert (report.exit_code, curves.exit_code) == (0, 0), report.output + curves.output
    assert (tmp_path / "digits.html").read_text() == "<p>fast</p>"
    assert (tmp_path / "curves/1/lean/events").read_bytes() == b"events"


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ("s3://artifacts/never/reports/1.html", 2, "the last run trained nothing"),
        ("s3://no-such-bucket/reports/1.html", 1, "there is no bucket of this name"),
    ],
)
def test_a_run_without_curves_is_told_from_a_bucket_that_is_not_there(
    keys: Path, tmp_path: Path, report: str, code: int, said: str
) -> None:
    with api_server() as server:
        server.objects[f"{MODELS}/digits"] = model(report={"uri": report})
        reached = ["--secret", str(keys), "--kubeconfig", str(server.kubeconfig(tmp_path))]
        result = CliRunner().invoke(main, ["tensorboard", "digits", str(tmp_path / "curves"), *reached])
    assert (result.exit_code, said in result.output) == (code, True), result.output


def test_a_folder_that_a_console_has_made_comes_without_what_marks_it(
    server: s3.S3Server, store: Store, keys: Path, tmp_path: Path
) -> None:
    import boto3

    identity = {"aws_access_key_id": server.key, "aws_secret_access_key": server.secret}
    client = boto3.client("s3", endpoint_url=server.url, region_name=s3.REGION, **identity)
    folder = store.uri.removeprefix("s3://artifacts/")
    for name, content in (("", b""), ("deep/", b""), ("deep/a", b"a"), ("bare/", b""), ("empty", b""), ("b", b"b")):
        client.put_object(Bucket="artifacts", Key=f"{folder}/{name}", Body=content)
    assert run("pull", store.uri, tmp_path / "to", keys) == f"3 files pulled to {tmp_path / 'to'} (2 B)"
    found = [path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*") if path.is_file()]
    assert sorted(found) == ["b", "deep/a", "empty"]


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
