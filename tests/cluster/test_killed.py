"""The operator killed after each of its API writes 1..n, or two of them at once: a run and a rollout come to the same end as undisturbed."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.cluster.killed import (
    NAMESPACE,
    OF_A_ROLLOUT,
    MortalBench,
    MortalClient,
    RunBench,
    TwoLeaders,
    new_namespace,
    outcome_of,
)
from tests.cluster.rollout_bench import Bench

from fettle.cluster.client import Client
from fettle.settings import Settings

TOGETHER = 8  # stories that are played at once, each in its own namespace
EVERY = int(os.environ.get("FETTLE_TEST_KILLS_EVERY", "12"))  # 1: `make test-kills`

Story = Callable[[MortalClient, Client, str], Awaitable[Any]]


async def a_run(operator: MortalClient, user: Client, namespace: str) -> Any:
    """A model is prepared, built, measured and published."""
    bench = RunBench(operator, user, namespace)
    await bench.apply()
    await bench.to_the_end()
    return await bench.outcome()


async def a_retry(operator: MortalClient, user: Client, namespace: str) -> Any:
    """A model is not there; it is brought, and the run is tried again."""
    bench = RunBench(operator, user, namespace, missing=True)
    await bench.apply()
    await bench.to_the_end("SourceNotFound")
    await bench.retry()
    await bench.to_the_end()
    return await bench.outcome()


async def a_rollout(operator: MortalClient, user: Client, namespace: str) -> Any:
    """a serves, b is promoted, c answers with errors and is rolled back."""
    settings = Settings(server_image="localhost/server:1")
    return await told(MortalBench(operator, namespace, settings, user=user, kinds=OF_A_ROLLOUT))


async def told(bench: Bench) -> Any:
    """The story of `a_rollout`, with the operators of `bench`."""
    bench.errors["c"] = 1.0

    async def only(letter: str) -> bool:
        return set(await bench.deployments()) == {letter} and await bench.stable() == letter and await bench.is_ready()

    async def failed() -> Any:
        return (await bench.status()).get("failedRevision")

    try:
        await bench.apply("a")
        await bench.until(lambda: only("a"), 400)
        await bench.apply("b")
        await bench.until(lambda: only("b"), 400)
        await bench.apply("c")
        await bench.until(failed, 400)
        await bench.until(lambda: only("b"), 400)
        await bench.settle(3)
        return await outcome_of(bench)
    finally:
        await bench.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("story", [a_run, a_retry, a_rollout])
async def test_killed_after_any_write_it_comes_to_the_same_end(client: Client, kubeconfig: str, story: Story) -> None:
    prefix, gate = f"test-{uuid.uuid4().hex[:6]}", asyncio.Semaphore(TOGETHER)

    async def play(kill_after: int | None, lives: int = 1) -> tuple[Any, int]:
        async with gate:
            namespace = await new_namespace(client, f"{prefix}-{uuid.uuid4().hex[:6]}")
            operator = await MortalClient.connect(kubeconfig)
            operator.kill_after, operator.lives = kill_after, lives
            try:
                return await story(operator, client, namespace), operator.sent
            finally:
                await operator.close()
                await client.delete(NAMESPACE, None, namespace)

    undisturbed, writes = await play(None)
    kills = [(after, 1) for after in range(0, writes, EVERY)]
    kills.append((2, 1_000_000))  # no process manages more than two writes
    played = await asyncio.gather(*(play(*kill) for kill in kills))
    for (after, lives), (outcome, _) in zip(kills, played, strict=True):
        assert outcome == undisturbed, f"killed after write {after} of {writes}, {lives} times"


async def test_two_operators_that_both_lead_come_to_the_same_end_as_one(
    client: Client, kubeconfig: str, namespace: str
) -> None:
    first, second = await Client.connect(kubeconfig), await Client.connect(kubeconfig)
    settings = Settings(server_image="localhost/server:1")
    alone = await new_namespace(client, f"{namespace}-alone")
    try:
        both = TwoLeaders(first, namespace, settings, user=client, kinds=OF_A_ROLLOUT, second=second)
        one = Bench(await MortalClient.connect(kubeconfig), alone, settings, user=client, kinds=OF_A_ROLLOUT)
        together, undisturbed = await asyncio.gather(told(both), told(one))
        await one.client.close()
        assert together == undisturbed
    finally:
        await first.close()
        await second.close()
        await client.delete(NAMESPACE, None, alone)
