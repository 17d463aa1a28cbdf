"""A model that takes fewer requests than the one that serves: its pods do not start, until a person insists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.serving import SIGNATURE, lookup_model
from tools.demo import install, watch
from tools.demo.kube import Kube, condition
from tools.serving import open_store, publish, saved

from fettle.api.base import API_VERSION
from fettle.api.signature import Signature, Tensor

pytestmark = pytest.mark.timeout(600)
NAME = "lookup"
ONE_ITEM = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(1, 4)),),
    outputs=(Tensor(name="y", dtype="FP32", shape=(1, 4)),),
)


def artifact(folder: Path, name: str, signature: Signature) -> dict[str, Any]:
    """An artifact of the look-up model in the store below `folder`, as `spec.model` names it once the store is in its claim."""
    sha256 = publish(open_store(folder / "store"), saved(lookup_model(), folder / name), signature)
    return {"uri": f"pvc://fettle-store/artifacts/{sha256}", "sha256": sha256, "runtime": "onnxruntime"}


def test_a_model_of_one_item_gets_no_traffic_behind_one_of_any_batch_until_a_person_insists(
    space: Kube, tmp_path: Path
) -> None:
    any_batch, one_item = artifact(tmp_path, "any", SIGNATURE), artifact(tmp_path, "one", ONE_ITEM)
    for part in ("artifacts", "blobs"):
        install.push(space, tmp_path / "store" / part, f"pvc://fettle-store/{part}/")
    server = {"resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}}
    spec = {"model": any_batch, "replicas": 1, "server": server}
    space.apply([{"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": NAME}, "spec": spec}])
    watch.serving(space, NAME, 200, print)

    space.patch("mdep", NAME, {"spec": {"model": one_item}})
    for _ in watch.polls(200):
        found = space.get("mdep", NAME) or {}
        degraded = condition(found, "Degraded")
        if degraded["status"] == "True":
            break
    assert degraded["reason"] == "SignatureIncompatible"
    assert "input x is FP32 [1, 4] instead of FP32 [-1, 4]" in degraded["message"]
    assert condition(found, "Ready")["status"] == "True"
    refused = found["status"]["failedRevision"]
    (row,) = (row for row in found["status"]["revisions"] if row["revision"] == refused)
    assert "entered" not in row, "no pod of it was ready"

    space.kubectl("annotate", "mdep", NAME, f"fettle.dev/retry={refused}/1")
    for _ in watch.polls(200):
        stable = (space.get("mdep", NAME) or {})["status"]["stable"]
        if stable["revision"] == refused:
            break
    assert stable["revision"] == refused
    watch.serving(space, NAME, 60, print)
