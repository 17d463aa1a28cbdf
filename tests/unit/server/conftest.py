"""A loaded model, and a service of it without a front."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.server.serving import publish
from tests.warm import warm

from fettle.server.model import ServedModel, load
from fettle.server.pace import Pace
from fettle.server.service import InferenceService
from fettle.server.settings import ServerSettings
from fettle.store.manifest import fetch_artifact
from fettle.store.uris import Mounts
from tools import serving


@pytest.fixture(scope="package", autouse=True)
def _warm() -> Iterator[None]:
    """Servers have their imports behind them. Workers of several processes start as in a pod, and so does what `run` runs."""
    with warm(serving):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """The look-up model."""
    root = tmp_path_factory.mktemp("model")
    sha256 = publish(root)
    mounts = Mounts({"store": root / "store"})
    fetch_artifact(f"pvc://store/artifacts/{sha256}", sha256, root / "model", mounts)
    loaded = load(root / "model", sha256, None, 8)
    yield loaded
    loaded.close()


@pytest.fixture
def service(model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InferenceService]:
    """Its bounds are small enough to be reached. Nothing is known of how long its model takes: each request has a run in a thread."""
    monkeypatch.setattr(model, "session", model.session)  # put back afterwards
    monkeypatch.setattr(model, "pace", Pace())
    monkeypatch.setattr(model.batcher, "items", 1)
    settings = ServerSettings(
        model="lookup",
        revision="r",
        folder=tmp_path,
        body_seconds=0.05,
        max_body_bytes=1000,
        max_bodies_bytes=1500,
        max_reading=8,
    )
    made = InferenceService(settings, model)
    yield made
    made.close()
