"""Winners that go to an OCI registry as well as to the store."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.servers.registry import RegistryServer
from tests.servers.web import serving
from tests.unit.optimizer.report.run_of_digits import MACHINE, fill, publish_task
from tests.unit.server.certificates import Authority

from fettle.api.data import DataSpec
from fettle.api.optimizedmodel import PublishSpec
from fettle.api.reasons import Reason
from fettle.api.source import SourceSpec
from fettle.api.task import PrepareTask
from fettle.errors import SourceError, StoreError
from fettle.optimizer import publish
from fettle.optimizer.prepare import stage
from fettle.store import places
from fettle.store.manifest import MeasurementRecord, check_fetched, fetch_artifact, write_measurement
from fettle.store.registry import registry_at
from fettle.store.store import Store
from fettle.store.uris import Mounts, store_missing

pytest.importorskip("obstore")
LOGIN = ("me", "correct horse battery")
HASTE = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RegistryServer]:
    monkeypatch.setattr(places, "RETRY", {"max_retries": 1, "retry_timeout": timedelta(seconds=20), "backoff": HASTE})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    with serving(RegistryServer(login=LOGIN, secret="t0ken-of-the-service")) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open((tmp_path / "store").as_uri(), Mounts(allow_files=True))


def keys(folder: Path, **values: str) -> Path:
    folder.mkdir()
    for name, value in values.items():
        (folder / name).write_text(value)
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return keys(tmp_path / "keys", username=LOGIN[0], password=LOGIN[1])


def repository(registry: RegistryServer) -> str:
    return f"oci://{registry.host}/models/digits"


def task(registry: RegistryServer, store: Store) -> Any:
    return publish_task(store, publish={"uri": repository(registry), "secretName": "registry"})


def test_a_winner_is_in_the_registry_under_a_tag_of_its_own_and_what_is_there_is_not_sent_again(
    registry: RegistryServer, store: Store, secret: Path, tmp_path: Path
) -> None:
    digest = fill(store, tmp_path / "model")
    mounts = Mounts(secrets={repository(registry): secret})
    found = publish.run(task(registry, store), store, mounts)
    assert found.registry is not None
    address = found.registry["cpu"]
    assert address.startswith(f"{repository(registry)}@sha256:")
    assert f"/v2/models/digits/manifests/cpu-{address.partition('@sha256:')[2][:12]}" in registry.files
    fetch_artifact(address, digest, tmp_path / "pulled", Mounts(secrets={address: secret}))
    check_fetched(tmp_path / "pulled", digest)
    assert address in store.read_bytes("reports/vision/digits/3.html").decode()
    sent = registry.uploads
    assert publish.run(task(registry, store), store, mounts) == found
    assert registry.uploads == sent


def test_no_tag_moves_where_a_winner_was_measured_again_and_its_pack_is_another(
    registry: RegistryServer, store: Store, secret: Path, tmp_path: Path
) -> None:
    digest = fill(store, tmp_path / "model")
    mounts = Mounts(secrets={repository(registry): secret})
    publish.run(task(registry, store), store, mounts)
    tagged = {path: content for path, content in registry.files.items() if "/manifests/cpu-" in path}
    write_measurement(store, digest, "again", MeasurementRecord(measured_on=MACHINE, row={}))
    publish.run(task(registry, store), store, mounts)
    after = {path: content for path, content in registry.files.items() if "/manifests/cpu-" in path}
    assert len(after) == 2 and after.items() >= tagged.items()


def test_a_blob_that_a_registry_keeps_elsewhere_is_neither_fetched_nor_sent_again(
    registry: RegistryServer, store: Store, secret: Path, tmp_path: Path
) -> None:
    fill(store, tmp_path / "model")
    mounts = Mounts(secrets={repository(registry): secret})
    publish.run(task(registry, store), store, mounts)
    sent = registry.uploads
    blobs = [path for path in registry.files if "/blobs/" in path]
    with serving() as elsewhere:
        for number, path in enumerate(blobs):
            elsewhere.files[f"/{number}"] = registry.files.pop(path)
            registry.redirects[path] = f"{elsewhere.url}/{number}"
        publish.run(task(registry, store), store, mounts)
        assert {request.method for request in elsewhere.requests} == {"HEAD"}
    assert registry.uploads == sent


@pytest.mark.parametrize(
    ("secret", "words"),
    [({}, "the Secret registry does not exist"), ({"username": "me", "password": "wrong"}, "were refused")],
)
def test_a_registry_that_refuses_the_winner_keeps_it_from_being_called_published(
    registry: RegistryServer, store: Store, tmp_path: Path, secret: dict[str, str], words: str
) -> None:
    fill(store, tmp_path / "model")
    mounts = Mounts(secrets={repository(registry): keys(tmp_path / "registry", **secret)})
    with pytest.raises(StoreError) as caught:
        publish.run(task(registry, store), store, mounts)
    assert (caught.value.reason, words in caught.value.message) == (Reason.FORBIDDEN, True), caught.value.message
    assert not store.exists("reports/vision/digits/3.html")


UPLOADS = "/v2/models/digits/blobs/uploads/"


def prepare(registry: RegistryServer, store: Store, secret: Path) -> None:
    """Prepare a source that is in a claim which is not there: what is wrong with the registry is told before."""
    to = repository(registry)
    asked = PrepareTask(
        store=store.uri,
        source=SourceSpec(uri="pvc://models/digits.onnx"),
        data=DataSpec(),
        builds=(),
        publish=PublishSpec(uri=to, secret_name="registry"),
    )
    stage.run(asked, store, Mounts(secrets={to: secret}))


@pytest.mark.parametrize(
    ("secret", "status", "reason", "words"),
    [
        ({}, None, Reason.FORBIDDEN, "the Secret registry does not exist"),
        ({"username": "me", "password": "wrong"}, None, Reason.FORBIDDEN, "were refused: correct password and username"),
        ({"username": LOGIN[0], "password": LOGIN[1]}, 403, Reason.FORBIDDEN, "were refused"),
        ({"username": LOGIN[0], "password": LOGIN[1]}, 404, Reason.STORE_NOT_FOUND, "has no such repository, and makes none"),
        ({"username": LOGIN[0], "password": LOGIN[1]}, 200, Reason.STORE_NOT_FOUND, "does not answer as an OCI registry does"),
    ],
    ids=["no Secret", "a wrong password", "may only pull", "no repository", "no registry"],
)  # fmt: skip
def test_a_registry_that_would_refuse_the_winners_is_told_before_anything_is_done(
    registry: RegistryServer,
    store: Store,
    tmp_path: Path,
    secret: dict[str, str],
    status: int | None,
    reason: Reason,
    words: str,
) -> None:
    if status is not None:
        registry.statuses[UPLOADS] = (status, b"")
    with pytest.raises(StoreError) as caught:
        prepare(registry, store, keys(tmp_path / "registry", **secret))
    assert (caught.value.reason, words in caught.value.message) == (reason, True), caught.value.message


REDIRECTED = "redirects to an address that is not followed"
NONE = "does not answer as an OCI registry does"


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (307, {"Location": "https://registry.example/v2/"}, REDIRECTED),
        (302, {"Location": "/login"}, REDIRECTED),
        (301, {"Location": "ftp://registry.example/"}, REDIRECTED),
        (405, {}, "can only be read, as a mirror can: name one that takes uploads"),
        (202, {"Location": "file:///etc/hosts"}, NONE),
        (202, {"Location": "http://[::1/upload"}, NONE),
        (401, {"WWW-Authenticate": 'Bearer realm="http://[::1/token"'}, "expected an address with https://"),
    ],
    ids=["moved", "a login page", "moved out of the web", "a mirror", "a local file", "no address", "no token service"],
)
def test_a_registry_that_answers_oddly_ends_the_run_at_once_with_the_cause(
    registry: RegistryServer, store: Store, secret: Path, status: int, headers: dict[str, str], words: str
) -> None:
    registry.statuses[UPLOADS] = (status, b"<html>elsewhere</html>", headers)
    with pytest.raises(StoreError) as caught:
        prepare(registry, store, secret)
    error = caught.value
    assert (words in error.message, error.retryable, len(registry.requests)) == (True, False, 1), error.message


def test_a_registry_that_takes_winners_keeps_nothing_of_the_question(
    registry: RegistryServer, store: Store, secret: Path
) -> None:
    with pytest.raises(SourceError, match=r"pvc://models/digits\.onnx"):
        prepare(registry, store, secret)
    assert (registry.uploads, registry.cancelled, registry.files) == (1, 1, {})


def test_a_registry_that_is_away_for_a_moment_ends_no_run(registry: RegistryServer, store: Store, secret: Path) -> None:
    registry.failures = 1
    with pytest.raises(SourceError):
        prepare(registry, store, secret)
    registry.statuses[UPLOADS] = (503, b"")
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        prepare(registry, store, secret)
    assert (caught.value.reason, caught.value.retryable) == (Reason.STORE_UNREACHABLE, True), "the task is tried again"


def test_a_registry_that_cannot_cancel_an_upload_is_as_good_as_any(
    registry: RegistryServer, store: Store, secret: Path
) -> None:
    registry.statuses[f"{UPLOADS}1?state=a"] = (405, b"")
    with pytest.raises(SourceError):
        prepare(registry, store, secret)
    assert (registry.uploads, registry.cancelled) == (1, 0)


def test_no_upload_goes_to_an_address_without_tls_that_a_registry_with_tls_names(store: Store, tmp_path: Path) -> None:
    Authority().issue(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls" / "tls.crt", tmp_path / "tls" / "tls.key")
    trusted = keys(tmp_path / "door", PLAIN_HTTP="false", **{"ca.crt": (tmp_path / "tls" / "ca.crt").read_text()})
    with serving(RegistryServer()) as plain, serving(RegistryServer(tls=context)) as registry:
        registry.statuses[UPLOADS] = (202, b"", {"Location": f"{plain.url}{UPLOADS}1?state=secret"})
        with pytest.raises(StoreError, match="without TLS, so nothing is sent") as caught:
            prepare(registry, store, trusted)
        assert plain.requests == []
    assert "state" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://registry.example:443/v2/m/blobs/uploads/1", True),
        ("https://REGISTRY.example/v2/m/blobs/uploads/1", True),
        ("https://registry.example:444/v2/m/blobs/uploads/1", False),
        ("http://registry.example/v2/m/blobs/uploads/1", False),
        ("https://registry.example.net/v2/m/blobs/uploads/1", False),
    ],
)
def test_a_registry_may_write_out_its_port(url: str, own: bool) -> None:
    registry, _ = registry_at("oci://registry.example/m", None, store_missing)
    assert registry._is_home(url) == own


def test_an_upload_is_cancelled_in_one_try(registry: RegistryServer, store: Store, secret: Path) -> None:
    cancel = f"{UPLOADS}1?state=a"
    registry.statuses[cancel] = (503, b"")
    with pytest.raises(SourceError):
        prepare(registry, store, secret)
    assert [request.path for request in registry.requests].count(cancel) == 1


def test_a_push_to_a_repository_that_the_registry_does_not_make_says_so(
    registry: RegistryServer, store: Store, secret: Path, tmp_path: Path
) -> None:
    fill(store, tmp_path / "model")
    registry.statuses[UPLOADS] = (404, b"")
    with pytest.raises(StoreError, match="has no such repository, and makes none: create it first"):
        publish.run(task(registry, store), store, Mounts(secrets={repository(registry): secret}))
