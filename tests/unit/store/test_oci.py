"""Artifacts in an OCI registry: their files arrive as their digests say, whoever made them; and a registry sees no more of a Secret than it must."""

from __future__ import annotations

import gzip
import json
import logging
import os
import ssl
import tarfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from tests.data import models
from tests.servers.registry import FILE, FILEPATH, RAW, TITLE, Layer, RegistryServer, archive, digest_of
from tests.servers.web import WebServer, serving
from tests.unit.server.certificates import Authority
from tests.unit.store.locations import read, refusal, secret

from fettle.api.reasons import Reason
from fettle.api.source import SourceSpec
from fettle.errors import DataError, SourceError
from fettle.optimizer.prepare.source import fetch
from fettle.store import files, layers, oci
from fettle.store.credentials import CleanFormatter, hidden_values
from fettle.store.uris import Location, Mounts, locate

pytest.importorskip("obstore")
pytestmark = pytest.mark.usefixtures("small_parts")
LOGIN = ("me", "correct horse battery")
KEYS = {"username": LOGIN[0], "password": LOGIN[1]}
SECRET = "t0ken-of-the-service"
WEIGHTS = bytes(range(256)) * 1000
PACK: list[Layer] = [
    (RAW, {FILEPATH: "model.onnx"}, WEIGHTS),
    (RAW, {TITLE: "data/0.npz", FILEPATH: "data/0.npz"}, b"items"),
]


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with serving(RegistryServer()) as server:
        server.publish("team/digits", "v1", PACK)
        yield server


def docker_config(host: str, login: tuple[str, str] = LOGIN) -> dict[str, str]:
    """A Secret of type kubernetes.io/dockerconfigjson."""
    auths = {host: {"auth": b64encode(":".join(login).encode()).decode()}}
    return {".dockerconfigjson": json.dumps({"auths": auths})}


def at(registry: RegistryServer, artifact: str, folder: Path | None = None) -> Location:
    uri = f"oci://{registry.host}/{artifact}"
    return locate(uri, Mounts(secrets={uri: folder}), missing=SourceError)


# ------------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("version", [":v1", "", "@DIGEST", ":v0@DIGEST"])
def test_an_artifact_is_known_by_its_tag_or_its_digest(registry: RegistryServer, tmp_path: Path, version: str) -> None:
    digest = registry.publish("team/digits", "latest", PACK)
    location = at(registry, f"team/digits{version.replace('DIGEST', digest)}")
    assert location.filesystem.find("") == ["data/0.npz", "model.onnx"]
    assert location.filesystem.ls("", detail=False) == ["data", "model.onnx"]
    assert [location.filesystem.isdir(path) for path in ("", "data", "model.onnx")] == [True, True, False]
    location.filesystem.get_file("model.onnx", str(tmp_path / "here"))
    assert (tmp_path / "here").read_bytes() == WEIGHTS
    assert location.filesystem.info("model.onnx")["size"] == len(WEIGHTS)


def test_an_address_may_name_a_file_of_the_artifact(registry: RegistryServer) -> None:
    location = at(registry, "team/digits:v1/data/0.npz")
    assert location.filesystem.isfile(location.path)
    assert read(location) == b"items"
    assert not at(registry, "team/digits:v1/data/1.npz").filesystem.exists("data/1.npz")
    with pytest.raises(FileNotFoundError, match=r"team/digits:v1/data/1\.npz"):
        read(location, "data/1.npz")


def test_a_path_is_decoded_as_in_every_other_address(registry: RegistryServer) -> None:
    registry.publish("team/digits", "v2", [(RAW, {FILEPATH: "my model #1.onnx"}, WEIGHTS)])
    location = at(registry, "team/digits:v2/my%20model%20%231.onnx")
    assert location.filesystem.cat_file(location.path) == WEIGHTS


