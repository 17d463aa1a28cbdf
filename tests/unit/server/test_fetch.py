"""What the init container refuses to bring into a pod, and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.runtimes.fake_cuda import FakeCuda
from tests.unit.server.serving import publish

from fettle.api.reasons import Reason
from fettle.errors import FettleError
from fettle.runtimes import cuda
from fettle.server.fetch import fetch
from fettle.server.settings import ServerSettings
from fettle.store.manifest import read_stored, write_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store that holds an artifact."""
    monkeypatch.setenv("FETTLE_MOUNTS", json.dumps({"store": str(tmp_path / "store")}))
    return tmp_path


def refused(root: Path, sha256: str) -> FettleError:
    settings = ServerSettings(
        artifact=f"pvc://store/artifacts/{sha256}", sha256=sha256, folder=root / "model", model="m"
    )
    with pytest.raises(FettleError) as caught:
        fetch(settings)
    return caught.value


def test_a_cpu_that_lacks_what_the_artifact_needs_is_named(root: Path) -> None:
    digest = publish(root)
    store = Store.open("pvc://store", Mounts({"store": root / "store"}))
    demanding = read_stored(store, digest).model_copy(update={"requires": ("an-instruction-of-2040",)})
    error = refused(root, write_artifact(store, demanding))
    assert error.reason == Reason.NODE_INCOMPATIBLE
    for words in ("this node's CPU", "lacks an-instruction-of-2040", "template.nodeSelector"):
        assert words in error.message


@pytest.mark.parametrize(
    ("requires", "here", "told"),
    [
        (("nvidia-sm89",), "sm89", ""),
        (("nvidia",), "sm75", ""),
        (("nvidia-sm89",), "sm86", "and GPU (NVIDIA Fake, sm86) lacks nvidia-sm89, which the artifact needs"),
        (("nvidia-sm89",), None, "this node has no NVIDIA GPU that the pod may use"),
        (("nvidia",), None, "this node has no NVIDIA GPU that the pod may use"),
    ],
    ids=["an engine's own GPU", "any GPU for what any runs", "an engine's on another", "an engine's on none", "no GPU"],
)
def test_a_gpu_that_the_artifact_cannot_use_ends_the_pod_before_it_loads(
    requires: tuple[str, ...], here: str | None, told: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect() -> FakeCuda:
        if here is None:
            raise cuda.no_device("no device is visible")
        return FakeCuda(sm=here)

    monkeypatch.setattr(cuda, "connect", connect)
    digest = publish(root)
    store = Store.open("pvc://store", Mounts({"store": root / "store"}))
    bound = write_artifact(store, read_stored(store, digest).model_copy(update={"requires": requires}))
    if told:
        error = refused(root, bound)
        assert error.reason == Reason.NODE_INCOMPATIBLE
        assert told in error.message
        return
    fetch(ServerSettings(artifact=f"pvc://store/artifacts/{bound}", sha256=bound, folder=root / "model", model="m"))


def test_an_artifact_that_nobody_published_is_not_found(root: Path) -> None:
    publish(root)
    error = refused(root, "0" * 64)
    assert error.reason == Reason.ARTIFACT_NOT_FOUND
    assert f"pvc://store/artifacts/{'0' * 64}" in error.message
