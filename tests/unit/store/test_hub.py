"""Repositories of a model hub, as a server with the API of the Hugging Face Hub gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers.web import WebServer, serving
from tests.unit.store.locations import read, secret

from fettle.api.reasons import Reason
from fettle.errors import SourceError
from fettle.store.uris import Location, Mounts, locate

pytest.importorskip("obstore")
COMMIT, TOKEN = "5f0c6b8a" * 5, "hf_s3cr3tOfMine"
FILES = {
    "README.md": b"# digits",
    "onnx/model.onnx": b"the model" * 1000,
    "onnx/model ü.onnx_data": b"weights",
    "data/0.npz": b"",
}


def publish(server: WebServer, name: str, revision: str, files: dict[str, bytes], kind: str = "models") -> None:
    """A revision of a repository, and its files."""
    described = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
    server.files[f"/api/{kind}/{name}/revision/{revision}"] = json.dumps(described).encode()
    place = f"/{'datasets/' * (kind == 'datasets')}{name}/resolve/{COMMIT}"
    server.files |= {f"{place}/{path}": content for path, content in files.items()}


@pytest.fixture
def hub() -> Iterator[WebServer]:
    with serving(WebServer()) as server:
        publish(server, "org/digits", "main", FILES)
        yield server


def at(hub: WebServer, uri: str, folder: Path, token: str | None = None) -> Location:
    given = secret(folder / "hub", {"HF_ENDPOINT": hub.url, **({"HF_TOKEN": token} if token else {})})
    return locate(uri, Mounts(secrets={uri: given}), missing=SourceError)


@pytest.mark.parametrize("path", FILES)
def test_a_file_of_a_repository_is_read(hub: WebServer, tmp_path: Path, path: str) -> None:
    location = at(hub, "hf://org/digits", tmp_path).child(path)
    assert location.filesystem.isfile(location.path)
    assert read(location) == FILES[path]


def test_folders_are_those_that_files_lie_in(hub: WebServer, tmp_path: Path) -> None:
    files = at(hub, "hf://org/digits", tmp_path).filesystem
    assert files.ls("", detail=False) == ["README.md", "data", "onnx"]
    assert files.ls("onnx", detail=False) == ["onnx/model ü.onnx_data", "onnx/model.onnx"]
    assert files.find("onnx") == ["onnx/model ü.onnx_data", "onnx/model.onnx"]
    assert [files.isdir(path) for path in ("", "onnx", "onn", "README.md")] == [True, True, False, False]
    assert [files.exists(path) for path in ("onnx/model.onnx", "onnx/other.onnx")] == [True, False]


def test_nothing_is_asked_of_the_hub_before_a_file_is(hub: WebServer, tmp_path: Path) -> None:
    location = at(hub, "hf://org/digits/README.md", tmp_path)
    assert not hub.requests
    read(location)
    assert hub.requests


def test_all_files_are_those_of_one_commit_although_the_branch_moves_on(hub: WebServer, tmp_path: Path) -> None:
    first = at(hub, "hf://org/digits@main/README.md", tmp_path)
    assert read(first) == b"# digits"
    del hub.files["/api/models/org/digits/revision/main"]
    assert read(first.parent.child("data/0.npz")) == b""


@pytest.mark.parametrize(
    ("uri", "kind", "revision"),
    [
        ("hf://org/other@v1.0/m.onnx", "models", "v1.0"),
        ("hf://org/other@refs%2Fpr%2F1/m.onnx", "models", "refs/pr/1"),
        ("hf://datasets/org/other@2f0a/m.onnx", "datasets", "2f0a"),
    ],
)
def test_a_revision_is_a_branch_a_tag_or_a_commit(
    hub: WebServer, tmp_path: Path, uri: str, kind: str, revision: str
) -> None:
    publish(hub, "org/other", revision, {"m.onnx": b"other"}, kind)
    assert read(at(hub, uri, tmp_path)) == b"other"


def test_a_large_file_comes_from_where_the_hub_sends_to_and_the_token_stays_with_the_hub(
    hub: WebServer, tmp_path: Path
) -> None:
    with serving(WebServer({"/blob": b"large" * 1000})) as elsewhere:
        hub.token = TOKEN
        hub.redirects[f"/org/digits/resolve/{COMMIT}/onnx/model.onnx"] = f"{elsewhere.url}/blob"
        assert read(at(hub, "hf://org/digits/onnx/model.onnx", tmp_path, TOKEN)) == b"large" * 1000
        assert {request.authorization for request in elsewhere.requests} == {None}
        assert {request.authorization for request in hub.requests} == {f"Bearer {TOKEN}"}


def test_the_environment_says_which_hub_where_there_is_no_secret(
    hub: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    assert read(locate("hf://org/digits/README.md", Mounts())) == b"# digits"


def test_a_repository_that_is_not_there_is_told_as_such(hub: WebServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="hf://org/gone@main: there is no such repository or revision") as caught:
        at(hub, "hf://org/gone/m.onnx", tmp_path).filesystem.exists("m.onnx")
    assert caught.value.reason == Reason.SOURCE_NOT_FOUND


@pytest.mark.parametrize(
    ("token", "advice"), [(None, "correct HF_TOKEN in Secret hub"), ("hf_old", "correct HF_TOKEN in Secret hub")]
)
def test_a_refusal_says_that_the_repository_may_be_private(
    hub: WebServer, tmp_path: Path, token: str | None, advice: str
) -> None:
    hub.token = TOKEN
    with pytest.raises(SourceError, match=f"private or gated.*{advice}") as caught:
        read(at(hub, "hf://org/digits/README.md", tmp_path, token))
    assert caught.value.reason == Reason.FORBIDDEN
    assert "hf_old" not in caught.value.message


def test_a_server_that_is_no_hub_is_told_as_such(hub: WebServer, tmp_path: Path) -> None:
    hub.files["/api/models/org/digits/revision/main"] = b"<html>"
    with pytest.raises(SourceError, match="does not answer as a Hugging Face Hub does: correct HF_ENDPOINT"):
        read(at(hub, "hf://org/digits/README.md", tmp_path))


@pytest.mark.parametrize(
    "answer",
    [
        "[" * 100_000,
        "[]",
        '{"sha": null, "siblings": []}',
        '{"sha": "..", "siblings": []}',
        '{"sha": "5f", "siblings": null}',
    ],
    ids=["nested", "list", "no commit", "a path", "no files"],
)
def test_an_answer_that_no_hub_gives_is_told_as_such(hub: WebServer, tmp_path: Path, answer: str) -> None:
    hub.files["/api/models/org/digits/revision/main"] = answer.encode()
    with pytest.raises(SourceError, match="does not answer as a Hugging Face Hub does"):
        read(at(hub, "hf://org/digits/README.md", tmp_path))


def test_a_listing_without_end_is_not_read(hub: WebServer, tmp_path: Path) -> None:
    hub.files["/api/models/org/digits/revision/main"] = b" " * (33 << 20)
    with pytest.raises(SourceError, match="the server sends more than 33554432 bytes"):
        read(at(hub, "hf://org/digits/README.md", tmp_path))


@pytest.mark.parametrize(
    "name", ["model-/../../../away.safetensors", "/etc/passwd", "a//b", "..\\a", "a\0b", "./a", ""]
)
def test_a_hub_names_no_file_outside_of_the_repository(hub: WebServer, tmp_path: Path, name: str) -> None:
    publish(hub, "org/digits", "main", {**FILES, name: b"bad"})
    with pytest.raises(SourceError, match="paths that stay inside the repository"):
        at(hub, "hf://org/digits", tmp_path).filesystem.find("")


def test_an_endpoint_that_is_empty_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert locate("hf://org/digits/m.onnx", Mounts(), missing=SourceError).path == "m.onnx"


@pytest.mark.parametrize(
    "endpoint",
    ["https://[hub", "hub.example", "ftp://hub.example", "https://me:secret@hub.example", "https://hub.example?a=1"],
)
def test_an_endpoint_is_a_web_address_without_credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SourceError, match="expected HF_ENDPOINT in the environment: https://HOST") as caught:
        locate("hf://org/digits", Mounts(), missing=SourceError)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "uri", ["hf://", "hf://digits", "hf://datasets/digits/", "hf://org/digits@", "hf://org/digits/../x"]
)
def test_an_address_names_an_organization_and_a_repository(uri: str) -> None:
    with pytest.raises(SourceError):
        locate(uri, Mounts(), missing=SourceError)
