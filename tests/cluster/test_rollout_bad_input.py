"""A ModelDeployment that cannot have what it asks for: what is said of it, that nothing hangs, and that nothing else is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from tests.cluster.fake_node import fake_node
from tests.cluster.operator_process import eventually
from tests.cluster.rollout_bench import Bench
from tests.cluster.test_bad_input import NAMESPACE, pod_quota
from tests.cluster.test_optimizedmodel import QUOTA

from fettle.api.reasons import Reason
from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.events import EventRecorder
from fettle.cluster.kinds import (
    CLAIM,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    MODEL_DEPLOYMENT,
    POD,
    POD_DISRUPTION_BUDGET,
    SECRET,
    SERVICE,
    WATCHED,
    Object,
    ResourceKind,
)
from fettle.cluster.owner import owned_by
from fettle.cluster.serving import samples_name
from fettle.cluster.sync import list_kind
from fettle.controller import modeldeployment
from fettle.controller.context import Context
from fettle.errors import ClusterError
from fettle.settings import Settings

VOLUME = ResourceKind("", "v1", "persistentvolumes", "PersistentVolume")
CHILDREN = (DEPLOYMENT, POD, SERVICE, POD_DISRUPTION_BUDGET, CONTROLLER_REVISION)
DEADLINE = {"steps": [{"weight": 100}], "progressDeadlineSeconds": 60}
LATER = timedelta(seconds=90)


@pytest.fixture
async def bench(client: Client, namespace: str) -> AsyncIterator[Bench]:
    bench = Bench(client, namespace, Settings(server_image="localhost/server:1"))
    yield bench
    await bench.close()


def ready_says(bench: Bench, reason: Reason) -> Callable[[], Awaitable[Any]]:
    async def check() -> Object | None:
        conditions = (await bench.status()).get("conditions") or ()
        return next((one for one in conditions if one["type"] == "Ready" and one["reason"] == reason), None)

    return check


def has_pods(bench: Bench) -> Callable[[], Awaitable[Any]]:
    async def check() -> list[Object]:
        return await bench.pods()

    return check


# ------------------------------------------------------------------------------------------------------------- other people's


@pytest.mark.parametrize("kind", [DEPLOYMENT, POD_DISRUPTION_BUDGET, CONTROLLER_REVISION], ids=lambda kind: kind.kind)
async def test_a_child_of_somebody_else_with_our_name_is_never_touched(
    bench: Bench, client: Client, namespace: str, kind: ResourceKind
) -> None:
    await bench.apply("a")
    await bench.until(bench.is_ready)
    (ours,) = (await client.list(kind, namespace)).items
    await client.delete(MODEL_DEPLOYMENT, namespace, "digits")
    await eventually(nothing_left(client, namespace))
    metadata = {"namespace": namespace, "name": ours["metadata"]["name"], "labels": {"app": "theirs"}}
    content = {key: value for key, value in ours.items() if key in ("apiVersion", "kind", "spec", "data", "revision")}
    theirs = await client.create(kind, {**content, "metadata": metadata})
    await bench.apply("a")

    async def told() -> bool:
        return await bench.condition("Ready") == ("False", Reason.NAME_CONFLICT)

    await bench.until(told)
    after = await client.get(kind, namespace, metadata["name"])
    assert after is not None and after["metadata"]["uid"] == theirs["metadata"]["uid"]
    assert after["metadata"]["labels"] == {"app": "theirs"} and "ownerReferences" not in after["metadata"]
    await client.delete(kind, namespace, metadata["name"])
    await bench.until(bench.is_ready)


# -------------------------------------------------------------------------------------------------------------------- deletion


def nothing_left(client: Client, namespace: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return not [one for kind in CHILDREN for one in (await client.list(kind, namespace)).items]

    return check


async def deploying(bench: Bench) -> None:
    bench.unready.add("a")
    await bench.apply("a")
    await bench.until(has_pods(bench))


async def on_its_way(bench: Bench) -> None:
    await bench.apply("a")
    await bench.until(bench.is_ready)
    bench.unready.add("b")
    await bench.apply("b")

    async def begun() -> bool:
        return "b" in await bench.deployments()

    await bench.until(begun)


async def waiting_for_promote(bench: Bench) -> None:
    await bench.apply("a")
    await bench.until(bench.is_ready)
    await bench.apply("b", rollout={"steps": [{"weight": 50}, {"pause": {}}, {"weight": 100}]})

    async def waits() -> bool:
        return await bench.condition("Paused") == ("True", Reason.WAITING_FOR_PROMOTE)

    await bench.until(waits)


async def promoting(bench: Bench) -> None:
    await bench.apply("a")
    await bench.until(bench.is_ready)
    await bench.apply("b")

    async def told() -> bool:
        return await bench.condition("Progressing") == ("True", Reason.PROMOTING)

    await bench.until(told)


async def rolling_back(bench: Bench) -> None:
    await bench.apply("a")
    await bench.until(bench.is_ready)
    bench.errors["b"] = 0.5
    await bench.apply("b")

    async def decided() -> bool:
        return bool((await bench.status()).get("failedRevision"))

    await bench.until(decided)
    assert set(await bench.deployments()) == {"a", "b"}, "it is on its way out, not gone"


STAGES = [deploying, on_its_way, waiting_for_promote, promoting, rolling_back]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
async def test_a_deletion_at_any_time_takes_everything_with_it_and_hangs_on_nothing(
    bench: Bench, client: Client, namespace: str, stage: Callable[[Bench], Awaitable[None]]
) -> None:
    await stage(bench)
    await client.delete(MODEL_DEPLOYMENT, namespace, "digits")
    await eventually(nothing_left(client, namespace))
    await bench.settle(2)
    assert await nothing_left(client, namespace)(), "nothing comes back"


@pytest.mark.parametrize("stage", [on_its_way, promoting, rolling_back], ids=lambda stage: stage.__name__)
async def test_a_namespace_that_is_deleted_in_the_middle_of_a_rollout_goes(
    bench: Bench, client: Client, namespace: str, stage: Callable[[Bench], Awaitable[None]]
) -> None:
    await stage(bench)
    await client.delete(NAMESPACE, None, namespace)

    async def gone() -> bool:
        with suppress(ClusterError):  # nothing can be made there any more
            await bench.reconcile()
        return await client.get(NAMESPACE, None, namespace) is None

    await eventually(gone)


# ---------------------------------------------------------------------------------------------------------- of the same name


@dataclass
class OneOfTwo(Bench):
    """Of an operator that serves another namespace too."""

    there: str = ""

    async def freshly_started(self, client: Client) -> Context:
        """What it knows of both."""
        context = await super().freshly_started(client)
        for kind in self.kinds:
            await list_kind(client, context.cache, kind, Settings(watch_namespaces=(self.there,)))
        return context

    async def serve(self, letter: str) -> None:
        """Apply an artifact, and wait until it serves with nothing beside it."""
        await self.apply(letter)

        async def alone() -> bool:
            return set(await self.deployments()) == {letter} and await self.is_ready()

        await self.until(alone)

    async def owned(self) -> dict[tuple[str, str], str]:
        """UIDs by kind and name of what the ModelDeployment of this namespace owns, its Secret for samples among it."""
        owner = await self.client.get(MODEL_DEPLOYMENT, self.namespace, "digits")
        assert owner is not None
        kinds = [kind for kind in (*CHILDREN, SECRET) if kind != POD]
        found = [(kind.kind, one) for kind in kinds for one in (await self.client.list(kind, self.namespace)).items]
        assert all(owned_by(one, owner["metadata"]["uid"]) for _, one in found)
        assert ("Secret", samples_name(owner)) in {(kind, one["metadata"]["name"]) for kind, one in found}
        return {(kind, one["metadata"]["name"]): one["metadata"]["uid"] for kind, one in found}


@pytest.fixture
async def two(client: Client, namespace: str) -> AsyncIterator[tuple[OneOfTwo, OneOfTwo]]:
    """The test's namespace, and another."""
    other = f"{namespace}-too"
    await client.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    settings = Settings(server_image="localhost/server:1")
    here = OneOfTwo(client, namespace, settings, there=other)
    there = OneOfTwo(client, other, settings, there=namespace)
    yield here, there
    for bench in (here, there):
        await bench.close()
    await client.delete(NAMESPACE, None, other)


