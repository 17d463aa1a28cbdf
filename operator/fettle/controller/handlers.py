"""kopf's handlers. They keep the cache up to date and put keys into the queue; nothing else happens here.

kopf writes nothing into users' objects with these: only `on.event` handlers, no peering, no posting, no scanning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import kopf

from fettle.api.base import MANAGED_LABEL
from fettle.cluster.cache import Cache, number
from fettle.cluster.client import Client
from fettle.cluster.kinds import CHILDREN, CLAIM, LEASE, MODEL_DEPLOYMENT, OPTIMIZED_MODEL, OWN, Object, ResourceKind
from fettle.cluster.owner import Key, key_of, owner_key

logger = logging.getLogger(__name__)

CHILD_SELECTOR = f"{MANAGED_LABEL}=true"


def keys_touched(cache: Cache, kind: ResourceKind, obj: Object) -> Iterable[Key]:
    """Which of our objects have to be looked at, now that `obj` changed."""
    if kind in OWN:
        yield key_of(kind, obj)
        if kind is OPTIMIZED_MODEL:
            yield from followers(cache, obj)
    elif kind is CLAIM:  # a store's claim belongs to nobody, and everybody of its namespace may wait for it
        for model in cache.all(OPTIMIZED_MODEL, obj["metadata"]["namespace"]):
            yield key_of(OPTIMIZED_MODEL, model)
    elif (key := owner_key(obj)) is not None:
        yield key


def followers(cache: Cache, model: Object) -> Iterable[Key]:
    """ModelDeployments that follow an OptimizedModel."""
    name = model["metadata"]["name"]
    for deployment in cache.all(MODEL_DEPLOYMENT, model["metadata"]["namespace"]):
        reference = ((deployment.get("spec") or {}).get("model") or {}).get("ref") or {}
        if reference.get("name") == name:
            yield key_of(MODEL_DEPLOYMENT, deployment)


class Feed:
    """Takes watch events in: the cache first, then the queue."""

    def __init__(self, cache: Cache, enqueue: Callable[[Key], None], serves: Callable[[str], bool]) -> None:
        self._cache = cache
        self._enqueue = enqueue
        self._serves = serves

    def take(self, kind: ResourceKind, event: Mapping[str, Any]) -> None:
        """One event of kopf's: `type` None (listed), ADDED, MODIFIED or DELETED, and the `object`."""
        raw = event["object"]
        metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
        obj = {**raw, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
        if not self._serves(metadata["namespace"]):
            return
        if event["type"] == "DELETED":
            # Deleted, or out of sight: the watch says the same of an object whose label was taken off.
            version = number(metadata.get("resourceVersion"))
            changed = self._cache.drop(kind, metadata["namespace"], metadata["name"], metadata["uid"], version)
        else:
            changed = self._cache.put(kind, obj)
        # The echo of our own write changes nothing, and still a pass may wait for it: a key in the queue costs little.
        if changed or event["type"] is not None:
            self.touch(kind, obj)

    def touch(self, kind: ResourceKind, obj: Object) -> None:
        """Enqueue whatever `obj` concerns."""
        for key in keys_touched(self._cache, kind, obj):
            self._enqueue(key)


def registry(feed: Feed, client: Client, on_lease: Callable[[Object], None]) -> kopf.OperatorRegistry:
    """kopf's registry with our handlers and nothing else in it."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers, id="login")
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection(client)

    def watch(kind: ResourceKind) -> None:
        @kopf.on.event(kind.group, kind.version, kind.plural, registry=handlers, id=kind.plural)
        async def on_event(event: kopf.RawEvent, **_: Any) -> None:
            feed.take(kind, event)

    for kind in (*OWN, *CHILDREN):
        watch(kind)

    @kopf.on.event(LEASE.group, LEASE.version, LEASE.plural, registry=handlers, id=LEASE.plural)
    async def on_lease_event(event: kopf.RawEvent, **_: Any) -> None:
        on_lease({**event["object"]})

    return handlers


def kopf_settings(lease_name: str) -> kopf.OperatorSettings:
    """kopf as a watcher: it posts nothing, scans nothing, has no peers; children and our Lease are selected on the server's side."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # CRDs and namespaces are not watched, so no rights to them are needed
    settings.queueing.worker_limit = None  # a worker keeps its slot while idle: any limit starves the others
    settings.queueing.idle_timeout = 1.0
    for kind in CHILDREN:
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = CHILD_SELECTOR
    settings.watching.field_selectors[LEASE.group, LEASE.version, LEASE.plural] = f"metadata.name={lease_name}"
    return settings


async def connection(client: Client) -> kopf.ConnectionInfo:
    """The client's own host and credentials, for kopf. Asked again after each 401, so a rotated token is picked up."""
    configuration = client.configuration
    header = await configuration.get_api_key_with_prefix("BearerToken") or ""
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=header.split(" ", 1)[-1].strip() or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
    )
