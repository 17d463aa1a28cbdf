"""Models of many kinds on the cluster, all at once: each to its end, and what is published fetched back and held against its reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bench import claims
from tests.data import models
from tools.demo import install, watch
from tools.demo.kube import Kube, condition, is_current

pytestmark = pytest.mark.timeout(600)
# So little that no Job waits for the core that another one asked for.
SMALL = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}}
FP32 = {"name": "fp32", "steps": [{"optimizeGraph": {}}]}
INT8 = {"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}


@dataclass(frozen=True)
class Kind:
    """A model, its evaluation items where it needs some, and the reason it ends with."""

    model: onnx.ModelProto
    expected: str = "Published"
    items: dict[str, np.ndarray[Any, Any]] | None = None
    external: bool = False


def kinds() -> dict[str, Kind]:
    """The kinds, by the names of their objects. Whole numbers are in test_examples.py."""
    random = np.random.default_rng(31)
    return {
        "texts": Kind(models.texts()),
        "external-data": Kind(models.two_inputs_two_outputs(), external=True),
        "custom-operator": Kind(models.custom_operator(), "UnsupportedOperator"),
        "ruined-by-int8": Kind(
            models.ruined_by_int8(), items={"x": random.standard_normal((200, 8)).astype(np.float32)}
        ),
    }


def manifest(name: str, kind: Kind) -> dict[str, Any]:
    """One candidate that cannot be wrong; a second, that is, for the model that int8 ruins."""
    spec: dict[str, Any] = {
        "source": {"uri": f"pvc://models/{name}/model.onnx"},
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime"], "threads": 1, "resources": SMALL}],
        "recipes": [FP32, *([INT8] if kind.items else [])],
        "search": {"parallelism": 1},
        "jobs": {"resources": SMALL},
    }
    if kind.items is not None:
        spec["data"] = {"evaluation": {"uri": f"pvc://models/{name}/items.npz"}}
        spec["constraints"] = {"accuracy": {"maxDrop": 0.1}}
    return {"apiVersion": "fettle.dev/v1alpha1", "kind": "OptimizedModel", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def ended(space: Kube, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every object once its Ready condition says how it ended."""
    return run_to_the_end(space, tmp_path_factory.mktemp("kinds"), 300)


def run_to_the_end(space: Kube, folder: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Push and apply every kind at once; the objects as they ended, fewer after `seconds`."""
    for name, kind in kinds().items():
        models.save(kind.model, folder / name / "model.onnx", external=kind.external)
        if kind.items is not None:
            np.savez(folder / name / "items.npz", **kind.items)  # type: ignore[arg-type]
    install.push(space, folder, "pvc://models")
    space.apply([manifest(name, kind) for name, kind in kinds().items()])
    found: dict[str, dict[str, Any]] = {}
    for elapsed in watch.polls(seconds, kube=space):
        for name in kinds().keys() - found.keys():
            model = space.get("om", name)
            reason = condition(model, "Ready").get("reason")
            if model is not None and is_current(model) and reason is not None and reason not in watch.GOING:
                found[name] = model
                print(f"{elapsed:5.0f} s  {name}: {reason}: {condition(model, 'Ready').get('message', '')}")
        if found.keys() == kinds().keys():
            break
    return found


@pytest.fixture(scope="module")
def store(ended: dict[str, dict[str, Any]], space: Kube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The namespace's store, copied onto this machine."""
    folder = tmp_path_factory.mktemp("store")
    install.pull(space, "pvc://fettle-store", folder)
    return folder


@pytest.mark.parametrize("name", kinds())
def test_each_kind_ends_with_its_reason(ended: dict[str, dict[str, Any]], name: str) -> None:
    assert name in ended, "did not end"
    ready = condition(ended[name], "Ready")
    expected = kinds()[name].expected
    assert (ready["reason"], ready["status"]) == (expected, "True" if expected == "Published" else "False"), ready


def test_an_unknown_operator_is_named(ended: dict[str, dict[str, Any]]) -> None:
    assert "SecretSauce (domain com.example)" in condition(ended["custom-operator"], "Ready")["message"]


def test_what_int8_ruins_is_not_published_in_int8(ended: dict[str, dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in ended["ruined-by-int8"]["status"]["candidates"]}
    int8 = [row for name, row in rows.items() if name.startswith("int8")]
    assert int8 and all(row["state"] == "Rejected" and row["reason"] for row in int8), json.dumps(rows)


@pytest.mark.parametrize("name", [name for name, kind in kinds().items() if kind.expected == "Published"])
def test_what_is_published_answers_as_its_reference_says(
    ended: dict[str, dict[str, Any]], store: Path, name: str
) -> None:
    artifact = ended[name]["status"]["artifacts"][0]
    assert claims.outputs(store, artifact["sha256"]) <= 1
