"""Targets with GPUs on a real API server with a real scheduler. The nodes are objects only: no GPU is at hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from tests.cluster.fake_node import STAGE, FakeNode, fake_node
from tests.cluster.operator_process import OperatorProcess, eventually, operator
from tests.cluster.test_optimizedmodel import Look, optimized_model
from tests.cluster.test_rollout_bad_input import VOLUME

from fettle.api.reasons import Reason
from fettle.cluster.client import Client
from fettle.cluster.kinds import CLAIM, NODE, OPTIMIZED_MODEL, POD, Object
from fettle.controller.context import utc_now
from fettle.errors import ConflictError
from fettle.plan.run.state import MAJOR, MEMORY, MINOR, PRODUCT

GPU, MIG = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
TAINT = "fettle.dev/gpu-test"  # so that no other test's pods land on these nodes
TOLERATION = {"key": TAINT, "operator": "Exists"}
DATA = {"evaluation": {"uri": "pvc://models/evaluation.npz"}}


class Kubelet(FakeNode):
    """Plays all pods, but leaves those that measure to the scheduler."""

    async def take(self, pod: Object) -> None:
        """Bind a pod to this node, unless it asks for a GPU."""
        limits = pod["spec"]["containers"][0]["resources"].get("limits") or {}
        if not any(name.startswith("nvidia.com/") for name in limits):
            await super().take(pod)


@asynccontextmanager
async def gpu_node(
    client: Client, name: str, architecture: str, product: str, resource: str = GPU
) -> AsyncIterator[str]:
    """A Node with GPUs, as NVIDIA's device plugin and GPU feature discovery describe it."""
    labels = {MAJOR: architecture[2:-1], MINOR: architecture[-1], PRODUCT: product, MEMORY: "23034", TAINT: name}
    taints = [{"key": TAINT, "value": name, "effect": "NoSchedule"}]
    await client.create(NODE, {"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}})
    try:
        await _ready(client, name, resource)
        yield name
    finally:
        await client.delete(NODE, None, name)


async def _ready(client: Client, name: str, resource: str) -> None:
    now = utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now, "lastTransitionTime": now}
    amounts = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "256Gi", "pods": "100", resource: "2"}

    async def written() -> bool:
        made = await client.get(NODE, None, name)
        assert made is not None
        with suppress(ConflictError):
            status = {**made.get("status", {}), "capacity": amounts, "allocatable": amounts, "conditions": [ready]}
            await client.put_status(NODE, made, status)
            return True
        return False

    async def schedulable() -> bool:
        made = await client.get(NODE, None, name) or {"spec": {}}
        return all(taint["key"] == TAINT for taint in made["spec"].get("taints") or ())

    await eventually(written)
    await eventually(schedulable)  # the node controller takes its own taints off


@asynccontextmanager
async def shared_claims(client: Client, namespace: str, *names: str) -> AsyncIterator[None]:
    """Claims with volumes that every node reaches: those of the cluster's own class are on one node, where the scheduler then keeps all pods."""
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volumes = {name: f"{namespace}-{name}" for name in names}
    for name, volume in volumes.items():
        disk = {"capacity": {"storage": "1Mi"}, "nfs": {"server": "127.0.0.1", "path": "/nowhere"}}
        owner = {"claimRef": {"namespace": namespace, "name": name}}
        await client.create(VOLUME, {"metadata": {"name": volume}, "spec": {**common, **disk, **owner}})
        asked = {"volumeName": volume, "resources": {"requests": {"storage": "1Mi"}}}
        await client.create(CLAIM, {"metadata": {"namespace": namespace, "name": name}, "spec": {**common, **asked}})
    try:
        yield
    finally:
        for volume in volumes.values():
            await client.delete(VOLUME, None, volume)


@pytest.fixture
async def running(kubeconfig: str, client: Client, namespace: str) -> AsyncIterator[OperatorProcess]:
    async with shared_claims(client, namespace, "models", "fettle-store"), operator(
        kubeconfig, namespace, optimizer_image="localhost/none:1", optimizer_gpu_image="localhost/none-gpu:1",
        unschedulable_seconds=1, store_size="1Mi",
    ) as process:  # fmt: skip
        await eventually(process.leads)
        yield process


@pytest.fixture
def look(client: Client, namespace: str) -> Look:
    return Look(client, namespace)


async def submit(client: Client, namespace: str, **target: Any) -> Object:
    """With one candidate: seven of the default plan would be built one after the other."""
    targets = [{"name": "gpu", "tolerations": [TOLERATION], **target}]
    recipes = [{"name": "fp32", "steps": [{"optimizeGraph": {}}]}]
    return await client.create(OPTIMIZED_MODEL, optimized_model(namespace, data=DATA, targets=targets, recipes=recipes))


async def test_a_gpu_that_no_node_offers_ends_in_that_reason_before_any_job(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await submit(client, namespace, resources={"limits": {"nvidia.com/mig-7g.test": 1}})
    ready = await look.ready_says("Unschedulable")
    assert ready["reason"] == Reason.UNSCHEDULABLE
    assert "no node offers nvidia.com/mig-7g.test: 1" in ready["message"]
    assert await look.jobs() == ()
    stalled = await look.condition("Stalled")
    assert stalled is not None
    assert stalled["status"] == "True"


async def test_another_architecture_than_the_nodes_have_is_refused_with_what_they_offer(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    async with gpu_node(client, f"{namespace}-t4", "sm75", "Tesla-T4"):
        selector = {TAINT: f"{namespace}-t4"}
        await submit(client, namespace, device={"kind": "nvidia", "architecture": "sm89"}, nodeSelector=selector)
        ready = await look.ready_says("Unschedulable")
        assert f"{namespace}-t4 is sm75 (Tesla-T4)" in ready["message"]
        assert await look.jobs() == ()


@pytest.mark.parametrize(
    ("resource", "asked"),
    [(GPU, {"device": {"kind": "nvidia"}}), (MIG, {"resources": {"limits": {MIG: 1}}})],
    ids=["a whole GPU", "a part of one"],
)
async def test_the_measuring_pod_is_scheduled_where_the_gpu_is(
    resource: str, asked: dict[str, Any], running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    l4, t4 = f"{namespace}-l4", f"{namespace}-t4"
    async with (
        fake_node(client, namespace) as played,
        gpu_node(client, t4, "sm75", "Tesla-T4", resource),
        gpu_node(client, l4, "sm89", "NVIDIA-L4", resource),
    ):
        kubelet = Kubelet(client, namespace, played.name, played.port, logs=played.logs)
        async with kubelet.running():
            selector = {PRODUCT: "NVIDIA-L4", TAINT: l4}
            await submit(client, namespace, nodeSelector=selector, **asked)

            async def scheduled() -> Object | None:
                pods = (await client.list(POD, namespace)).items
                found = (pod for pod in pods if pod["metadata"]["labels"][STAGE] == "measure")
                return next((pod for pod in found if pod["spec"].get("nodeName")), None)

            pod = await eventually(scheduled, 120)
    assert pod["spec"]["nodeName"] == l4
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "localhost/none-gpu:1"
    assert container["resources"]["limits"][resource] == "1"
    assert pod["spec"]["nodeSelector"] == {**selector, MAJOR: "8", MINOR: "9"}
    model = await client.get(OPTIMIZED_MODEL, namespace, "digits")
    assert model is not None
    assert model["status"]["devices"] == [
        {"target": "gpu", "architecture": "sm89", "nodeSelector": {MAJOR: "8", MINOR: "9"}, "nodes": 1}
    ]