async def test_two_of_the_same_name_in_two_namespaces_know_nothing_of_each_other(
    two: tuple[OneOfTwo, OneOfTwo], client: Client, namespace: str
) -> None:
    here, there = two
    await here.serve("a")
    await there.serve("b")
    owned, theirs = await here.owned(), await there.owned()
    assert not set(owned.values()) & set(theirs.values())
    await here.serve("c")
    await there.settle(2)
    assert await here.ledger() == [("a", Reason.SUPERSEDED), ("c", None)]
    assert (await there.ledger(), await there.serving(), await there.stable()) == ([("b", None)], {"b": 2}, "b")
    await client.delete(MODEL_DEPLOYMENT, namespace, "digits")
    await eventually(nothing_left(client, namespace))
    for bench in (here, there):
        await bench.settle(2)
    assert await nothing_left(client, namespace)()
    assert (await there.owned(), await there.serving()) == (theirs, {"b": 2}), "the other one is whole"


# ------------------------------------------------------------------------------------------------------------------------ pods


async def test_a_quota_that_lets_no_pod_in_is_told(bench: Bench, client: Client, namespace: str) -> None:
    await client.create(QUOTA, pod_quota(namespace))

    async def enforced() -> bool:
        seen = await client.get(QUOTA, namespace, "no-pods")
        return bool(seen and (seen.get("status") or {}).get("hard"))

    await eventually(enforced)
    await bench.apply("a", rollout=DEADLINE)
    await bench.settle(3)
    bench.offset += LATER
    ready = await bench.until(ready_says(bench, Reason.QUOTA_EXCEEDED))
    assert "exceeded quota: no-pods" in ready["message"]