def compressed(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


FOLDER = {"./onnx/model.onnx": b"graph", "onnx/deep/weights": b"weights"}
ARCHIVES = {
    "a folder that oras pushed": (FILE + "+gzip", {TITLE: "onnx", "io.deis.oras.content.unpack": "true"}, "gz"),
    "a folder in a ModelPack": ("application/vnd.cncf.model.weight.v1.tar", {FILEPATH: "onnx"}, ""),
    "a ModelPack with gzip": ("application/vnd.cncf.model.weight.v1.tar+gzip", {}, "gz"),
    "a ModelPack with zstd": ("application/vnd.cncf.model.weight.v1.tar+zstd", {}, "zstd"),
    "an image of files": ("application/vnd.docker.image.rootfs.diff.tar.gzip", {}, "gz"),
}


@pytest.mark.parametrize(("kind", "annotations", "compression"), ARCHIVES.values(), ids=list(ARCHIVES))
def test_a_layer_may_be_an_archive_of_files(
    registry: RegistryServer, tmp_path: Path, kind: str, annotations: dict[str, str], compression: str
) -> None:
    content = archive(FOLDER)
    content = {"gz": gzip.compress, "zstd": compressed, "": bytes}[compression](content)
    registry.publish("packed", "v1", [(kind, annotations, content)])
    location = at(registry, "packed:v1")
    assert location.filesystem.find("onnx") == ["onnx/deep/weights", "onnx/model.onnx"]
    location.filesystem.get_file("onnx/model.onnx", str(tmp_path / "here"))
    assert (tmp_path / "here").read_bytes() == b"graph"
    assert read(location, "onnx/deep/weights") == b"weights"


def test_a_file_that_oras_pushed_is_no_archive_whatever_its_media_type(registry: RegistryServer) -> None:
    registry.publish("plain", "v1", [(FILE, {TITLE: "model.onnx"}, b"graph")])
    assert read(at(registry, "plain:v1"), "model.onnx") == b"graph"


def test_a_later_layer_counts_and_one_without_a_name_is_left(registry: RegistryServer) -> None:
    layers: list[Layer] = [
        ("application/vnd.cncf.model.weight.v1.tar", {}, archive({"model.onnx": b"old", "labels.txt": b"a"})),
        (RAW, {TITLE: "model.onnx"}, b"new"),
        ("application/vnd.oci.empty.v1+json", {}, b"{}"),
    ]
    registry.publish("layers", "v1", layers)
    files = at(registry, "layers:v1").filesystem
    assert files.find("") == ["labels.txt", "model.onnx"]
    assert files.cat_file("model.onnx") == b"new"


def test_a_model_is_prepared_from_an_artifact_and_has_the_digest_of_its_file(
    registry: RegistryServer, tmp_path: Path
) -> None:
    content = models.dynamic_batch().SerializeToString()
    registry.publish("digits", "v1", [(RAW, {TITLE: "model.onnx"}, content), (RAW, {TITLE: "README.md"}, b"# digits")])
    source = fetch(SourceSpec(uri=f"oci://{registry.host}/digits:v1"), Mounts(), tmp_path)
    assert f"sha256:{source.sha256}" == digest_of(content)
    assert source.files == ("model.onnx",)


def test_nothing_is_asked_of_the_registry_before_a_file_is(registry: RegistryServer) -> None:
    location = at(registry, "team/digits:v1/data/0.npz")
    assert not registry.requests
    read(location)
    assert registry.requests


def test_a_tag_means_the_same_for_all_addresses_of_a_run(registry: RegistryServer) -> None:
    mounts, uri = Mounts(), f"oci://{registry.host}/team/digits:v1"
    assert read(locate(uri, mounts, missing=SourceError), "data/0.npz") == b"items"
    registry.publish("team/digits", "v1", [(RAW, {TITLE: "data/0.npz"}, b"moved")])
    assert read(locate(f"{uri}/data/0.npz", mounts, missing=DataError)) == b"items"
    assert read(locate(f"{uri}/data/0.npz", Mounts(), missing=DataError)) == b"moved"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_large_blob_survives_a_connection_that_breaks(registry: RegistryServer, ranges: bool) -> None:
    location = at(registry, "team/digits:v1")
    registry.ranges = ranges
    assert location.filesystem.exists("model.onnx")
    registry.breaks, registry.failures = (2, 1) if ranges else (0, 2)
    assert read(location, "model.onnx") == WEIGHTS
    assert (registry.breaks, registry.failures) == (0, 0)


def test_a_manifest_survives_a_connection_that_breaks(registry: RegistryServer) -> None:
    registry.breaks, registry.failures = 1, 1
    assert read(at(registry, "team/digits:v1"), "data/0.npz") == b"items"
    assert (registry.breaks, registry.failures) == (0, 0)


# --------------------------------------------------------------------------------------------------------------- who asks


def test_a_password_is_shown_to_the_token_service_alone(registry: RegistryServer, tmp_path: Path) -> None:
    registry.login, registry.secret = LOGIN, SECRET
    with serving(WebServer({"/blob": WEIGHTS})) as elsewhere:
        registry.redirects[f"/v2/team/digits/blobs/{digest_of(WEIGHTS)}"] = f"{elsewhere.url}/blob"
        assert read(at(registry, "team/digits:v1", secret(tmp_path / "door", KEYS)), "model.onnx") == WEIGHTS
        assert {request.authorization for request in elsewhere.requests} == {None}
    shown = {request.authorization for request in registry.requests if not request.path.startswith("/token")}
    assert shown == {None, f"Bearer {SECRET}-pull"}
    assert registry.token_requests == ["service=registry&scope=repository:team/digits:pull"]


@pytest.mark.parametrize("given", [KEYS, "HOST", "https://HOST/v2/", "HOST/team"])
def test_a_registry_may_want_the_password_itself(
    registry: RegistryServer, tmp_path: Path, given: dict[str, str] | str
) -> None:
    registry.login = LOGIN
    values = docker_config(given.replace("HOST", registry.host)) if isinstance(given, str) else given
    location = at(registry, "team/digits:v1", secret(tmp_path / "door", values))
    assert read(location, "model.onnx") == WEIGHTS
    assert registry.requests[0].authorization is None, "nothing is shown before it is asked for"


def test_the_login_of_this_machine_counts_where_there_is_no_secret(
    registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.login = LOGIN
    (tmp_path / "config.json").write_text(docker_config(registry.host)[".dockerconfigjson"])
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert read(at(registry, "team/digits:v1"), "data/0.npz") == b"items"
    (tmp_path / "config.json").write_text('{"credsStore": "desktop"}')
    assert refusal(at(registry, "team/digits:v1")).reason == Reason.FORBIDDEN


def test_a_token_that_is_too_old_is_renewed(registry: RegistryServer, tmp_path: Path) -> None:
    registry.login, registry.secret = LOGIN, SECRET
    location = at(registry, "team/digits:v1", secret(tmp_path / "door", KEYS))
    assert location.filesystem.exists("model.onnx")
    registry.secret = "another-t0ken"
    assert read(location, "model.onnx") == WEIGHTS
    assert len(registry.token_requests) == 2


CLOSED = [
    (None, "access was denied without credentials: name a Secret with them in secretName (401)"),
    ({"username": "me", "password": "wrong-pass"}, "in Secret door were refused: correct password and username (401)"),
    (docker_config("other.example"), ".dockerconfigjson in Secret door has credentials for other.example, but not for"),
    ({".dockerconfigjson": "[]"}, "Secret door has a value that cannot be used: .dockerconfigjson"),
    ({".dockerconfigjson": '{"auths": {"HOST": null}}'}, "a value that cannot be used: .dockerconfigjson"),
    ({}, "the Secret door does not exist in this namespace, or is empty"),
]


@pytest.mark.parametrize(("given", "words"), CLOSED)
@pytest.mark.parametrize("token", [SECRET, None], ids=["token", "password"])
def test_a_closed_door_says_what_to_do(
    registry: RegistryServer, tmp_path: Path, token: str | None, given: dict[str, str] | None, words: str
) -> None:
    registry.login, registry.secret = LOGIN, token
    with pytest.raises(SourceError) as caught:
        read(at(registry, "team/digits:v1", None if given is None else secret(tmp_path / "door", given)), "model.onnx")
    assert words in caught.value.message
    assert "wrong-pass" not in caught.value.message
    assert caught.value.reason in (Reason.FORBIDDEN, Reason.INVALID_SPEC)


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "ftp://127.0.0.1/token", ""])
def test_a_token_is_asked_of_a_web_server_alone(registry: RegistryServer, tmp_path: Path, realm: str) -> None:
    registry.login, registry.secret, registry.realm = LOGIN, SECRET, realm or " "
    error = refusal(at(registry, "team/digits:v1", secret(tmp_path / "door", KEYS)))
    assert "expected an address with https://" in error.message


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"token": 1}', b'{"token": "a\\nb"}', b"[" * 100_000])
def test_a_token_service_that_is_none_is_told_as_such(registry: RegistryServer, tmp_path: Path, answer: bytes) -> None:
    registry.secret = SECRET
    with serving(WebServer({"/?service=registry&scope=repository:team/digits:pull": answer})) as service:
        registry.realm = f"{service.url}/"
        error = refusal(at(registry, "team/digits:v1"))
    assert "does not answer as the token service of a registry does" in error.message


