"""What needs PyTorch's images: a TorchScript archive served by torchscript, and a recipe that trains. They are large, so only on request:

make test-torch
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cluster.conftest import Kubectl, install_crds
from tests.cluster.operator_process import eventually
from tests.cluster.operator_process import operator as operator_process
from tools.cluster.target import Target
from tools.demo import install, watch
from tools.demo.kube import Kube
from tools.demo.scenes import post
from tools.demo.traffic import Load, bodies, foreign_failures

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("FETTLE_TORCH_IMAGES") != "1", reason="FETTLE_TORCH_IMAGES=1 asks for it"),
]
NAME = "torch"


@pytest.fixture(scope="module", autouse=True)
def _crds(target: Target) -> None:
    """The operator of these tests is a process of their own, so no chart brings them."""
    install_crds(Kubectl(target.kubeconfig))


@asynccontextmanager
async def operated(target: Target, files: Path) -> AsyncIterator[tuple[Kube, dict[str, str]]]:
    """A namespace with `files` in the claim `models`, an operator for it, and the images by name. What a failed test left stays."""
    kube, refs = Kube(target, f"test-torch-{uuid.uuid4().hex[:6]}"), install.images(target)
    kube.ensure_namespace()
    settings = {f"{name.replace('-', '_')}_image": ref for name, ref in refs.items() if name != "operator"}
    async with operator_process(str(target.kubeconfig), kube.namespace, **settings):
        await asyncio.to_thread(install.push, kube, files, "pvc://models")
        yield kube, refs
    kube.kubectl("delete", "namespace", kube.namespace, "--wait=false")


def images_by_stage(kube: Kube) -> set[tuple[str, str]]:
    """The stage and the image of every pod."""
    pods = json.loads(kube.kubectl("get", "pods", "-o", "json"))["items"]
    return {
        (pod["metadata"]["labels"].get("fettle.dev/stage", "serve"), pod["spec"]["containers"][0]["image"])
        for pod in pods
    }


def objects() -> list[dict[str, object]]:
    inputs = [{"name": "image", "dtype": "FP32", "shape": ["N", 3, 12, 12]}]
    api = {"apiVersion": "fettle.dev/v1alpha1", "metadata": {"name": NAME}}
    model = {
        "source": {"uri": "pvc://models/model.pt", "inputs": inputs},
        "targets": [{"name": "cpu", "runtimes": ["torchscript"], "resources": {"limits": {"cpu": 1, "memory": "4Gi"}}}],
    }
    deployment = {"model": {"ref": {"name": NAME, "target": "cpu"}}, "replicas": 1}
    return [{**api, "kind": "OptimizedModel", "spec": model}, {**api, "kind": "ModelDeployment", "spec": deployment}]


async def test_a_script_is_optimized_in_jobs_and_served_by_torchscript(target: Target, tmp_path: Path) -> None:
    from tests.data import torch_models

    example = torch_models.EXAMPLES["convolutional"]
    torch_models.save_script(example, tmp_path / "model.pt")
    async with operated(target, tmp_path) as (kube, refs):
        kube.apply(objects())
        found = await asyncio.to_thread(watch.optimized, kube, NAME, 500, print)
        assert found["status"]["source"]["format"] == "TorchScript"
        assert found["status"]["artifacts"][0]["runtime"] == "torchscript"
        await asyncio.to_thread(watch.serving, kube, NAME, 200, print)
        used = dict(images_by_stage(kube))
        assert used["measure"] == refs["optimizer-torch"]
        assert used["publish"] == refs["optimizer"]
        assert used["serve"] == refs["server-torch"]

        image = example.inputs["image"][:1]
        tensor = {"name": "image", "shape": list(image.shape), "datatype": "FP32", "data": image.reshape(-1).tolist()}
        (answer,) = post(kube, json.dumps({"inputs": [tensor]}), NAME)["outputs"]
        module = torch_models.module_of(example)
        wanted = module(torch_models.tensors(example)[0][:1]).detach().numpy()
        np.testing.assert_allclose(np.reshape(answer["data"], answer["shape"]), wanted, rtol=1e-4, atol=1e-5)


def save_learned(folder: Path) -> None:
    """The model of `trained`, and its items."""
    from tests.data import trainable

    trainable.save(trainable.learned(), folder / "model.pt2")
    for name, items in trainable.digits().items():
        np.savez(folder / f"{name}.npz", **items)  # type: ignore[arg-type]


def trained() -> dict[str, Any]:
    """One candidate, with half of its channels, taught by the original."""
    small = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": 1, "memory": "4Gi"}}
    data = {name: {"uri": f"pvc://models/{name}.npz"} for name in ("evaluation", "training")}
    spec = {
        "source": {"uri": "pvc://models/model.pt2"},
        "data": {**data, "evaluation": {**data["evaluation"], "labelKey": "labels", "metric": "Accuracy"}},
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime"], "threads": 1, "resources": small}],
        "recipes": [{"name": "lean", "steps": [{"prune": {"ratio": 0.5}}], "train": {"epochs": 12}}],
        "constraints": {"accuracy": {"maxDrop": 0.1}},
        "jobs": {"resources": small},
    }
    return {"apiVersion": "fettle.dev/v1alpha1", "kind": "OptimizedModel", "metadata": {"name": "lean"}, "spec": spec}


async def test_a_recipe_that_trains_does_so_in_a_job_and_what_it_made_is_measured(
    target: Target, tmp_path: Path
) -> None:
    save_learned(tmp_path)
    async with operated(target, tmp_path) as (kube, refs):
        kube.apply([trained()])
        found = await asyncio.to_thread(watch.optimized, kube, "lean", 600, print)
        (row,) = (row for row in found["status"]["candidates"] if row["name"] == "lean-onnxruntime")
        assert row["state"] in ("Selected", "Measured"), row
        assert row["accuracyDrop"]["high"] <= 0.1
        assert ("build", refs["optimizer-torch"]) in images_by_stage(kube)


async def test_two_pods_train_together_and_one_that_is_lost_costs_an_epoch_and_not_the_training(
    target: Target, tmp_path: Path
) -> None:
    save_learned(tmp_path)
    together = trained()
    # For longer than the operator takes until it reads the log.
    together["spec"]["recipes"][0]["train"] = {"epochs": 120, "nodes": 2}
    async with operated(target, tmp_path) as (kube, _):
        kube.apply([together])

        def workers() -> list[dict[str, Any]]:
            pods = json.loads(kube.kubectl("get", "pods", "-l", "fettle.dev/training", "-o", "json"))["items"]
            return [
                pod for pod in pods if pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] == "1"
            ]

        async def trains() -> bool:
            rows = ((kube.get("om", "lean") or {}).get("status") or {}).get("candidates", ())
            return any(row.get("training", {}).get("epoch", 0) >= 1 for row in rows)

        await eventually(trains, 400)
        (lost,) = workers()
        kube.kubectl("delete", "pod", lost["metadata"]["name"], "--grace-period=0", "--force")
        found = await asyncio.to_thread(watch.optimized, kube, "lean", 600, print)
        (row,) = (row for row in found["status"]["candidates"] if row["name"] == "lean-onnxruntime")
        assert row["state"] in ("Selected", "Measured"), row
        assert row["accuracyDrop"]["high"] <= 0.1
        jobs = json.loads(kube.kubectl("get", "jobs", "-l", "fettle.dev/stage=build", "-o", "json"))["items"]
        assert {job["metadata"]["labels"]["fettle.dev/attempt"] for job in jobs} == {"0", "1"}
        logs = [
            kube.kubectl("logs", pod["metadata"]["name"]) for pod in workers() if pod["status"]["phase"] == "Succeeded"
        ]
        assert any("resuming from checkpoint" in log for log in logs)


def served(model: str) -> dict[str, Any]:
    """Two pods, of which one is a canary's first."""
    small = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": 1, "memory": "512Mi"}}
    spec = {
        "model": {"ref": {"name": model, "target": "cpu"}},
        "replicas": 2,
        "server": {"resources": small},
        "rollout": {
            "steps": [{"weight": 50}, {"pause": {"seconds": 10}}, {"weight": 100}],
            "analysis": {"intervalSeconds": 5, "minRequests": 20, "agreement": {"min": 0.8}},
        },
    }
    return {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "lean"},
        "spec": spec,
    }


