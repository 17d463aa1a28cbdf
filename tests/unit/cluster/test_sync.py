"""Whole lists, on a stand-in API server: what is listed is looked at, whatever went wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.api_server import ApiServer, serving, status

from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.kinds import JOB, MODEL_DEPLOYMENT, OPTIMIZED_MODEL, Object, ResourceKind
from fettle.cluster.sync import list_until_done, resync
from fettle.settings import Settings

Api = tuple[ApiServer, Client]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving() as (server, client):
        for kind, name in ((OPTIMIZED_MODEL, "digits"), (MODEL_DEPLOYMENT, "serves")):
            server.store(kind.path("team", name), {"kind": kind.kind, "metadata": {}, "spec": {}})
        yield server, client


class Touched:
    """Names of what was touched."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, kind: ResourceKind, obj: Object) -> None:
        self.names.append(obj["metadata"]["name"])


async def test_a_list_that_fails_on_the_way_leaves_no_object_unseen(api: Api) -> None:
    server, client = api
    touched, failures = Touched(), iter([status(500, "InternalError")])
    server.refuse = lambda method, path: next(failures, None) if path.endswith(f"/{JOB.plural}") else None
    await list_until_done(client, Cache(), Settings(), touched, retry=0.01)
    assert touched.names == ["digits", "serves"]


async def test_each_resync_looks_at_every_object_although_nothing_changed(api: Api) -> None:
    _, client = api
    cache, touched = Cache(), Touched()
    await list_until_done(client, cache, Settings(), touched, retry=0.01)
    task = asyncio.create_task(resync(client, cache, Settings(), touched, first=0.0, every=0.0))
    async with asyncio.timeout(60):
        while len(touched.names) < 6:  # noqa: ASYNC110  until it has looked twice more, which nothing tells
            await asyncio.sleep(0.001)
    task.cancel()
    assert touched.names[:6] == ["digits", "serves"] * 3
