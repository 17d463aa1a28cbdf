"""A replica as a whole, on a stand-in API server."""

from __future__ import annotations

import pytest
from tests.api_server import serving

from fettle.cluster.kinds import OPTIMIZED_MODEL
from fettle.controller.process import Process
from fettle.errors import ClusterError
from fettle.settings import Settings

MODEL = {"metadata": {"namespace": "team", "name": "digits"}, "spec": {}}


async def test_a_replica_writes_only_while_it_leads() -> None:
    async with serving() as (server, client):
        process = Process(Settings(lease_renew_seconds=0.01), client, {})
        with pytest.raises(ClusterError, match="Lease has expired"):
            await client.create(OPTIMIZED_MODEL, MODEL)
        await process.elector.acquire()
        await client.create(OPTIMIZED_MODEL, MODEL)
        await process.elector.release()
        with pytest.raises(ClusterError, match="Lease has expired"):
            await client.delete(OPTIMIZED_MODEL, "team", "digits")
        assert OPTIMIZED_MODEL.path("team", "digits") in server.objects
