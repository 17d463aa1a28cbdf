"""OptimizedModel on a real API server: Jobs appear, and what becomes of them is said in status."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.cluster.fake_node import fake_node, no_other_node
from tests.cluster.operator_process import OperatorProcess, eventually, operator

from fettle.api.base import MANAGED_LABEL
from fettle.api.reasons import Reason
from fettle.api.report import Termination
from fettle.cluster.client import Client
from fettle.cluster.kinds import CLAIM, EVENT, JOB, OPTIMIZED_MODEL, Object, ResourceKind
from fettle.cluster.owner import owned_by
from fettle.controller.context import utc_now
from fettle.errors import ConflictError

QUOTA = ResourceKind("", "v1", "resourcequotas", "ResourceQuota")
HUGE = {"requests": {"cpu": "900"}}  # no node has that: pods stay pending


def optimized_model(namespace: str, name: str = "digits", **spec: Any) -> Object:
    return {
        "apiVersion": OPTIMIZED_MODEL.api_version,
        "kind": OPTIMIZED_MODEL.kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "source": {"uri": "pvc://models/digits.onnx"},
            "targets": [{"name": "cpu"}],
            "jobs": {"resources": HUGE},
            **spec,
        },
    }


def claim(namespace: str, name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }


@pytest.fixture
async def running(kubeconfig: str, client: Client, namespace: str) -> AsyncIterator[OperatorProcess]:
    async with operator(
        kubeconfig, namespace, optimizer_image="localhost/none:1", unschedulable_seconds=1, store_size="1Mi"
    ) as process:
        await eventually(process.leads)
        yield process


class Look:
    """Reads what the tests ask about."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def jobs(self) -> tuple[Object, ...]:
        return (await self.client.list(JOB, self.namespace, labels=f"{MANAGED_LABEL}=true")).items

    async def condition(self, kind: str = "Ready", name: str = "digits") -> Object | None:
        obj = await self.client.get(OPTIMIZED_MODEL, self.namespace, name)
        conditions = ((obj or {}).get("status") or {}).get("conditions") or ()
        return next((one for one in conditions if one["type"] == kind), None)

    async def ready_says(self, word: str, name: str = "digits") -> Object:
        async def look() -> Object | None:
            ready = await self.condition(name=name)
            return ready if ready and (word == ready["reason"] or word in ready["message"]) else None

        return await eventually(look)


@pytest.fixture
def look(client: Client, namespace: str) -> Look:
    return Look(client, namespace)


