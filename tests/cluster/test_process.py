"""The operator's process: it lists, leads, hands over and goes."""

from __future__ import annotations

import signal

import pytest
from tests.cluster.operator_process import eventually, operator

from fettle.cluster.client import Client
from fettle.cluster.kinds import LEASE
from fettle.errors import ConflictError


async def test_one_replica_leads_is_ready_and_goes_cleanly(kubeconfig: str, client: Client, namespace: str) -> None:
    async with operator(kubeconfig, namespace, identity="first") as first:
        await eventually(first.leads)
        assert (await first.get("/healthz")).text == "ok"
        lease = await client.get(LEASE, namespace, "fettle")
        assert lease is not None and lease["spec"]["holderIdentity"] == "first"
        assert await first.stop() == 0
    lease = await client.get(LEASE, namespace, "fettle")
    assert lease is not None and lease["spec"]["holderIdentity"] == "", "a clean stop gives the Lease up"


# A Lease of the shortest duration that the chart's README speaks of; and one that runs out only after the test has failed.
SHORT = {"lease_duration_seconds": 4, "lease_renew_seconds": 1, "lease_retry_seconds": 0.5}
LONG = {"lease_duration_seconds": 600, "lease_renew_seconds": 1, "lease_retry_seconds": 0.5}


@pytest.mark.parametrize(
    ("how", "settings"), [(signal.SIGKILL, SHORT), (signal.SIGTERM, LONG)], ids=["killed", "a clean stop"]
)
async def test_a_standby_is_ready_and_takes_over_when_the_leader_goes(
    kubeconfig: str, client: Client, namespace: str, how: signal.Signals, settings: dict[str, float]
) -> None:
    async with (
        operator(kubeconfig, namespace, identity="first", **settings) as first,
        operator(kubeconfig, namespace, identity="second", **settings) as second,
    ):

        async def one_leads() -> bool:
            return await first.leads() or await second.leads()

        await eventually(one_leads)
        await eventually(first.answers)
        await eventually(second.answers)
        leader, standby = (first, second) if await first.leads() else (second, first)
        assert (await standby.get("/readyz")).status_code == 200
        assert (await standby.get("/healthz")).text == "ok"
        assert not await standby.leads(), "two leaders"
        await leader.stop(how)
        await eventually(standby.leads)


async def test_a_replica_whose_lease_was_taken_ends_at_once(kubeconfig: str, client: Client, namespace: str) -> None:
    async with operator(kubeconfig, namespace, identity="first", lease_renew_seconds=1) as first:
        await eventually(first.leads)

        async def taken() -> bool:
            lease = await client.get(LEASE, namespace, "fettle")
            assert lease is not None
            try:
                await client.replace(LEASE, {**lease, "spec": {**lease["spec"], "holderIdentity": "thief"}})
            except ConflictError:
                return False  # it renewed in between
            return True

        await eventually(taken)
        assert await first.ended() == 1
        assert "lost the Lease" in first.text()
    lease = await client.get(LEASE, namespace, "fettle")
    assert lease is not None and lease["spec"]["holderIdentity"] == "thief", "what was lost must not be given away"
