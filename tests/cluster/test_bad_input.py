"""Bad input on a real API server with the real operator process: what is said of it, that nothing hangs, and that nothing else is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.cluster.fake_node import STAGE, FakeNode, fake_node
from tests.cluster.operator_process import OperatorProcess, eventually, operator
from tests.cluster.test_optimizedmodel import HUGE, QUOTA, Look, claim, optimized_model

from fettle.api.base import OPTIMIZED_MODEL_LABEL
from fettle.api.reasons import Reason
from fettle.cluster.client import Client
from fettle.cluster.kinds import CLAIM, EVENT, JOB, OPTIMIZED_MODEL, POD, Object, ResourceKind
from fettle.cluster.security import container_security, pod_security
from fettle.errors import ClusterError

ADMISSION = "admissionregistration.k8s.io"
POLICY = ResourceKind(ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy")
BINDING = ResourceKind(ADMISSION, "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding")
NAMESPACE = ResourceKind("", "v1", "namespaces", "Namespace")
STAGES = ("prepare", "build", "measure", "publish")
NOWHERE = [
    {"name": "cpu", "runtimes": ["onnxruntime"], "threads": 1, "nodeSelector": {"fettle.dev/test": "no-node-has-this"}}
]
ONE_BUILD = [{"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}]  # a Job for each stage, and no more


@pytest.fixture
async def node(client: Client, namespace: str) -> AsyncIterator[FakeNode]:
    async with fake_node(client, namespace) as made:
        yield made


@pytest.fixture
async def running(kubeconfig: str, client: Client, namespace: str) -> AsyncIterator[OperatorProcess]:
    await client.create(CLAIM, claim(namespace, "models"))
    async with operator(
        kubeconfig, namespace, optimizer_image="localhost/none:1", unschedulable_seconds=1, store_size="1Mi"
    ) as process:
        await eventually(process.leads)
        yield process


@pytest.fixture
def look(client: Client, namespace: str) -> Look:
    return Look(client, namespace)


async def submit(client: Client, namespace: str, name: str = "digits", **spec: Any) -> Object:
    data = {"evaluation": {"uri": "pvc://models/evaluation.npz"}}
    wanted = {"data": data, "targets": NOWHERE, "recipes": ONE_BUILD, **spec}
    return await client.create(OPTIMIZED_MODEL, optimized_model(namespace, name, **wanted))


# ------------------------------------------------------------------------------------------------------------------ deletion


@pytest.fixture
async def at_every_stage(
    running: OperatorProcess, node: FakeNode, client: Client, namespace: str
) -> AsyncIterator[OperatorProcess]:
    """Four OptimizedModels, each named after the stage whose pods run on and on."""

    def play(pod: Object) -> Object | None:
        labels = pod["metadata"]["labels"]
        return None if labels[STAGE] == labels[OPTIMIZED_MODEL_LABEL] else node.succeed(pod)

    async def all_there() -> bool:
        pods = (await client.list(POD, namespace)).items
        on = {pod["metadata"]["labels"][STAGE] for pod in pods if pod["status"]["phase"] == "Running"}
        return on == set(STAGES)

    node.play = play
    async with node.running():
        for stage in STAGES:
            await submit(client, namespace, stage)
        await eventually(all_there, 120)  # four runs at once, up to their last stages
        yield running


async def test_deleting_objects_in_any_stage_ends_their_jobs_and_keeps_the_store(
    at_every_stage: OperatorProcess, client: Client, namespace: str
) -> None:
    for stage in STAGES:
        await client.delete(OPTIMIZED_MODEL, namespace, stage)

    async def gone() -> bool:
        return not [*(await client.list(JOB, namespace)).items, *(await client.list(POD, namespace)).items]

    await eventually(gone)
    assert await client.get(CLAIM, namespace, "fettle-store") is not None, "what was published stays"


async def test_deleting_a_namespace_with_runs_in_every_stage_hangs_on_nothing(
    at_every_stage: OperatorProcess, client: Client, namespace: str
) -> None:
    await client.delete(NAMESPACE, None, namespace)

    async def gone() -> bool:
        return await client.get(NAMESPACE, None, namespace) is None

    await eventually(gone)


# -------------------------------------------------------------------------------------------------------------- pods that fail

OUT_OF_MEMORY = {"exitCode": 137, "reason": "OOMKilled"}


async def test_a_job_that_the_kernel_ended_names_the_limit_and_is_not_tried_again(
    running: OperatorProcess, node: FakeNode, client: Client, namespace: str, look: Look
) -> None:
    node.play = lambda pod: OUT_OF_MEMORY
    async with node.running():
        await submit(client, namespace)
        ready = await look.ready_says("OutOfMemory")
    assert ready["reason"] == Reason.OUT_OF_MEMORY
    assert "raise resources.limits.memory" in ready["message"]
    assert len(await look.jobs()) == 1


async def test_a_pod_that_was_taken_away_is_tried_again(
    running: OperatorProcess, node: FakeNode, client: Client, namespace: str, look: Look
) -> None:
    await submit(client, namespace)

    async def pods() -> Any:
        return (await client.list(POD, namespace)).items

    (pod, *_) = await eventually(pods)
    await client.delete(POD, namespace, pod["metadata"]["name"])
    ready = await look.ready_says("NodeLost")
    assert ready["reason"] == Reason.PREPARING, "it goes on by itself"

    async def next_attempt() -> bool:
        return any(job["metadata"]["labels"]["fettle.dev/attempt"] == "1" for job in await look.jobs())

    await eventually(next_attempt)


# ------------------------------------------------------------------------------------------------------------ pods not admitted


def pod_quota(namespace: str) -> Object:
    """A quota that lets no pod in, though it lets Jobs in."""
    metadata = {"namespace": namespace, "name": "no-pods"}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": {"pods": "0"}}}


async def test_a_quota_of_pods_and_an_account_that_is_missing_are_told_in_the_clusters_words(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await submit(client, namespace, "unknown-account", jobs={"serviceAccountName": "nobody", "resources": HUGE})
    ready = await look.ready_says("Forbidden", "unknown-account")
    assert 'serviceaccount "nobody" not found' in ready["message"]
    await client.create(QUOTA, pod_quota(namespace))

    async def enforced() -> bool:
        seen = await client.get(QUOTA, namespace, "no-pods")
        return bool(seen and (seen.get("status") or {}).get("hard"))

    await eventually(enforced)
    await submit(client, namespace, "refused")
    ready = await look.ready_says("QuotaExceeded", "refused")
    assert "exceeded quota: no-pods" in ready["message"]
    assert ready["reason"] == Reason.PREPARING, "it goes on when the quota is raised"


@pytest.fixture
async def policy(client: Client, namespace: str) -> AsyncIterator[str]:
    """A ValidatingAdmissionPolicy that takes no pod of the optimizer in this namespace, once it is in force."""
    name = f"{namespace}-no-optimizer"
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    words = "images must come from registry.example"
    body = {"apiVersion": POLICY.api_version, "kind": POLICY.kind, "metadata": {"name": name}}
    validations = [{"expression": "object.spec.containers.all(c, c.image.startsWith('ok/'))", "message": words}]
    await client.create(
        POLICY, {**body, "spec": {"matchConstraints": {"resourceRules": rules}, "validations": validations}}
    )
    body = {"apiVersion": BINDING.api_version, "kind": BINDING.kind, "metadata": {"name": name}}
    bound = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": where}}
    await client.create(BINDING, {**body, "spec": bound})

    async def in_force() -> bool:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": "probe"}}
        container = {"name": "c", "image": "bad/image", "securityContext": container_security()}
        try:
            await client.create(POD, {**pod, "spec": {"securityContext": pod_security(), "containers": [container]}})
        except ClusterError as error:
            return words in error.message
        await client.delete(POD, namespace, "probe")
        return False

    try:
        await eventually(in_force)
        yield words
    finally:
        await client.delete(BINDING, None, name)
        await client.delete(POLICY, None, name)


async def test_a_pod_that_a_policy_refuses_is_told_with_the_policys_own_words(
    policy: str, running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await submit(client, namespace)
    ready = await look.ready_says("Forbidden")
    assert policy in ready["message"] and f"{namespace}-no-optimizer" in ready["message"]


# ----------------------------------------------------------------------------------------------------------------------- names


async def test_a_name_of_253_characters_is_carried_through_every_stage(
    running: OperatorProcess, node: FakeNode, client: Client, namespace: str, look: Look
) -> None:
    name = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert len(name) == 253
    async with node.running():
        await submit(client, namespace, name)
        ready = await look.ready_says("Published", name)
    assert ready["status"] == "True", ready
    for job in await look.jobs():
        assert len(job["metadata"]["name"]) <= 63

    async def told() -> bool:
        events = await client.list(EVENT, namespace, fields=f"involvedObject.name={name}")
        return {event["reason"] for event in events.items} >= {"Preparing", "Published"}

    assert await eventually(told), "they follow the status"


async def test_two_objects_of_one_name_in_two_namespaces_know_nothing_of_each_other(
    kubeconfig: str, cluster: Any, client: Client, namespace: str, look: Look
) -> None:
    other = f"{namespace}-b"
    await client.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    try:
        await client.create(CLAIM, claim(namespace, "models"))
        watched = f"{namespace},{other}"
        async with operator(
            kubeconfig, namespace, watch_namespaces=watched, optimizer_image="localhost/none:1", store_size="1Mi"
        ) as running:
            await eventually(running.leads)
            await submit(client, namespace)
            await submit(client, other)  # its claim is missing
            (job,) = await eventually(look.jobs)
            ready = await Look(client, other).ready_says("SourceNotFound")
            assert f"in namespace {other}" in ready["message"]
            assert await Look(client, other).jobs() == ()
            await client.delete(OPTIMIZED_MODEL, other, "digits")
            assert [one["metadata"]["uid"] for one in await look.jobs()] == [job["metadata"]["uid"]]
            mine = await look.condition()
            assert mine is not None and "SourceNotFound" not in mine["message"]
    finally:
        await client.delete(NAMESPACE, None, other)