def test_a_manifest_that_lies_elsewhere_is_fetched_without_the_secret(registry: RegistryServer, tmp_path: Path) -> None:
    registry.login = LOGIN
    manifest = registry.files["/v2/team/digits/manifests/v1"]
    with serving(WebServer({"/m": manifest})) as elsewhere:
        registry.redirects["/v2/team/digits/manifests/v1"] = f"{elsewhere.url}/m"
        assert at(registry, "team/digits:v1", secret(tmp_path / "door", KEYS)).filesystem.exists("model.onnx")
        assert {request.authorization for request in elsewhere.requests} == {None}


@pytest.mark.parametrize("login", [LOGIN, None], ids=["closed", "open"])
def test_another_host_cannot_ask_for_the_password(
    registry: RegistryServer, tmp_path: Path, login: tuple[str, str] | None
) -> None:
    registry.login = login
    with serving(RegistryServer(login=("other", "login"), secret="other")) as elsewhere:
        registry.redirects["/v2/team/digits/manifests/v1"] = f"{elsewhere.url}/v2/team/digits/manifests/v1"
        error = refusal(at(registry, "team/digits:v1", secret(tmp_path / "door", KEYS)))
        assert {request.authorization for request in elsewhere.requests} == {None}
        assert elsewhere.token_requests == []
    assert error.reason == Reason.FORBIDDEN


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/m", "data:,x", "http://[x"])
def test_a_manifest_is_not_followed_out_of_the_web(registry: RegistryServer, target: str) -> None:
    registry.redirects["/v2/team/digits/manifests/v1"] = target
    error = refusal(at(registry, "team/digits:v1"))
    assert error.reason in (Reason.SOURCE_NOT_FOUND, Reason.STORE_UNREACHABLE)


