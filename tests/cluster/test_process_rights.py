"""The operator with exactly the rights that the chart grants in the namespaces it serves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.charts.helm import render
from tests.cluster.conftest import Kubectl
from tests.cluster.fake_node import STAGE
from tests.cluster.killed import succeeded
from tests.cluster.operator_process import eventually, operator
from tests.cluster.rollout_bench import Bench
from tests.cluster.test_optimizedmodel import Look, claim, optimized_model

from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.events import EventRecorder
from fettle.cluster.kinds import CHILDREN, CLAIM, JOB, LEASE, OPTIMIZED_MODEL, OWN, POD, WATCHED, ResourceKind
from fettle.cluster.observe import finished
from fettle.cluster.sync import list_kind
from fettle.controller.context import Context, utc_now
from fettle.controller.optimizedmodel import OptimizedModels
from fettle.errors import ClusterError, ConflictError
from fettle.settings import Settings

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


def granted(namespace: str) -> set[str]:
    """What the chart grants the operator, as "verb resource"."""
    objects = render({"crds": {"enabled": False}}, release=namespace, namespace=namespace)
    roles = [one for one in objects if one["kind"] in ("ClusterRole", "Role") and _operators(one)]
    found = set()
    for rule in (rule for role in roles for rule in role["rules"]):
        for group, resource, verb in product(rule["apiGroups"], rule["resources"], rule["verbs"]):
            plural, slash, sub = resource.partition("/")
            found.add(f"{verb} {plural}{f'.{group}' if group else ''}{slash}{sub}")
    return found


def _operators(role: dict[str, Any]) -> bool:
    return not role["metadata"]["name"].endswith(("-view", "-edit"))  # those are people's


def used_by(client: Client) -> set[str]:
    """What the operator asked with this client."""
    return {f"{verb} {resource}" for verb, resource in client.requests}


def watched() -> set[str]:
    """What kopf's own connection asks for."""
    return {
        f"{verb} {kind.plural}{f'.{kind.group}' if kind.group else ''}"
        for kind in (*OWN, *CHILDREN, LEASE)
        for verb in ("list", "watch")
    }


async def a_process(kubeconfig: str, client: Client, namespace: str) -> set[str]:
    """The operator as a process elects itself, watches, and begins a run."""
    look = Look(client, namespace)
    soon = {"unschedulable_seconds": 1, "lease_renew_seconds": 1}
    async with operator(kubeconfig, namespace, optimizer_image="localhost/none:1", store_size="1Mi", **soon) as running:

        async def renewed() -> bool:
            return 'resource="leases.coordination.k8s.io",verb="update"' in (await running.get("/metrics")).text

        await eventually(running.leads, 300)
        await client.create(CLAIM, claim(namespace, "models"))
        await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
        await eventually(look.jobs)
        await look.ready_says("Unschedulable")
        await eventually(renewed)
        assert (await running.get("/healthz")).text == "ok"
        told = (await running.get("/metrics")).text
        assert await running.stop() == 0
        assert "forbidden" not in running.text().lower()
    requests = re.findall(r'fettle_api_requests{resource="([^"]+)",verb="([^"]+)"}', told)
    return {f"{verb} {resource}" for resource, verb in requests}


async def fresh(asked: Client, namespace: str, ahead: float = 0) -> Context:
    """What an operator knows that has just listed everything; its clock may be `ahead` by seconds."""
    cache = Cache()
    settings = Settings(watch_namespaces=(namespace,), optimizer_image="localhost/none:1", store_size="1Mi")
    await asyncio.gather(*(list_kind(asked, cache, kind, settings) for kind in WATCHED))
    return Context(settings, asked, cache, EventRecorder(asked), lambda: utc_now() + timedelta(seconds=ahead))


async def an_answer(asked: Client, user: Client, namespace: str) -> None:
    """A Job's pod succeeds, so its log is asked for; no kubelet has it."""

    async def ended() -> bool:
        for pod in (await user.list(POD, namespace, labels=STAGE)).items:
            with suppress(ConflictError):  # the scheduler wrote meanwhile
                await user.put_status(POD, pod, {**pod["status"], **succeeded("f" * 64)})
        return any(finished(job) for job in (await user.list(JOB, namespace)).items)

    await eventually(ended)
    with suppress(ClusterError):
        await OptimizedModels().reconcile(await fresh(asked, namespace), namespace, "digits")


async def a_run(asked: Client, user: Client, namespace: str) -> None:
    """A run in the race that needs the most: its Job is there before it is seen, gets no pod, and is wanted no more in the end."""
    quota = ResourceKind("", "v1", "resourcequotas", "ResourceQuota")
    await user.create(quota, {"metadata": {"namespace": namespace, "name": "none"}, "spec": {"hard": {"pods": "0"}}})
    await user.delete(OPTIMIZED_MODEL, namespace, "digits")
    await user.create(OPTIMIZED_MODEL, optimized_model(namespace))
    for context in [
        await fresh(asked, namespace) for _ in range(2)
    ]:  # the second one does not see what the first one makes
        with suppress(ConflictError):
            await OptimizedModels().reconcile(context, namespace, "digits")
    await OptimizedModels().reconcile(await fresh(asked, namespace, ahead=60), namespace, "digits")
    before = await user.get(OPTIMIZED_MODEL, namespace, "digits")
    assert before is not None
    spec = {**before["spec"], "source": {"uri": "pvc://models/another.onnx"}}
    await user.replace(OPTIMIZED_MODEL, {**before, "spec": spec})
    await OptimizedModels().reconcile(await fresh(asked, namespace), namespace, "digits")


async def a_rollout(asked: Client, user: Client, namespace: str) -> None:
    """a serves, b is promoted, c is promoted, and the ledger forgets a."""
    rollout = {"steps": [{"weight": 100}], "revisionHistoryLimit": 1}
    bench = Bench(asked, namespace, Settings(server_image="localhost/server:1"), user=user)

    async def only(letter: str) -> bool:
        return set(await bench.deployments()) == {letter} and await bench.stable() == letter and await bench.is_ready()

    try:
        for letter in "abc":
            await bench.apply(letter, rollout=rollout)
            await bench.until(partial(only, letter), 400)
        await bench.settle(2)
        assert [letter for letter, _ in await bench.ledger()] == ["b", "c"]
    finally:
        await bench.close()


@pytest.mark.timeout(900)
async def test_the_chart_grants_what_the_operator_uses_and_nothing_else(
    chart_kubeconfig: str, client: Client, namespace: str
) -> None:
    asked = await Client.connect(chart_kubeconfig)
    try:
        await a_rollout(asked, client, namespace)
        used = watched() | await a_process(chart_kubeconfig, client, namespace)
        await an_answer(asked, client, namespace)
        await a_run(asked, client, namespace)
        used |= used_by(asked)
    finally:
        await asked.close()
    # Nodes are only listed before the first Job of a target with a GPU: test_gpu_nodes.py.
    given = granted(namespace) - {"list nodes"}
    assert (sorted(used - given), sorted(given - used)) == ([], [])
