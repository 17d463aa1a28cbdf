"""Whole lists into the cache: once before the first decision, then now and then for what the watches never told.

After each of them every object of ours is looked at, changed or not: a pass that was lost, for whatever reason, is made good."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fettle.api.base import MANAGED_LABEL
from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.kinds import OWN, WATCHED, Object, ResourceKind
from fettle.errors import ClusterError
from fettle.settings import Settings

logger = logging.getLogger(__name__)

Touch = Callable[[ResourceKind, Object], None]


async def list_kind(client: Client, cache: Cache, kind: ResourceKind, settings: Settings) -> None:
    """List one kind into the cache, in the namespaces that are served."""
    labels = "" if kind in OWN else f"{MANAGED_LABEL}=true"
    for namespace in settings.watch_namespaces or (None,):
        listing = await client.list(kind, namespace, labels=labels)
        items = [item for item in listing.items if settings.serves(item["metadata"]["namespace"])]
        cache.replace(kind, items, listing.resource_version, namespace)
    cache.mark_listed(kind)


async def list_all(client: Client, cache: Cache, settings: Settings, touch: Touch) -> None:
    """List every kind, then touch every object of ours. Raises ClusterError when a kind cannot be listed."""
    for kind in WATCHED:
        await list_kind(client, cache, kind, settings)
    for kind in OWN:
        for obj in cache.all(kind):
            touch(kind, obj)


async def list_until_done(client: Client, cache: Cache, settings: Settings, touch: Touch, retry: float) -> None:
    """`list_all`, again every `retry` seconds until it succeeds: the CRDs may not be there yet, or the API server not up."""
    while not cache.synced:
        try:
            await list_all(client, cache, settings, touch)
        except ClusterError as error:
            logger.warning("list failed: %s; retrying in %.0f s", error, retry)
            await asyncio.sleep(retry)


async def resync(client: Client, cache: Cache, settings: Settings, touch: Touch, *, first: float, every: float) -> None:
    """List everything after `first` seconds (what vanished between the first lists and the watches' begin) and then `every` so many."""
    pause = first
    while True:
        await asyncio.sleep(pause)
        try:
            await list_all(client, cache, settings, touch)
            pause = every
        except ClusterError as error:
            logger.warning("resync failed: %s", error)
            pause = min(every, 30.0)
