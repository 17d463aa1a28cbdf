"""The store of a cluster that is full for a minute: what serves goes on, what is optimized waits and ends as if nothing had been."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tools.cluster.paths import NODE
from tools.demo import install, watch
from tools.demo.kube import Kube, condition
from tools.demo.traffic import Load, bodies, foreign_failures

from fettle.api.base import API_VERSION
from fettle.store.manifest import check_fetched

pytestmark = pytest.mark.timeout(600)
STORE = "small"
MINUTE = 60
# So little that the one-core Jobs of the file that runs beside this one still fit on a node of two cores.
SMALL = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}}


def model(name: str, source: str) -> dict[str, Any]:
    """An OptimizedModel with one candidate that cannot be wrong, its store the small claim."""
    spec = {
        "source": {"uri": f"pvc://models/digits/{source}/model.onnx"},
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime"], "threads": 1, "resources": SMALL}],
        "recipes": [{"name": "fp32", "steps": [{"optimizeGraph": {}}]}],
        "store": {"uri": f"pvc://{STORE}"},
        "jobs": {"resources": SMALL},
    }
    return {"apiVersion": API_VERSION, "kind": "OptimizedModel", "metadata": {"name": name}, "spec": spec}


def deployment(name: str) -> dict[str, Any]:
    """One pod of what that OptimizedModel published."""
    server = {"resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}}
    spec = {"model": {"ref": {"name": name, "target": "cpu"}}, "replicas": 1, "server": server}
    return {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": name}, "spec": spec}


def volume(kube: Kube, folder: Path) -> list[dict[str, Any]]:
    """A volume at `folder` of the node, bound to the claim `small`."""
    name = f"{kube.namespace}-{STORE}"
    size, modes = {"storage": "64Mi"}, ["ReadWriteOnce"]
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}
    pv = {
        "capacity": size,
        "accessModes": modes,
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "by-hand",
        "local": {"path": str(folder)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [here]}},
    }
    pvc = {"accessModes": modes, "storageClassName": "by-hand", "volumeName": name, "resources": {"requests": size}}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": pv},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": STORE}, "spec": pvc},
    ]


@pytest.fixture(scope="module")
def disk(kube: Kube) -> Iterator[Path]:
    """A file system of 64 MiB that is the claim `small`."""
    if kube.target.paths is None:
        pytest.skip("needs the embedded cluster, whose node is this machine")
    folder = kube.target.paths.volumes / f"disk-{uuid.uuid4().hex[:6]}"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], check=True)
    kube.apply(volume(kube, folder))
    yield folder
    kube.kubectl("delete", "mdep,om", "--all", "--wait=true")
    kube.kubectl("delete", "pods,jobs,pvc", "--all", "--wait=true", "--timeout=90s")
    kube.kubectl("delete", "pv", f"{kube.namespace}-{STORE}", "--wait=true")
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def fill(disk: Path) -> Path:
    """A file that leaves no room."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    return filler


def test_a_store_that_is_full_for_a_minute_loses_nothing(kube: Kube, disk: Path, tmp_path: Path) -> None:
    kube.apply([model("before", "first"), deployment("before")])
    watch.optimized(kube, "before", 300, print)
    watch.serving(kube, "before", 300, print)
    requests, _ = bodies(install.DIGITS / "evaluation.npz", 10)
    load = Load(kube, "before", "load-store")
    load.start(requests, rate=10, clients=2, seconds=400)

    filler = fill(disk)
    kube.apply([model("meanwhile", "better")])
    kube.patch("mdep", "before", {"spec": {"replicas": 2}})
    said = set()
    for _ in watch.polls(MINUTE):
        if ready := condition(kube.get("om", "meanwhile"), "Ready"):  # none before the operator has seen it
            said.add(f"{ready['reason']}: {ready['message']}")
    assert any("StoreFull" in line and "enlarge its claim" in line for line in said), said
    assert not any("None" in line for line in said), said
    two = watch.serving(kube, "before", 5, print)["status"]["stable"]
    assert two["ready"] == 2, "a pod that starts meanwhile reads the full store as ever"

    filler.unlink()
    watch.optimized(kube, "meanwhile", 200, print)
    totals = load.stop()
    assert totals["sent"] > 300
    assert foreign_failures(totals, set()) == 0, totals
    for name in ("before", "meanwhile"):
        found = kube.get("om", name) or {}
        install.pull(kube, f"om/{name}", tmp_path / name)
        assert check_fetched(tmp_path / name, found["status"]["artifacts"][0]["sha256"])
    assert not [path for path in disk.rglob("*") if path.name.endswith(".partial")]
