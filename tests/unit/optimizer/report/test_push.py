"""Winners that go to an OCI registry as well as to the store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.servers.registry import RegistryServer
from tests.servers.web import serving
from tests.unit.optimizer.report.run_of_digits import MACHINE, fill, publish_task

from fettle.api.reasons import Reason
from fettle.errors import StoreError
from fettle.optimizer import publish
from fettle.store import places
from fettle.store.manifest import MeasurementRecord, check_fetched, fetch_artifact, write_measurement
from fettle.store.store import Store
from fettle.store.uris import Mounts

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


def repository(registry: RegistryServer) -> str:
    return f"oci://{registry.host}/models/digits"


def task(registry: RegistryServer, store: Store) -> Any:
    return publish_task(store, publish={"uri": repository(registry), "secretName": "registry"})


def test_a_winner_is_in_the_registry_under_a_tag_of_its_own_and_what_is_there_is_not_sent_again(
    registry: RegistryServer, store: Store, tmp_path: Path
) -> None:
    digest = fill(store, tmp_path / "model")
    secret = keys(tmp_path / "keys", username=LOGIN[0], password=LOGIN[1])
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
    registry: RegistryServer, store: Store, tmp_path: Path
) -> None:
    digest = fill(store, tmp_path / "model")
    secret = keys(tmp_path / "keys", username=LOGIN[0], password=LOGIN[1])
    mounts = Mounts(secrets={repository(registry): secret})
    publish.run(task(registry, store), store, mounts)
    tagged = {path: content for path, content in registry.files.items() if "/manifests/cpu-" in path}
    write_measurement(store, digest, "again", MeasurementRecord(measured_on=MACHINE, row={}))
    publish.run(task(registry, store), store, mounts)
    after = {path: content for path, content in registry.files.items() if "/manifests/cpu-" in path}
    assert len(after) == 2 and after.items() >= tagged.items()


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