async def test_a_new_object_gets_its_store_and_its_first_job(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await client.create(CLAIM, claim(namespace, "models"))
    model = await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
    (job,) = await eventually(look.jobs)
    assert owned_by(job, model["metadata"]["uid"])
    assert job["metadata"]["labels"]["fettle.dev/stage"] == "prepare"
    store = await client.get(CLAIM, namespace, "fettle-store")
    assert store is not None and "ownerReferences" not in store["metadata"], "artifacts outlive what made them"
    ready = await look.ready_says("Preparing")
    assert ready["status"] == "False" and ready["observedGeneration"] == 1
    after = await client.get(OPTIMIZED_MODEL, namespace, "digits")
    assert after is not None and not after["metadata"].get("finalizers") and not after["metadata"].get("annotations")

    async def told() -> list[str]:
        events = await client.list(EVENT, namespace, fields=f"involvedObject.uid={model['metadata']['uid']}")
        return [event["reason"] for event in events.items]

    assert await eventually(told) == ["Preparing"], "it follows the status"


async def test_a_pod_that_no_node_takes_is_told_in_the_condition(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await client.create(CLAIM, claim(namespace, "models"))
    await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
    ready = await look.ready_says("Unschedulable")
    assert "nodes are available" in ready["message"], "the scheduler's own words"


async def test_a_missing_source_claim_is_waited_for(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
    ready = await look.ready_says("SourceNotFound")
    assert "PersistentVolumeClaim models" in ready["message"]
    assert await look.jobs() == ()
    await client.create(CLAIM, claim(namespace, "models"))
    await eventually(look.jobs)


async def test_a_quota_is_told_and_waited_for(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"namespace": namespace, "name": "none"}}
    await client.create(QUOTA, {**quota, "spec": {"hard": {"count/jobs.batch": "0"}}})
    await client.create(CLAIM, claim(namespace, "models"))

    async def enforced() -> bool:
        seen = await client.get(QUOTA, namespace, "none")
        return bool(seen and (seen.get("status") or {}).get("hard"))

    await eventually(enforced)
    await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
    ready = await look.ready_says("QuotaExceeded")
    assert "exceeded quota" in ready["message"]
    await client.delete(QUOTA, namespace, "none")
    await eventually(look.jobs)


async def fail(client: Client, job: Object, reason: str) -> None:
    """Write into a Job's status what the Job controller would after its pod failed."""
    now = utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now}
        for kind in ("FailureTarget", "Failed")
    ]
    for _ in range(20):
        live = await client.get(JOB, job["metadata"]["namespace"], job["metadata"]["name"])
        assert live is not None
        status = {**live.get("status", {}), "active": 0, "ready": 0, "failed": 1, "conditions": conditions}
        status["startTime"] = status.get("startTime") or now
        try:
            await client.put_status(JOB, live, status)
            return
        except ConflictError:
            await asyncio.sleep(0.05)
    raise AssertionError("the Job kept changing")