async def test_three_techniques_chained_in_one_manifest_end_as_a_canary_that_serves(
    target: Target, tmp_path: Path
) -> None:
    save_learned(tmp_path)
    plain, chain = trained(), trained()
    plain["metadata"]["name"] = "plain"
    plain["spec"]["recipes"] = [{"name": "plain", "steps": [{"optimizeGraph": {}}]}]
    chain["spec"]["recipes"][0]["steps"] = [
        {"prune": {"ratio": 0.5}},
        {"distill": {"temperature": 2}},
        {"quantize": {"mode": "Static"}},
    ]
    requests, labels = bodies(tmp_path / "evaluation.npz", 40)
    async with operated(target, tmp_path) as (kube, refs):
        kube.apply([plain, served("plain")])
        await asyncio.to_thread(watch.optimized, kube, "plain", 300, print)
        await asyncio.to_thread(watch.serving, kube, "lean", 200, print)
        kube.apply([chain])
        found = await asyncio.to_thread(watch.optimized, kube, "lean", 600, print)
        (row,) = (row for row in found["status"]["candidates"] if row["name"] == "lean-onnxruntime")
        assert row["accuracyDrop"]["high"] <= 0.1
        assert found["status"]["artifacts"][0]["candidate"] == "lean-onnxruntime"
        selector = "fettle.dev/stage=build,fettle.dev/optimizedmodel=lean"
        jobs = json.loads(kube.kubectl("get", "jobs", "-l", selector, "-o", "json"))["items"]
        built_in = [job["spec"]["template"]["spec"]["containers"][0]["image"] for job in jobs]
        assert sorted(built_in) == sorted([refs["optimizer-torch"], refs["optimizer-torch"], refs["optimizer"]])

        load = Load(kube, "lean")
        await asyncio.to_thread(load.start, requests, rate=20, clients=4, seconds=600)
        kube.patch("mdep", "lean", {"spec": {"model": {"ref": {"name": "lean"}}}})
        rollout = await asyncio.to_thread(watch.rolled_out, kube, "lean", 300, print)
        assert rollout.outcome == "Promoted", rollout.reason
        assert foreign_failures(await asyncio.to_thread(load.stop), set()) == 0
        answers = [post(kube, body, "lean")["outputs"][0]["data"] for body in requests]
        right = sum(answer.index(max(answer)) == label for answer, label in zip(answers, labels, strict=True))
        assert right >= 34
