"""ModelDeployments on a real API server with pods that the test plays: objects, ledger, canary, rollback, what is never touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.cluster.operator_process import eventually, operator
from tests.cluster.rollout_bench import Bench, model_deployment

from fettle.api.signature import Signature, Tensor
from fettle.cluster.client import Client
from fettle.cluster.kinds import (
    CONTROLLER_REVISION,
    MODEL_DEPLOYMENT,
    OPTIMIZED_MODEL,
    POD_DISRUPTION_BUDGET,
    SECRET,
    SERVICE,
)
from fettle.cluster.owner import owned_by
from fettle.cluster.serving import samples_name
from fettle.settings import Settings


@pytest.fixture
async def bench(client: Client, namespace: str) -> AsyncIterator[Bench]:
    bench = Bench(client, namespace, Settings(server_image="localhost/server:1"))
    yield bench
    await bench.close()


@pytest.fixture
async def served(bench: Bench) -> Bench:
    """Artifact a serves."""
    await bench.apply("a")
    await bench.until(bench.is_ready)
    return bench


def uids(pods: list[Any], letter: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods if Bench.artifact_of(pod) == letter}


async def test_a_first_deployment_makes_its_objects_and_serves(served: Bench, client: Client, namespace: str) -> None:
    obj = await client.get(MODEL_DEPLOYMENT, namespace, "digits")
    assert obj is not None
    assert not obj["metadata"].get("finalizers") and not obj["metadata"].get("annotations")
    uid = obj["metadata"]["uid"]
    (deployment,) = (await served.deployments()).values()
    (line,) = (await client.list(CONTROLLER_REVISION, namespace)).items
    service = await client.get(SERVICE, namespace, "digits")
    budget = await client.get(POD_DISRUPTION_BUDGET, namespace, "digits")
    assert service is not None and budget is not None
    assert all(owned_by(one, uid) for one in (deployment, line, service, budget))
    assert service["spec"]["ports"][0]["port"] == 8080
    assert line["data"]["template"]["spec"]["containers"][0]["image"] == "localhost/server:1"
    assert (await served.stable(), await served.serving()) == ("a", {"a": 2})
    assert obj["status"]["readyReplicas"] == 2
    assert await served.reasons() >= {"Deploying", "Serving"}


async def test_a_canary_finds_samples_by_a_secret_that_never_changes_and_a_service_that_follows_stable(
    served: Bench, client: Client, namespace: str
) -> None:
    obj = await client.get(MODEL_DEPLOYMENT, namespace, "digits")
    assert obj is not None
    name = samples_name(obj)

    async def look() -> tuple[Any, Any]:
        secret, service = await client.get(SECRET, namespace, name), await client.get(SERVICE, namespace, name)
        assert secret is not None and service is not None
        assert owned_by(secret, obj["metadata"]["uid"]) and owned_by(service, obj["metadata"]["uid"])
        return secret["data"]["token"], service["spec"]["selector"]["fettle.dev/revision"]

    token, first = await look()
    assert len(token) > 40
    await served.apply("b")
    await served.until(served_by(served, "b"))
    assert (await look())[0] == token
    assert (await look())[1] != first


async def test_at_rest_nothing_is_written(served: Bench, client: Client) -> None:
    await served.settle()
    before = client.writes.total()
    await served.settle()
    assert client.writes.total() == before


async def test_a_good_canary_is_promoted_in_place(served: Bench) -> None:
    await served.apply("b")
    await served.until(served_by(served, "b"))
    await served.until(lambda: only(served, "b"))
    assert await served.serving() == {"b": 2}
    assert await served.ledger() == [("a", "Superseded"), ("b", None)]
    assert await served.condition("Progressing") == ("False", "Serving")


async def test_a_bad_canary_is_rolled_back_and_not_tried_again(served: Bench) -> None:
    first = uids(await served.pods(), "a")
    served.errors["b"] = 0.5
    await served.apply("b")

    async def failed() -> Any:
        return (await served.status()).get("failedRevision")

    await served.until(failed)
    await served.until(lambda: only(served, "a"))
    await served.until(served.is_ready)
    await served.settle()
    assert await served.serving() == {"a": 2}
    assert await served.condition("Degraded") == ("True", "AnalysisFailed")
    assert await served.ledger() == [("a", None), ("b", "AnalysisFailed")]
    assert "AnalysisFailed" in await served.reasons()
    assert first & uids(await served.pods(), "a"), "the stable revision's pods were restarted"


async def test_a_revision_that_clients_could_not_use_gets_no_traffic_until_a_person_insists(
    served: Bench, client: Client, namespace: str
) -> None:
    """Its pods compare what they were told of the stable revision's inputs and outputs; here the test's pods do so."""

    def takes(*shape: int) -> Signature:
        return Signature(inputs=(Tensor(name="x", dtype="FP32", shape=shape),), outputs=())

    served.signatures |= {"a": takes(-1, 4), "b": takes(1, 4), "c": takes(-1, 4)}
    await served.apply("c")
    await served.until(lambda: only(served, "c"))

    async def refused() -> Any:
        assert "b" not in await served.serving()
        return await served.condition("Degraded") == ("True", "SignatureIncompatible")

    await served.apply("b")
    await served.until(refused)
    await served.settle()
    assert (await served.stable(), await served.serving()) == ("c", {"c": 2})
    obj = await client.get(MODEL_DEPLOYMENT, namespace, "digits")
    assert obj is not None
    (degraded,) = (one for one in obj["status"]["conditions"] if one["type"] == "Degraded")
    assert degraded["message"].endswith("input x is FP32 [1, 4] instead of FP32 [-1, 4]")
    await served.order("retry", f"{obj['status']['failedRevision']}/1")
    await served.until(lambda: only(served, "b"))
    assert await served.ledger() == [
        ("a", "Superseded"),
        ("c", "Superseded"),
        ("b", "SignatureIncompatible"),
        ("b", None),
    ]


async def test_a_to_b_to_a_restarts_no_pod_that_serves(served: Bench) -> None:
    served.unready.add("b")
    first = uids(await served.pods(), "a")
    await served.apply("b")

    async def begun() -> Any:
        return uids(await served.pods(), "b")

    await served.until(begun)
    await served.apply("a")
    await served.until(lambda: only(served, "a"))
    assert uids(await served.pods(), "a") == first
    assert await served.ledger() == [("a", None), ("b", "RolledBack")]


async def test_an_operator_upgrade_restarts_no_pod_and_reaches_the_next_revision(served: Bench) -> None:
    first = uids(await served.pods(), "a")
    served.settings = Settings(server_image="localhost/server:2", drain_seconds=99, server_memory="3Gi")
    await served.settle()
    (deployment,) = (await served.deployments()).values()
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "localhost/server:1"
    assert uids(await served.pods(), "a") == first
    await served.apply("b")
    await served.until(served_by(served, "b"))
    image = (await served.deployments())["b"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "localhost/server:2"


async def test_the_stable_revision_is_found_again_after_its_annotation_and_status_were_lost(
    served: Bench, client: Client, namespace: str
) -> None:
    first = uids(await served.pods(), "a")
    await client.delete(SERVICE, namespace, "digits")
    obj = await client.get(MODEL_DEPLOYMENT, namespace, "digits")
    assert obj is not None
    await client.put_status(MODEL_DEPLOYMENT, obj, {})
    await served.until(served_by(served, "a"))
    await served.until(served.is_ready)
    assert uids(await served.pods(), "a") == first
    assert await served.ledger() == [("a", None)]


async def test_commands_act_once(served: Bench) -> None:
    await served.apply("b", rollout={"steps": [{"weight": 50}, {"pause": {}}, {"weight": 100}]})

    async def waits() -> bool:
        return await served.condition("Paused") == ("True", "WaitingForPromote")

    await served.until(waits)
    revision = (await served.status())["canary"]["revision"]
    await served.order("abort", f"{revision}/1")
    await served.until(lambda: only(served, "a"))
    await served.order("retry", f"{revision}/2")
    await served.until(waits)
    await served.settle()
    assert await waits(), "the old abort acted again"
    await served.order("promote", f"{revision}/3")
    await served.until(served_by(served, "b"))


async def test_rollback_to_brings_back_what_the_ledger_holds(served: Bench, client: Client, namespace: str) -> None:
    first = (await served.deployments())["a"]["spec"]["template"]
    target = (await served.status())["stable"]["revision"]
    await served.apply("b")
    await served.until(served_by(served, "b"))
    await served.until(lambda: only(served, "b"))
    served.settings = Settings(server_image="localhost/server:2")
    desired = (await served.status())["desiredRevision"]
    await served.order("rollback-to", f"{desired}/{target}/1")
    await served.until(served_by(served, "a"))
    await served.until(lambda: only(served, "a"))
    await served.settle()
    assert (await served.deployments())["a"]["spec"]["template"] == first
    assert (await served.status())["rollback"] == {"desired": desired, "target": target}
    assert await served.ledger() == [("a", "Superseded"), ("b", "RolledBack"), ("a", None)]
    assert "CommandAccepted" in await served.reasons()


async def test_scaling_through_the_scale_subresource(served: Bench, kubectl: Any) -> None:
    kubectl("scale", "modeldeployment/digits", "--replicas=3")

    async def grown() -> bool:
        return await served.serving() == {"a": 3}

    await served.until(grown)
    scale = kubectl("get", "modeldeployment/digits", "--subresource=scale", "-o", "jsonpath={.status.selector}")
    assert scale == "fettle.dev/modeldeployment=digits"


async def test_a_service_of_somebody_else_is_never_touched(bench: Bench, client: Client, namespace: str) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": "digits"},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
    }
    before = await client.create(SERVICE, theirs)
    await bench.apply("a")

    async def told() -> bool:
        return await bench.condition("Ready") == ("False", "NameConflict")

    await bench.until(told)
    after = await client.get(SERVICE, namespace, "digits")
    assert after is not None
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert await bench.pods() == []
    await client.delete(SERVICE, namespace, "digits")
    await bench.until(bench.is_ready)


async def test_it_follows_an_optimized_model_and_survives_its_deletion(
    bench: Bench, client: Client, namespace: str
) -> None:
    await bench.apply("a", model={"ref": {"name": "m", "target": "cpu"}})
    await bench.settle(2)
    assert await bench.condition("Ready") == ("False", "ModelNotReady")
    await publish(client, namespace, "a")
    await bench.until(bench.is_ready)
    await client.delete(OPTIMIZED_MODEL, namespace, "m")
    await bench.settle(3)
    assert await bench.condition("Progressing") == ("False", "ModelNotReady")
    assert (await bench.condition("Ready"))[0] == "True"
    assert await bench.serving() == {"a": 2}


async def test_the_operators_process_reconciles_by_watching(
    bench: Bench, kubeconfig: str, client: Client, namespace: str
) -> None:
    async with operator(kubeconfig, namespace, server_image="localhost/server:1") as running:
        await eventually(running.leads)
        await client.create(MODEL_DEPLOYMENT, model_deployment(namespace))

        async def ready() -> bool:
            await bench.play_pods()
            return await bench.is_ready()

        await eventually(ready)
        await client.annotate(SERVICE, namespace, "digits", annotations={"fettle.dev/stable-revision": None})

        async def restored() -> Any:
            return await bench.stable()

        assert await eventually(restored) == "a"


async def publish(client: Client, namespace: str, letter: str) -> None:
    """An OptimizedModel `m` that has published an artifact for the target cpu."""
    body = {
        "apiVersion": OPTIMIZED_MODEL.api_version,
        "kind": OPTIMIZED_MODEL.kind,
        "metadata": {"namespace": namespace, "name": "m"},
        "spec": {"source": {"uri": "pvc://models/m.onnx"}, "targets": [{"name": "cpu"}]},
    }
    made = await client.create(OPTIMIZED_MODEL, body)
    row = {
        "target": "cpu",
        "candidate": "fp32",
        "runtime": "onnxruntime",
        "uri": f"pvc://fettle-store/artifacts/{letter * 64}",
        "sha256": letter * 64,
        "bytes": 1,
    }
    await client.put_status(OPTIMIZED_MODEL, made, {"artifacts": [row]})


def served_by(bench: Bench, letter: str) -> Any:
    async def check() -> bool:
        return await bench.stable() == letter

    return check


async def only(bench: Bench, letter: str) -> bool:
    """Whether nothing but the Deployment of one artifact is left."""
    return set(await bench.deployments()) == {letter}
