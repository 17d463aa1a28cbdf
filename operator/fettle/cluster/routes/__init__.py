"""The objects that route traffic, of every traffic provider: one module a provider, which answers what `base.py: RouteObjects` asks.

A line here registers it. Objects of a provider that the spec asks for no more are found by their label as well, and go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from fettle.api.base import MODEL_DEPLOYMENT_LABEL
from fettle.api.modeldeployment import TrafficProvider
from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.kinds import Object, ResourceKind
from fettle.cluster.owner import owned_by
from fettle.cluster.routes import replicas
from fettle.cluster.routes.base import ROUTES_LABEL, RouteObjects
from fettle.plan.rollout.state import Routes

ROUTE_OBJECTS: Mapping[TrafficProvider, RouteObjects] = {
    TrafficProvider.REPLICAS: replicas,
}

Routing = Mapping[ResourceKind, Sequence[Object]]
"""The objects that route for one ModelDeployment, by kind."""


def known(cache: Cache, owner: Object) -> Routing:
    """What the cache holds."""
    uid = owner["metadata"]["uid"]
    return {kind: _routing(cache.owned(kind, uid), uid) for kind in _kinds()}


async def read(client: Client, cache: Cache, owner: Object) -> Routing:
    """What the API server holds; the cache has it afterwards. Raises ClusterError."""
    metadata, routing = owner["metadata"], dict[ResourceKind, Sequence[Object]]()
    labels = f"{MODEL_DEPLOYMENT_LABEL}={metadata['name']}"
    for kind in _kinds():
        listed = (await client.list(kind, metadata["namespace"], labels=labels)).items
        for obj in listed:
            cache.put(kind, obj)
        routing[kind] = _routing(listed, metadata["uid"])
    return routing


def observe(provider: TrafficProvider, routing: Routing, now: datetime) -> Routes | None:
    """What is routed now, as the objects of `provider` tell."""
    objects = [obj for _, obj in _objects(routing) if obj["metadata"]["labels"][ROUTES_LABEL] == provider]
    return ROUTE_OBJECTS[provider].observe(objects, now)


def render(
    provider: TrafficProvider, owner: Object, weights: Mapping[str, int], revisions: Collection[str]
) -> list[tuple[ResourceKind, Object]]:
    """The objects that route percent of the traffic by revision, in the order of their writing. `revisions` are all that have pods."""
    objects = ROUTE_OBJECTS[provider]
    kinds = {(kind.api_version, kind.kind): kind for kind in objects.kinds}
    return [
        (kinds[body["apiVersion"], body["kind"]], _labelled(body, provider))
        for body in objects.render(owner, weights, revisions)
    ]


def current(routing: Routing, kind: ResourceKind, body: Object) -> Object | None:
    """The object of that name as it is, or None."""
    return next((obj for obj in routing.get(kind, ()) if obj["metadata"]["name"] == body["metadata"]["name"]), None)


def left_over(routing: Routing, rendered: Iterable[tuple[ResourceKind, Object]]) -> list[tuple[ResourceKind, Object]]:
    """What is there and is not rendered any more."""
    kept = {(kind, body["metadata"]["name"]) for kind, body in rendered}
    return [(kind, obj) for kind, obj in _objects(routing) if (kind, obj["metadata"]["name"]) not in kept]


def _labelled(body: Object, provider: TrafficProvider) -> Object:
    metadata = body["metadata"]
    return {**body, "metadata": {**metadata, "labels": {**metadata["labels"], ROUTES_LABEL: provider.value}}}


def _kinds() -> list[ResourceKind]:
    return list(dict.fromkeys(kind for objects in ROUTE_OBJECTS.values() for kind in objects.kinds))


def _objects(routing: Routing) -> Iterator[tuple[ResourceKind, Object]]:
    return ((kind, obj) for kind, objects in routing.items() for obj in objects)


def _routing(objects: Sequence[Object], uid: str) -> list[Object]:
    return [obj for obj in objects if owned_by(obj, uid) and ROUTES_LABEL in (obj["metadata"].get("labels") or {})]