async def test_an_account_that_is_not_there_is_told(bench: Bench) -> None:
    template = {"serviceAccountName": "nobody"}
    await bench.apply("a", rollout=DEADLINE, template=template)
    await bench.settle(3)
    bench.offset += LATER
    ready = await bench.until(ready_says(bench, Reason.FORBIDDEN))
    assert 'serviceaccount "nobody" not found' in ready["message"]


async def test_a_store_whose_claim_is_not_there_is_told(bench: Bench) -> None:
    bench.unready.add("a")
    await bench.apply("a", rollout=DEADLINE)
    await bench.until(has_pods(bench))
    bench.offset += LATER
    ready = await bench.until(ready_says(bench, Reason.STORE_NOT_FOUND))
    assert 'persistentvolumeclaim "fettle-store" not found' in ready["message"]
    assert "create the claim" in ready["message"]


def volume_on(namespace: str, node: str) -> tuple[Object, Object]:
    """A volume on the disk of one node, and the store's claim bound to it."""
    name = f"{namespace}-volume"
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    volume = {
        "capacity": {"storage": "1Mi"},
        "local": {"path": "/nowhere"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        "claimRef": {"namespace": namespace, "name": "fettle-store"},
    }
    claim = {"volumeName": name, "resources": {"requests": {"storage": "1Mi"}}}
    place = {"namespace": namespace, "name": "fettle-store"}
    return (
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {**common, **volume}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": place, "spec": {**common, **claim}},
    )


async def test_a_volume_that_only_another_node_reaches_is_not_shared(
    bench: Bench, client: Client, namespace: str
) -> None:
    volume, claim = volume_on(namespace, "some-other-node")
    await client.create(VOLUME, volume)
    await client.create(CLAIM, claim)
    try:
        async with fake_node(client, namespace) as node:
            here = {
                "nodeSelector": {"fettle.dev/test-node": node.name},
                "tolerations": [{"operator": "Exists"}],
            }
            bench.unready.add("a")
            await bench.apply("a", rollout=DEADLINE, template=here)
            await bench.until(has_pods(bench))
            bench.offset += LATER
            ready = await bench.until(ready_says(bench, Reason.STORE_NOT_SHARED))
        assert "use a ReadWriteMany claim" in ready["message"], ready
    finally:
        await client.delete(VOLUME, None, volume["metadata"]["name"])


async def test_a_volume_that_another_node_holds_is_told_from_the_pods_events(
    bench: Bench, client: Client, namespace: str
) -> None:
    bench.unready.add("a")
    await bench.apply("a", replicas=1, rollout=DEADLINE)
    (pod,) = await bench.until(has_pods(bench))
    about = {"kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    words = 'Multi-Attach error for volume "v": Volume is already used by pod(s) x'
    event = {"type": "Warning", "reason": "FailedAttachVolume", "message": words, "involvedObject": about}
    place = {"namespace": namespace, "name": "attach.1"}
    async with fake_node(client, namespace) as node:
        await node.take(pod)
        # The part of the attach controller, which needs a volume that can be attached.
        await client.create(EVENT, {"apiVersion": "v1", "kind": "Event", "metadata": place, **event})
        bench.offset += LATER
        ready = await bench.until(ready_says(bench, Reason.STORE_NOT_SHARED))
        await client.delete(MODEL_DEPLOYMENT, namespace, "digits")
        async with node.running():
            await eventually(nothing_left(client, namespace))
    assert "Multi-Attach" in ready["message"] and "ReadWriteMany" in ready["message"]


# ------------------------------------------------------------------------------------------------------------------------ spec


async def test_a_stored_spec_that_no_longer_parses_touches_nothing_that_serves(
    bench: Bench, client: Client, namespace: str
) -> None:
    await bench.apply("a")
    await bench.until(bench.is_ready)
    before = {one["metadata"]["uid"] for one in await bench.pods()}
    cache, settings = Cache(), Settings(watch_namespaces=(namespace,))
    for kind in WATCHED:
        await list_kind(client, cache, kind, settings)
    stored = cache.get(MODEL_DEPLOYMENT, namespace, "digits")
    assert stored is not None
    stored["spec"]["replicas"] = {"min": 1, "max": 3}  # as a newer version might have stored it
    context = Context(settings, client, cache, EventRecorder(client, bench.now), bench.now)
    assert await modeldeployment.reconcile(context, namespace, "digits") is None
    assert await bench.condition("Degraded") == ("True", Reason.INVALID_SPEC)
    assert await bench.condition("Ready") == ("True", Reason.SERVING), "what serves is not touched"
    assert {one["metadata"]["uid"] for one in await bench.pods()} == before