def test_a_ca_of_ones_own_is_trusted_where_the_secret_has_it(tmp_path: Path) -> None:
    Authority().issue(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "tls.crt", tmp_path / "tls" / "tls.key")
    certificate = (tmp_path / "tls" / "ca.crt").read_text()
    server = RegistryServer(tls=context, login=LOGIN, secret=SECRET)
    with serving(server) as registry:
        registry.publish("digits", "v1", PACK)
        uri = f"oci://localhost.localdomain:{registry.port}/digits:v1"
        assert locate(uri, Mounts()).filesystem._place.root.startswith("https://"), "TLS is the rule"
        # 127.0.0.1 is asked without TLS by default, as by other clients; a Secret may say otherwise.
        given = {**KEYS, "ca.crt": certificate, "PLAIN_HTTP": "false"}
        assert read(at(registry, "digits:v1", secret(tmp_path / "door", given)), "model.onnx") == WEIGHTS
        error = refusal(at(registry, "digits:v1", secret(tmp_path / "closed", {**KEYS, "PLAIN_HTTP": "false"})))
        broken = secret(tmp_path / "broken", {"ca.crt": "no certificate", "PLAIN_HTTP": "false"})
        with pytest.raises(SourceError, match=r"a value that cannot be used: ca\.crt"):
            at(registry, "digits:v1", broken)
    assert "its certificate is not trusted; put the CA's certificate under the key ca.crt" in error.message


