"""`fettle push` and `fettle pull` with an OCI registry: what comes back is what went in, and other clients can read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.servers.registry import FILEPATH, RAW, TITLE, RegistryServer, archive, digest_of
from tests.servers.retries import retry_soon
from tests.servers.web import serving
from tests.unit.cli.test_pull import artifact

from fettle.cli.main import main
from fettle.store.manifest import check_fetched
from fettle.store.store import Store
from fettle.store.uris import Mounts

pytest.importorskip("obstore")
LOGIN, SECRET = ("me", "correct horse battery"), "t0ken-of-the-service"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    retry_soon(monkeypatch)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with serving(RegistryServer(login=LOGIN, secret=SECRET)) as server:
        yield server


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "username").write_text(LOGIN[0])
    (folder / "password").write_text(LOGIN[1])
    return folder


@pytest.fixture
def stored(tmp_path: Path) -> str:
    """Digest of an artifact in ./store."""
    store = Store.open((tmp_path / "store").as_uri(), Mounts(allow_files=True))
    return artifact(store, tmp_path)


def run(*words: str, keys: Path | None = None) -> Result:
    return CliRunner().invoke(main, [*words, *(["--secret", str(keys)] if keys is not None else [])])


def manifest_at(registry: RegistryServer, name: str, tag: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(registry.files[f"/v2/{name}/manifests/{tag}"])
    return document


def test_an_artifact_comes_back_as_it_was(registry: RegistryServer, keys: Path, stored: str, tmp_path: Path) -> None:
    uri = f"oci://{registry.host}/models/digits"
    pushed = run("push", f"store/artifacts/{stored}", f"{uri}:v1", keys=keys)
    assert pushed.exit_code == 0, pushed.output
    address = pushed.output.splitlines()[-1]
    assert address == f"{uri}@{digest_of(registry.files['/v2/models/digits/manifests/v1'])}"
    for source, to in ((f"{uri}:v1", "by-tag"), (address, "by-digest")):
        pulled = run("pull", source, to, keys=keys)
        assert pulled.exit_code == 0, pulled.output
        assert f"artifact {stored[:12]}: int8 in onnxruntime" in pulled.output
        assert "all digests verified" in pulled.output
        check_fetched(tmp_path / to, stored)
    assert (tmp_path / "by-tag/reference.npz").is_file()


def test_a_pack_is_what_the_model_specification_describes(registry: RegistryServer, keys: Path, stored: str) -> None:
    assert run("push", f"store/artifacts/{stored}", f"oci://{registry.host}/models/digits:v1", keys=keys).exit_code == 0
    manifest = manifest_at(registry, "models/digits", "v1")
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    layers = {layer["annotations"][TITLE]: layer for layer in manifest["layers"]}
    assert {path: layer["mediaType"].removeprefix("application/vnd.cncf.model.") for path, layer in layers.items()} == {
        "manifest.json": "weight.config.v1.raw",
        "model/deep/weights": "weight.v1.raw",
        "model/model.onnx": "weight.v1.raw",
        "reference.npz": "dataset.v1.raw",
    }
    for path, layer in layers.items():
        content = registry.files[f"/v2/models/digits/blobs/{layer['digest']}"]
        assert (layer["annotations"][FILEPATH], layer["size"], layer["digest"]) == (
            path,
            len(content),
            digest_of(content),
        )
    described = manifest["config"]
    assert described["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert json.loads(registry.files[f"/v2/models/digits/blobs/{described['digest']}"]) == {
        "descriptor": {"name": "digits"},
        "config": {"format": "onnx"},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]},
    }
    assert manifest["annotations"] == {
        "dev.fettle.artifact": stored,
        "dev.fettle.runtime": "onnxruntime",
        "dev.fettle.recipe": "int8",
    }


def test_the_same_files_make_the_same_digest_and_are_sent_once(
    registry: RegistryServer, keys: Path, stored: str
) -> None:
    for tag in ("v1", "v2"):
        pushed = run("push", f"store/artifacts/{stored}", f"oci://{registry.host}/digits:{tag}", keys=keys)
        assert pushed.exit_code == 0, pushed.output
    assert registry.files["/v2/digits/manifests/v1"] == registry.files["/v2/digits/manifests/v2"]
    assert registry.uploads == 5, "four files and what describes them"


def test_any_folder_or_file_goes_there_and_back(registry: RegistryServer, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "net/deep").mkdir(parents=True)
    (tmp_path / "net/model.onnx").write_bytes(b"graph")
    (tmp_path / "net/manifest.json").write_text('{"of": "another tool"}')
    (tmp_path / "net/deep/README.md").write_text("# net")
    assert run("push", "net", f"oci://{registry.host}/net:v1", keys=keys).exit_code == 0
    assert run("push", "net/model.onnx", f"oci://{registry.host}/net:file", keys=keys).exit_code == 0
    pulled = run("pull", f"oci://{registry.host}/net:v1", "here", keys=keys)
    assert pulled.exit_code == 0, pulled.output
    files = {
        path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*") if path.is_file()
    }
    assert files == {"model.onnx", "manifest.json", "deep/README.md"}
    assert run("pull", f"oci://{registry.host}/net:v1/deep", "folder", keys=keys).exit_code == 0
    assert (tmp_path / "folder/README.md").read_text() == "# net"
    assert run("pull", f"oci://{registry.host}/net:file", keys=keys).exit_code == 0
    assert (tmp_path / "net/model.onnx").read_bytes() == b"graph"


def test_an_archive_of_another_tool_is_pulled_too(registry: RegistryServer, keys: Path, tmp_path: Path) -> None:
    registry.publish(
        "net", "v1", [("application/vnd.cncf.model.weight.v1.tar", {}, archive({"a/model.onnx": b"graph"}))]
    )
    assert run("pull", f"oci://{registry.host}/net:v1", "here", keys=keys).exit_code == 0
    assert (tmp_path / "here/a/model.onnx").read_bytes() == b"graph"


def test_an_upload_that_breaks_begins_again(registry: RegistryServer, keys: Path, stored: str) -> None:
    registry.lost_uploads = 2
    pushed = run("push", f"store/artifacts/{stored}", f"oci://{registry.host}/digits:v1", keys=keys)
    assert pushed.exit_code == 0, pushed.output
    assert registry.uploads == 7


def test_an_artifact_that_was_changed_is_not_pushed(
    registry: RegistryServer, keys: Path, stored: str, tmp_path: Path
) -> None:
    assert run("pull", f"store/artifacts/{stored}", "winner").exit_code == 0
    (tmp_path / "winner/model/model.onnx").write_bytes(b"other")
    refused = run("push", "winner", f"oci://{registry.host}/digits:v1", keys=keys)
    assert refused.exit_code == 1
    assert "model.onnx does not match the manifest" in refused.output
    assert not registry.requests


def test_an_artifact_whose_reference_was_changed_is_not_pushed(
    registry: RegistryServer, keys: Path, stored: str, tmp_path: Path
) -> None:
    assert run("pull", f"store/artifacts/{stored}", "winner").exit_code == 0
    (tmp_path / "winner/reference.npz").write_bytes(b"other answers")
    refused = run("push", "winner", f"oci://{registry.host}/models/digits:v1", keys=keys)
    assert (refused.exit_code, "does not match the manifest" in refused.output) == (1, True), refused.output


def test_a_secret_without_keys_is_no_secret(registry: RegistryServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"content")
    refused = run("push", "file", f"oci://{registry.host}/models/digits:v1", keys=tmp_path / "empty")
    assert (refused.exit_code, "is empty" in refused.output) == (1, True), refused.output
    assert not registry.files, "nothing is pushed by nobody"


def test_an_artifact_that_lies_about_itself_is_not_believed(
    registry: RegistryServer, keys: Path, stored: str, tmp_path: Path
) -> None:
    layers = [(RAW, {TITLE: "manifest.json"}, b"{}"), (RAW, {TITLE: "model/model.onnx"}, b"other")]
    registry.publish("digits", "v1", layers, annotations={"dev.fettle.artifact": stored})
    refused = run("pull", f"oci://{registry.host}/digits:v1", "winner", keys=keys)
    assert refused.exit_code == 1
    assert "the manifest was changed after it was published" in refused.output


def test_another_artifact_is_not_mixed_into_a_folder(
    registry: RegistryServer, keys: Path, stored: str, tmp_path: Path
) -> None:
    assert run("push", f"store/artifacts/{stored}", f"oci://{registry.host}/digits:v1", keys=keys).exit_code == 0
    (tmp_path / "winner").mkdir()
    (tmp_path / "winner/notes.txt").write_text("mine")
    refused = run("pull", f"oci://{registry.host}/digits:v1", "winner", keys=keys)
    assert refused.exit_code == 2
    assert "contains notes.txt: choose an empty or a new folder" in refused.output


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("push", "nothing", "oci://HOST/digits:v1"), 2, "nothing: no such file or folder"),
        (("push", "keys", f"oci://HOST/digits@sha256:{'0' * 64}"), 1, "the digest follows from what is pushed"),
        (("push", "keys", "oci://HOST/digits:v1/a"), 2, "expected oci://REGISTRY/REPOSITORY:TAG, without a path"),
        (("push", "keys", "oci://HOST/Digits"), 1, "expected oci://REGISTRY/REPOSITORY:TAG"),
        (("pull", "oci://HOST/digits:v1"), 1, "the registry has no such repository, tag or digest"),
    ],
)
def test_what_cannot_be_done_says_why(
    registry: RegistryServer, keys: Path, words: tuple[str, ...], status: int, told: str
) -> None:
    result = run(*(word.replace("HOST", registry.host) for word in words), keys=keys)
    assert result.exit_code == status, result.output
    assert told in " ".join(result.output.split())


def test_a_wrong_password_is_told_and_not_shown(registry: RegistryServer, keys: Path) -> None:
    (keys / "password").write_text("wrong-pass")
    for words in (("push", "keys"), ("pull",)):
        result = run(*words, f"oci://{registry.host}/digits:v1", keys=keys)
        assert result.exit_code == 1
        assert "the credentials in Secret keys were refused: correct password and username" in " ".join(
            result.output.split()
        )
        assert "wrong-pass" not in result.output


def test_a_registry_that_is_away_is_told(registry: RegistryServer, keys: Path) -> None:
    registry.failures = 1000
    result = run("push", "keys", f"oci://{registry.host}/digits:v1", keys=keys)
    assert result.exit_code == 1
    assert "the server cannot be reached: it answered 503" in " ".join(result.output.split())
