"""The operator with exactly the rights that the chart grants in the namespaces it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.charts.helm import render
from tests.cluster.conftest import Kubectl
from tests.cluster.operator_process import eventually, operator
from tests.cluster.test_optimizedmodel import Look, claim, optimized_model

from fettle.cluster.client import Client
from fettle.cluster.kinds import CLAIM, OPTIMIZED_MODEL

RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@pytest.fixture
def chart_kubeconfig(cluster: Kubectl, kubeconfig: str, namespace: str, tmp_path: Path) -> Iterator[str]:
    """A kubeconfig with the token of the chart's ServiceAccount."""
    values = {"crds": {"enabled": False}, "watchNamespaces": [namespace], "rbac": {"aggregate": False}}
    objects = [one for one in render(values, release=namespace, namespace=namespace) if one["kind"] in RIGHTS]
    cluster.apply(*objects)
    account = next(one["metadata"]["name"] for one in objects if one["kind"] == "ServiceAccount")
    token = cluster("create", "token", account, f"--namespace={namespace}").strip()
    config = yaml.safe_load(Path(kubeconfig).read_text())
    for user in config["users"]:
        user["user"] = {"token": token}
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    yield str(file)
    for one in objects:
        if one["kind"].startswith("ClusterRole"):
            cluster("delete", one["kind"], one["metadata"]["name"], "--ignore-not-found")


async def test_the_charts_rights_are_enough(chart_kubeconfig: str, client: Client, namespace: str) -> None:
    look = Look(client, namespace)
    async with operator(chart_kubeconfig, namespace, optimizer_image="localhost/none:1", store_size="1Mi") as running:
        await eventually(running.leads)
        await client.create(CLAIM, claim(namespace, "models"))
        await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
        await eventually(look.jobs)
        await look.ready_says("Unschedulable")
        assert (await running.get("/healthz")).text == "ok"
        assert await running.stop() == 0
        assert "forbidden" not in running.text().lower()