def test_a_proxy_counts_as_the_secret_says(registry: RegistryServer, tmp_path: Path) -> None:
    uri = "oci://registry.invalid/team/digits:v1"
    reached = {f"http://registry.invalid{path}": content for path, content in registry.files.items()}
    with serving(WebServer(reached)) as proxy:
        given = secret(tmp_path / "proxied", {"PLAIN_HTTP": "true", "HTTPS_PROXY": proxy.url})
        assert read(locate(uri, Mounts(secrets={uri: given}), missing=SourceError), "model.onnx") == WEIGHTS
    direct = secret(tmp_path / "direct", {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"})
    assert read(at(registry, "team/digits:v1", direct), "model.onnx") == WEIGHTS


def test_no_secret_is_left_in_a_log_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = secret(tmp_path / "door", docker_config("registry.example"))
    for name, value in Mounts(secrets={"oci://registry.example/m": folder}).to_environment().items():
        monkeypatch.setenv(name, value)
    assert LOGIN[1] in hidden_values(os.environ)
    pair = b64encode(":".join(LOGIN).encode()).decode()
    record = logging.LogRecord("x", logging.INFO, "x", 1, f"sent {LOGIN[1]} and {pair}", None, None)
    assert CleanFormatter().format(record) == "sent *** and ***"


# ------------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("artifact", ["team/digits:v2", "team/nothing:v1", f"team/digits@sha256:{'0' * 64}"])
def test_what_is_not_there_is_told_as_such(registry: RegistryServer, artifact: str) -> None:
    error = refusal(at(registry, artifact))
    assert f"{artifact}: the registry has no such repository, tag or digest" in error.message
    assert (error.reason, error.retryable) == (Reason.SOURCE_NOT_FOUND, False)


def test_a_registry_that_is_away_may_come_back(registry: RegistryServer) -> None:
    registry.failures = 1000
    error = refusal(at(registry, "team/digits:v1"))
    assert "the server cannot be reached: it answered 503" in error.message
    assert (error.reason, error.retryable) == (Reason.STORE_UNREACHABLE, True)


@pytest.mark.parametrize(
    ("host", "words"), [("127.0.0.1:1", "the connection was refused"), ("nowhere.invalid", "its name is not known")]
)
def test_a_registry_that_is_not_there_says_why(host: str, words: str) -> None:
    error = refusal(locate(f"oci://{host}/digits:v1", Mounts(), missing=SourceError))
    assert words in error.message
    assert error.retryable


def test_a_server_without_tls_is_named(registry: RegistryServer, tmp_path: Path) -> None:
    error = refusal(at(registry, "team/digits:v1", secret(tmp_path / "door", {"PLAIN_HTTP": "false"})))
    assert "it does not speak TLS" in error.message


@pytest.mark.parametrize(
    "document",
    [
        b"<html>",
        b"[" * 100_000,
        b'{"layers": [{}]}',
        b'{"layers": [{"mediaType": "x", "digest": "md5:0", "size": 1}]}',
        b'{"layers": [{"mediaType": "x", "digest": "sha256:%s", "size": -1}]}' % (b"0" * 64),
    ],
    ids=["page", "nested", "no layer", "digest", "size"],
)
def test_a_server_that_is_no_registry_is_told_as_such(registry: RegistryServer, document: bytes) -> None:
    registry.keep("odd", "v1", document)
    error = refusal(at(registry, "odd:v1"))
    assert "does not answer as an OCI registry does" in error.message


def test_a_manifest_is_held_against_its_digest(registry: RegistryServer) -> None:
    path = f"/v2/team/digits/manifests/{digest_of(registry.files['/v2/team/digits/manifests/v1'])}"
    registry.files[path] += b" "
    error = refusal(at(registry, f"team/digits@{path.rpartition('/')[2]}"))
    assert "expected a manifest with sha256:" in error.message
    assert (error.reason, error.retryable) == (Reason.DIGEST_MISMATCH, False)


LONGER = WEIGHTS + b"more"


@pytest.mark.parametrize(
    ("content", "ranges", "words"),
    [
        (WEIGHTS[::-1], True, "it was changed or damaged on the way"),
        (WEIGHTS[::-1], False, "it was changed or damaged on the way"),
        (WEIGHTS[1:], False, "it was changed or damaged on the way"),
        (LONGER, False, "the server sends more than 256000 bytes"),
    ],
    ids=["other", "other, whole", "shorter", "longer"],
)
def test_a_blob_is_held_against_its_digest(registry: RegistryServer, content: bytes, ranges: bool, words: str) -> None:
    registry.files[f"/v2/team/digits/blobs/{digest_of(WEIGHTS)}"] = content
    registry.ranges = ranges
    assert words in refusal(at(registry, "team/digits:v1")).message


def test_a_blob_that_the_registry_lost_is_named(registry: RegistryServer) -> None:
    del registry.files[f"/v2/team/digits/blobs/{digest_of(WEIGHTS)}"]
    error = refusal(at(registry, "team/digits:v1"))
    assert f"the registry has no blob {digest_of(WEIGHTS)}" in error.message


def test_an_index_of_one_manifest_is_followed_and_one_of_several_is_not(registry: RegistryServer) -> None:
    digest = digest_of(registry.files["/v2/team/digits/manifests/v1"])
    one = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1}
    registry.keep("team/digits", "one", json.dumps({"manifests": [one]}).encode())
    registry.keep("team/digits", "two", json.dumps({"manifests": [one, one]}).encode())
    assert read(at(registry, "team/digits:one"), "model.onnx") == WEIGHTS
    assert "is an index of 2 manifests: name one of them" in refusal(at(registry, "team/digits:two")).message


OUTSIDE = ["../model.onnx", "/etc/passwd", "a/../../b", "", "..", "a\\b", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_title_names_no_file_outside_of_the_artifact(registry: RegistryServer, name: str) -> None:
    registry.publish("bad", "v1", [(RAW, {TITLE: name}, b"bad")])
    error = refusal(at(registry, "bad:v1"))
    assert "a relative path that stays inside the artifact" in error.message or (
        not name and "holds no files" in error.message
    )


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("model.onnx")
    entry.type, entry.linkname = kind, target
    return entry


BAD = {
    "outside": (archive({"../model.onnx": b""}), "which lies outside of it"),
    "absolute": (archive({"/etc/passwd": b""}), "which lies outside of it"),
    "symbolic link": (archive({}, link(tarfile.SYMTYPE, "/etc/passwd")), "which is a link or no ordinary file"),
    "hard link": (archive({}, link(tarfile.LNKTYPE, "/etc/passwd")), "which is a link or no ordinary file"),
    "device": (archive({}, link(tarfile.CHRTYPE, "")), "which is a link or no ordinary file"),
    "cut off": (archive({"model.onnx": bytes(100_000)})[:50_000], "it ends in the middle of 'model.onnx'"),
    "cut off in gzip": (gzip.compress(archive({"model.onnx": os.urandom(9000)}))[:-100], "damaged, or no tar archive"),
    "no archive": (b"graph" * 1000, "damaged, or no tar archive"),
    "a thousandfold size": (gzip.compress(archive({"model.onnx": bytes(3 << 20)})), "it unpacks from"),
    "a thousandfold size in zstd": (compressed(archive({"model.onnx": bytes(3 << 20)})), "it unpacks from"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=list(BAD))
def test_an_archive_is_looked_into_before_anything_is_taken_out(
    registry: RegistryServer, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    monkeypatch.setattr(files, "SMALL", 1 << 20)
    registry.publish("bad", "v1", [("application/vnd.cncf.model.weight.v1.tar", {}, content)])
    error = refusal(at(registry, "bad:v1"))
    assert words in error.message
    assert error.reason == Reason.SOURCE_NOT_FOUND


def test_an_artifact_without_files_and_one_that_contradicts_itself_are_refused(registry: RegistryServer) -> None:
    registry.publish("empty", "v1", [("application/vnd.oci.empty.v1+json", {}, b"{}")])
    registry.publish("both", "v1", [(RAW, {TITLE: "a"}, b"1"), (RAW, {TITLE: "a/b"}, b"2")])
    assert "holds no files" in refusal(at(registry, "empty:v1")).message
    assert "'a/b', and also a file where its folder should be" in refusal(at(registry, "both:v1")).message


ARCHIVE = "application/vnd.cncf.model.weight.v1.tar"
TOO_MUCH: list[tuple[str, int, list[Layer], str]] = [
    ("MOST_LAYERS", 1, PACK, "the manifest lists 2 layers, expected at most 1"),
    ("MOST_BYTES", 256_000, PACK, "the manifest lists 256005 bytes, expected at most 256000"),
    (
        "MOST_ARCHIVES",
        1,
        [(ARCHIVE, {}, archive({name: b""})) for name in "ab"],
        "the manifest lists 2 archives, expected",
    ),
]


@pytest.mark.parametrize(("bound", "most", "listed", "words"), TOO_MUCH, ids=[case[0] for case in TOO_MUCH])
def test_what_a_manifest_lists_is_bounded_before_anything_is_fetched(
    registry: RegistryServer, monkeypatch: pytest.MonkeyPatch, bound: str, most: int, listed: list[Layer], words: str
) -> None:
    monkeypatch.setattr(oci, bound, most)
    registry.publish("large", "v1", listed)
    error = refusal(at(registry, "large:v1"))
    assert words in error.message
    assert error.reason == Reason.SOURCE_NOT_FOUND
    assert not [request for request in registry.requests if "/blobs/" in request.path]


def test_the_files_of_all_archives_are_bounded_together(
    registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "MOST_FILES", 3)
    both: list[Layer] = [(ARCHIVE, {}, archive({f"{name}{number}": b"" for number in range(2)})) for name in "ab"]
    registry.publish("many", "v1", both)
    assert "holds more than 3 files" in refusal(at(registry, "many:v1")).message


def test_a_manifest_without_end_is_not_read(registry: RegistryServer) -> None:
    registry.keep("endless", "v1", b" " * (5 << 20))
    assert "the server sends more than 4194304 bytes" in refusal(at(registry, "endless:v1")).message


@pytest.mark.parametrize(
    "uri",
    ["oci://", "oci://host", "oci://host/Model", "oci://host/m/model.ONNX", "oci://host/m:", "oci://host/m@sha256:0"],
)
def test_an_address_names_a_registry_and_a_repository(uri: str) -> None:
    with pytest.raises(SourceError, match="expected oci://REGISTRY/REPOSITORY:TAG"):
        locate(uri, Mounts(), missing=SourceError)