async def test_a_job_that_ran_into_its_deadline_ends_the_run(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await client.create(CLAIM, claim(namespace, "models"))
    await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
    (job,) = await eventually(look.jobs)
    await fail(client, job, "DeadlineExceeded")
    ready = await look.ready_says("DeadlineExceeded")
    assert ready["status"] == "False"
    assert len(await look.jobs()) == 1, "the deadline is the run's: there is no second attempt"


async def test_a_missing_file_that_was_brought_is_found_by_a_retry(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    def play(pod: Object) -> Object:
        if brought:
            return node.succeed(pod)
        said = Termination(outcome="Failed", reason=Reason.SOURCE_NOT_FOUND, message="there is no digits.onnx")
        return {"exitCode": 1, "reason": "Error", "message": said.model_dump_json(by_alias=True)}

    brought = False
    await client.create(CLAIM, claim(namespace, "models"))
    async with fake_node(client, namespace) as node:
        node.play = play
        async with node.running():
            nowhere = [{"name": "cpu", "nodeSelector": {"fettle.dev/test": "no-node-has-this"}}]
            data = {"evaluation": {"uri": "pvc://models/evaluation.npz"}}
            await client.create(OPTIMIZED_MODEL, optimized_model(namespace, targets=nowhere, data=data))
            await look.ready_says("SourceNotFound")
            (failed,) = await look.jobs()
            brought = True
            notes = {"fettle.dev/retry": "it-is-there"}
            await client.annotate(OPTIMIZED_MODEL, namespace, "digits", annotations=notes)
            ready = await look.ready_says("Published")
    model = await client.get(OPTIMIZED_MODEL, namespace, "digits")
    assert model is not None and model["metadata"]["generation"] == ready["observedGeneration"] == 1, (
        "the spec is as it was"
    )
    assert (model["status"]["retries"], model["status"]["lastHandledRetry"]) == (1, "it-is-there")
    jobs = await look.jobs()
    prepares = [job for job in jobs if job["metadata"]["labels"]["fettle.dev/stage"] == "prepare"]
    assert failed["metadata"]["uid"] in {job["metadata"]["uid"] for job in prepares}
    assert sorted(job["metadata"]["labels"]["fettle.dev/attempt"] for job in prepares) == ["0", "3"]


async def test_a_changed_spec_replaces_the_job_that_is_not_wanted_any_more(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await client.create(CLAIM, claim(namespace, "models"))
    await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
    (before,) = await eventually(look.jobs)
    changed = optimized_model(namespace, source={"uri": "pvc://models/other.onnx"})
    await client.apply(OPTIMIZED_MODEL, changed)

    async def other() -> Object | None:
        jobs = await look.jobs()
        return jobs[0] if len(jobs) == 1 and jobs[0]["metadata"]["name"] != before["metadata"]["name"] else None

    job = await eventually(other)
    assert job["metadata"]["labels"]["fettle.dev/generation"] == "2"


async def test_a_job_of_somebody_else_with_our_name_is_never_touched(
    kubeconfig: str, client: Client, namespace: str, look: Look
) -> None:
    await client.create(CLAIM, claim(namespace, "models"))
    async with operator(kubeconfig, namespace, optimizer_image="localhost/none:1") as first:
        await eventually(first.leads)
        await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
        (job,) = await eventually(look.jobs)
        await first.stop()
    metadata = {key: job["metadata"][key] for key in ("namespace", "name")}
    await client.delete(JOB, namespace, metadata["name"])
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "theirs", "image": "localhost/none:1"}]}}
    spec = {"suspend": True, "template": template}
    theirs = await client.create(JOB, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
    async with operator(kubeconfig, namespace, optimizer_image="localhost/none:1") as second:
        await eventually(second.leads)
        await look.ready_says("NameConflict")
        still = await client.get(JOB, namespace, metadata["name"])
        assert still is not None and still["metadata"]["uid"] == theirs["metadata"]["uid"]
        assert "ownerReferences" not in still["metadata"]


@pytest.fixture
async def nodes_stay() -> AsyncIterator[None]:
    """No node comes or goes: the scheduler's words about a waiting pod stay the same."""
    async with no_other_node():
        yield


@pytest.mark.usefixtures("nodes_stay")
async def test_a_restart_changes_nothing(kubeconfig: str, client: Client, namespace: str, look: Look) -> None:
    await client.create(CLAIM, claim(namespace, "models"))
    await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
    settings = {"optimizer_image": "localhost/none:1", "unschedulable_seconds": 1, "identity": "same-pod"}
    async with operator(kubeconfig, namespace, **settings) as first:
        await eventually(first.leads)
        # The scheduler's last word: before, while volumes were bound, it gave other reasons, and each is news.
        await look.ready_says("Insufficient cpu")
        await first.stop(signal.SIGKILL)
    before = await client.get(OPTIMIZED_MODEL, namespace, "digits")
    jobs = [job["metadata"]["uid"] for job in await look.jobs()]
    async with operator(kubeconfig, namespace, **settings) as second:
        await eventually(second.leads)

        async def looked() -> bool:
            return 'fettle_reconciles_total{kind="OptimizedModel"}' in (await second.get("/metrics")).text

        await eventually(looked)
        after = await client.get(OPTIMIZED_MODEL, namespace, "digits")
        assert before is not None and after is not None
        assert after["status"] == before["status"]
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
        written = [line for line in (await second.get("/metrics")).text.splitlines() if "fettle_api_writes{" in line]
        assert len(written) == 1 and 'kind="Lease"' in written[0], written
    assert [job["metadata"]["uid"] for job in await look.jobs()] == jobs


async def test_deleting_the_object_deletes_its_jobs_and_keeps_the_store(
    running: OperatorProcess, client: Client, namespace: str, look: Look
) -> None:
    await client.create(CLAIM, claim(namespace, "models"))
    await client.create(OPTIMIZED_MODEL, optimized_model(namespace))
    await eventually(look.jobs)
    await client.delete(OPTIMIZED_MODEL, namespace, "digits")

    async def gone() -> bool:
        return not await look.jobs()

    await eventually(gone)
    assert await client.get(CLAIM, namespace, "fettle-store") is not None
