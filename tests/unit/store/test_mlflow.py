"""Models of a tracking server, as a server with the REST API and the artifact proxy of MLflow gives them."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data import models
from tests.servers.web import WebServer, serving
from tests.unit.store.locations import read, refusal, secret

from fettle.api.reasons import Reason
from fettle.api.source import SourceSpec
from fettle.api.vocabulary import FormatName
from fettle.errors import SourceError
from fettle.optimizer.prepare.source import fetch
from fettle.store import mlflow as tracking
from fettle.store.uris import Location, Mounts, locate

pytest.importorskip("obstore")
API, ARTIFACTS = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"
TOKEN, PASSWORD = "s3cr3t-t0ken-of-mine", "correct horse battery"
WEIGHTS = bytes(range(256)) * 1000
FILES = {"MLmodel": b"flavors: {onnx: {data: model.onnx}}", "model.onnx": WEIGHTS, "data/an ü.npz": b"", "data/b": b"b"}


def told(server: WebServer, path: str, document: object) -> None:
    server.files[path] = json.dumps(document).encode()


def register(
    server: WebServer, name: str, version: int, files: dict[str, bytes], uri: str = "mlflow-artifacts:/1/models/m-PLACE"
) -> None:
    """A version of a model, and its files behind the artifact proxy."""
    place = f"1/models/m-{version}"
    asked = f"name={name}&version={version}"
    told(
        server,
        f"{API}/model-versions/get-download-uri?{asked}",
        {"artifact_uri": uri.replace("m-PLACE", f"m-{version}")},
    )
    folders = {"", *(path.rpartition("/")[0] for path in files)}
    for folder in folders:
        inside = {
            path.rpartition("/")[2]: content for path, content in files.items() if path.rpartition("/")[0] == folder
        }
        entries = [{"path": path, "is_dir": False, "file_size": len(content)} for path, content in inside.items()]
        entries += [{"path": each, "is_dir": True} for each in sorted(folders - {""}) if not folder]
        told(server, f"{ARTIFACTS}?path={place}{'/' if folder else ''}{folder}", {"files": entries})
    server.files |= {f"{ARTIFACTS}/{place}/{path}": content for path, content in files.items()}


def point(server: WebServer, name: str, alias: str, version: int) -> None:
    """An alias."""
    model = {"model_version": {"name": name, "version": str(version)}}
    told(server, f"{API}/registered-models/alias?name={name}&alias={alias}", model)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with serving(WebServer(streams=True)) as running:
        register(running, "digits", 3, FILES)
        point(running, "digits", "champion", 3)
        yield running


def at(server: WebServer, uri: str, folder: Path, **keys: str) -> Location:
    given = secret(folder / "tracking", {"MLFLOW_TRACKING_URI": server.url}, **keys)
    return locate(uri, Mounts(secrets={uri: given}), missing=SourceError)


@pytest.mark.parametrize("uri", ["mlflow://digits/3", "mlflow://digits@champion"])
def test_a_model_is_known_by_its_version_or_its_alias(server: WebServer, tmp_path: Path, uri: str) -> None:
    location = at(server, uri, tmp_path)
    assert location.filesystem.find("") == sorted(FILES)
    assert location.filesystem.ls("", detail=False) == ["MLmodel", "data", "model.onnx"]
    assert [location.filesystem.isdir(path) for path in ("", "data", "MLmodel")] == [True, True, False]
    for path, content in FILES.items():
        location.filesystem.get_file(path, str(tmp_path / "here"))
        assert (tmp_path / "here").read_bytes() == content
    assert read(at(server, f"{uri}/data/b", tmp_path)) == b"b"


@pytest.mark.parametrize("streams", [True, False])
def test_a_connection_that_breaks_loses_nothing(server: WebServer, tmp_path: Path, streams: bool) -> None:
    server.streams = streams
    location = at(server, "mlflow://digits/3", tmp_path)
    server.breaks, server.failures = 2, 1
    assert read(location, "model.onnx") == WEIGHTS
    assert (server.breaks, server.failures) == (0, 0)


def test_an_alias_means_the_same_for_all_addresses_of_a_run(server: WebServer, tmp_path: Path) -> None:
    first = at(server, "mlflow://digits@champion", tmp_path)
    mounts = Mounts(secrets={"mlflow://digits@champion": tmp_path / "tracking"})
    assert read(locate("mlflow://digits@champion", mounts), "data/b") == b"b"
    register(server, "digits", 4, {"MLmodel": b"", "data/b": b"moved"})
    point(server, "digits", "champion", 4)
    assert read(locate("mlflow://digits@champion/data/b", mounts)) == b"b"
    assert read(first, "data/b") == b"moved"


def test_nothing_is_asked_of_the_server_before_a_file_is(server: WebServer, tmp_path: Path) -> None:
    location = at(server, "mlflow://digits/3", tmp_path)
    assert not server.requests
    read(location, "data/b")
    assert server.requests


@pytest.mark.parametrize(
    "uri", ["mlflow-artifacts://HOST/1/models/m-PLACE", f"http://HOST{ARTIFACTS}/1/models/m-PLACE/"]
)
def test_the_artifact_proxy_may_be_named_in_full(server: WebServer, tmp_path: Path, uri: str) -> None:
    register(server, "digits", 5, FILES, uri.replace("HOST", f"127.0.0.1:{server.port}"))
    assert read(at(server, "mlflow://digits/5", tmp_path), "model.onnx") == WEIGHTS


def test_a_model_is_prepared_as_its_flavor_says(server: WebServer, tmp_path: Path) -> None:
    content = models.dynamic_batch().SerializeToString()
    register(
        server,
        "net",
        1,
        {"MLmodel": b"flavors: {onnx: {data: model.onnx}, python_function: {}}", "model.onnx": content},
    )
    at(server, "mlflow://net/1", tmp_path)
    (tmp_path / "source").mkdir()
    mounts = Mounts(secrets={"mlflow://net/1": tmp_path / "tracking"})
    source = fetch(SourceSpec(uri="mlflow://net/1"), mounts, tmp_path / "source")
    assert (source.format.name, source.entry) == (FormatName.ONNX, "model.onnx")
    assert source.path.read_bytes() == content


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"MLFLOW_TRACKING_TOKEN": TOKEN}, f"Bearer {TOKEN}"),
        (
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": PASSWORD},
            f"Basic {b64encode(f'me:{PASSWORD}'.encode()).decode()}",
        ),
    ],
)
def test_the_secret_opens_the_door_and_is_shown_to_nobody_else(
    server: WebServer, tmp_path: Path, keys: dict[str, str], shown: str
) -> None:
    server.token, server.password = (TOKEN, None) if "MLFLOW_TRACKING_TOKEN" in keys else (None, ("me", PASSWORD))
    with serving(WebServer({"/blob": WEIGHTS})) as elsewhere:
        server.redirects[f"{ARTIFACTS}/1/models/m-3/model.onnx"] = f"{elsewhere.url}/blob"
        assert read(at(server, "mlflow://digits/3", tmp_path, **keys), "model.onnx") == WEIGHTS
        assert {request.authorization for request in elsewhere.requests} == {None}
    assert {request.authorization for request in server.requests} == {shown}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "old-token"}, "Secret tracking were refused: correct MLFLOW_TRACKING_TOKEN (401)"),
        ({}, "Secret tracking were refused: correct its keys (401)"),
    ],
)
def test_a_closed_door_says_what_to_do(server: WebServer, tmp_path: Path, keys: dict[str, str], words: str) -> None:
    server.token = TOKEN
    error = refusal(at(server, "mlflow://digits/3", tmp_path, **keys))
    assert words in error.message
    assert "old-token" not in error.message
    assert error.reason == Reason.FORBIDDEN


def test_the_environment_says_which_server_where_there_is_no_secret(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server.url}/")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    server.token = TOKEN
    assert read(locate("mlflow://digits/3/data/b", Mounts())) == b"b"


@pytest.mark.parametrize("uri", ["mlflow://digits/4", "mlflow://digits@challenger", "mlflow://other/1"])
@pytest.mark.parametrize("status", [400, 404])
def test_what_is_not_there_is_told_as_such(server: WebServer, tmp_path: Path, uri: str, status: int) -> None:
    for query in (
        "model-versions/get-download-uri?name=digits&version=4",
        "registered-models/alias?name=digits&alias=challenger",
    ):
        server.statuses[f"{API}/{query}"] = (status, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')
    error = refusal(at(server, uri, tmp_path))
    assert f"{uri}: the tracking server has no such model, version, alias or file" in error.message
    assert (error.reason, error.retryable) == (Reason.SOURCE_NOT_FOUND, False)


def test_a_server_that_is_away_may_come_back(server: WebServer, tmp_path: Path) -> None:
    server.failures = 1000
    error = refusal(at(server, "mlflow://digits/3", tmp_path))
    assert "the server cannot be reached: it answered 503" in error.message
    assert (error.reason, error.retryable) == (Reason.STORE_UNREACHABLE, True)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/1/m", "s3://bucket/1/m"),
        (f"sftp://me:{PASSWORD}@host/m", "sftp://host/m"),
        (f"mlflow-artifacts://elsewhere:5000/m?token={TOKEN}", "mlflow-artifacts://elsewhere:5000/m"),
        ("file:///mlruns/m", "file:///mlruns/m"),
        ("/mlruns/m", "/mlruns/m"),
    ],
)
def test_files_that_the_server_does_not_hand_out_are_told_with_their_place(
    server: WebServer, tmp_path: Path, uri: str, shown: str
) -> None:
    register(server, "digits", 6, FILES, uri)
    error = refusal(at(server, "mlflow://digits/6", tmp_path))
    assert f"its files are at {shown}, and not behind the artifact proxy" in error.message
    assert PASSWORD not in error.message
    assert TOKEN not in error.message


@pytest.mark.parametrize(
    "answer",
    [b"<html>", b"[]", b"[" * 100_000, b'{"artifact_uri": "mlflow-artifacts:/../x"}'],
    ids=["page", "list", "nested", "path"],
)
def test_an_answer_that_no_tracking_server_gives_is_told_as_such(
    server: WebServer, tmp_path: Path, answer: bytes
) -> None:
    server.files[f"{API}/model-versions/get-download-uri?name=digits&version=3"] = answer
    error = refusal(at(server, "mlflow://digits/3", tmp_path))
    assert "does not answer as an MLflow tracking server does: correct MLFLOW_TRACKING_URI" in error.message


@pytest.mark.parametrize("name", ["../../away", "/etc/passwd", "a//b", "..\\a", "", None])
def test_a_server_names_no_file_outside_of_the_model(server: WebServer, tmp_path: Path, name: str | None) -> None:
    told(server, f"{ARTIFACTS}?path=1/models/m-3", {"files": [{"path": name, "is_dir": False, "file_size": 1}]})
    assert "expected a relative path inside the model" in refusal(at(server, "mlflow://digits/3", tmp_path)).message


def test_folders_without_end_are_not_listed(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MOST_ENTRIES", 2)
    assert "has more than 2 files and folders" in refusal(at(server, "mlflow://digits/3", tmp_path)).message


def test_a_file_is_as_long_as_the_server_said(server: WebServer, tmp_path: Path) -> None:
    place = f"{ARTIFACTS}/1/models/m-3/model.onnx"
    server.files[place] = WEIGHTS + b"more"
    assert "sends more than 256000 bytes" in refusal(at(server, "mlflow://digits/3", tmp_path)).message
    server.files[place] = WEIGHTS[1:]
    assert refusal(at(server, "mlflow://digits/3", tmp_path)).retryable


def test_a_model_without_files_is_refused(server: WebServer, tmp_path: Path) -> None:
    told(server, f"{ARTIFACTS}?path=1/models/m-3", {})
    assert "has no files on the tracking server" in refusal(at(server, "mlflow://digits/3", tmp_path)).message


@pytest.mark.parametrize("address", ["", "databricks", "ftp://host", f"https://me:{PASSWORD}@host", "https://[host"])
def test_a_tracking_server_is_a_web_address_without_credentials(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(SourceError, match="expected MLFLOW_TRACKING_URI in the environment: https://HOST") as caught:
        locate("mlflow://digits/3", Mounts(), missing=SourceError)
    assert PASSWORD not in caught.value.message


@pytest.mark.parametrize(
    "uri", ["mlflow://", "mlflow://digits", "mlflow://digits/latest", "mlflow://digits@", "mlflow://a@b@c"]
)
def test_an_address_names_a_model_and_a_version(uri: str) -> None:
    with pytest.raises(SourceError, match="expected mlflow://MODEL/VERSION"):
        locate(uri, Mounts(), missing=SourceError)
