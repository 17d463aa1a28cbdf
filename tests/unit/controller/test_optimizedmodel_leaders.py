"""Two operators that both believe to lead, on one OptimizedModel: whoever looks or acts first, it comes to the end that one alone comes to."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from kubernetes.aio.client import ApiClient
from tests.api_server import serving
from tests.unit.controller.cluster_world import ClusterWorld

from fettle.cluster.client import Client
from fettle.cluster.kinds import Object
from fettle.errors import ConflictError

Settle = Callable[[], Awaitable[None]]
Story = Callable[[ClusterWorld, Settle], Awaitable[None]]


async def a_run(world: ClusterWorld, settle: Settle) -> None:
    world.submit()
    await settle()


async def a_retry(world: ClusterWorld, settle: Settle) -> None:
    world.broken = "build"
    world.submit()
    await settle()
    world.broken = ""
    world.order_retry("one")
    await settle()


async def a_lost_answer(world: ClusterWorld, settle: Settle) -> None:
    world.lose_logs = 1
    world.submit()
    await settle()


async def a_second_spec(world: ClusterWorld, settle: Settle) -> None:
    world.submit()
    await settle()
    world.submit(constraints={"accuracy": {"maxDrop": 0.02}, "size": {"maxBytes": 500}})
    await settle()


@asynccontextmanager
async def two_operators() -> AsyncIterator[tuple[ClusterWorld, ClusterWorld]]:
    async with serving() as (server, client):
        other = Client(ApiClient(client.configuration))
        try:
            yield ClusterWorld(server, client), ClusterWorld(server, other)
        finally:
            await other.close()


async def act(world: ClusterWorld) -> float | None:
    """A pass on what this operator saw last. A conflict is looked at again."""
    try:
        return await world.reconciler.reconcile(world.context, "team", "digits")
    except ConflictError:
        return 0.0


async def both_act(first: ClusterWorld, second: ClusterWorld) -> list[float]:
    """Both saw the same, and act at once."""
    await asyncio.gather(first.sync(), second.sync())
    waits = await asyncio.gather(act(first), act(second))
    return [wait for wait in waits if wait is not None]


async def disorder(first: ClusterWorld, second: ClusterWorld, chance: random.Random) -> None:
    """For a while they look and act in any order, each as often on what it saw long ago, and pods come to their end in between."""
    for _ in range(chance.randrange(30)):
        one = chance.choice((first, second))
        match chance.randrange(4):
            case 0:
                await one.sync()
            case 1:
                await act(one)
            case 2:
                await asyncio.gather(act(first), act(second))
            case _:
                first.work()


async def settle_both(first: ClusterWorld, second: ClusterWorld, chance: random.Random) -> None:
    await disorder(first, second, chance)
    for _ in range(60):
        waits = await both_act(first, second)
        if not waits:
            return
        first.work()
        first.now = second.now = first.now + timedelta(seconds=min(*waits, 60.0))
    raise AssertionError(f"not settled: {first.ready()}")


def outcome(world: ClusterWorld) -> Object:
    """What must be the same: status without its times; each Job with its attempt; the claims."""
    stored = dict(world.model()["status"])
    stored.pop("startedAt")
    stored["conditions"] = [{**one, "lastTransitionTime": ""} for one in stored["conditions"]]
    labels = [job["metadata"]["labels"] for job in world.kind("Job")]
    return {
        "status": stored,
        "jobs": sorted((one["fettle.dev/stage"], one["fettle.dev/attempt"]) for one in labels),
        "claims": [claim["metadata"]["name"] for claim in world.kind("PersistentVolumeClaim")],
    }


ALONE: dict[Story, tuple[Object, list[str]]] = {}


async def alone(story: Story) -> tuple[Object, list[str]]:
    """What one operator comes to and tells: played once, for it is always the same."""
    if story not in ALONE:
        async with serving() as (server, client):
            world = ClusterWorld(server, client)
            await story(world, world.settle)
            ALONE[story] = outcome(world), world.events()
    return ALONE[story]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("story", [a_run, a_retry, a_lost_answer, a_second_spec])
async def test_two_operators_that_both_lead_come_to_the_same_end_as_one(story: Story, seed: int) -> None:
    chance = random.Random(f"{story.__name__} {seed}")
    wanted, events = await alone(story)
    async with two_operators() as (first, second):
        await story(first, lambda: settle_both(first, second, chance))
        assert outcome(first) == wanted
        assert not [path for method, path in first.server.requests if method == "DELETE"], "no Job was made in vain"
        # A stage that was over before either had written it is not told, as it is not after a restart.
        assert Counter(first.events()) <= Counter(events), "nothing is told twice"
        assert first.events()[-1] == events[-1]
        first.server.requests.clear()
        assert await both_act(first, second) == []
        assert first.server.writes() == [], "at rest neither writes"


async def test_an_operator_that_still_sees_the_old_spec_neither_makes_nor_deletes_a_job_of_it() -> None:
    async with two_operators() as (late, current):
        late.submit()
        await late.look()
        late.submit(source={"uri": "pvc://models/other.onnx"})
        await current.look()
        jobs = current.kind("Job")
        assert len(jobs) == 1
        for _ in range(3):
            await act(late)
        assert [job["metadata"]["uid"] for job in current.kind("Job")] == [job["metadata"]["uid"] for job in jobs]
        await settle_both(late, current, random.Random(0))
        assert current.ready()["reason"] == "Published"
        assert current.model()["status"]["observedGeneration"] == current.model()["metadata"]["generation"]
