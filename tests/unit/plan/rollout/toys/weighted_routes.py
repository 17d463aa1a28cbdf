"""The objects of the toy provider: a Service a revision, and one whose external name says the weights, as `<revision>-<percent>.`...

Whoever carries the traffic writes into its status which generation is in force.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from fettle.cluster.kinds import MODEL_DEPLOYMENT, SERVICE, Object
from fettle.cluster.owner import child
from fettle.cluster.serving import selector
from fettle.plan.rollout.state import Routes

kinds = (SERVICE,)


def render(owner: Object, weights: Mapping[str, int], revisions: Collection[str]) -> Sequence[Object]:
    name = owner["metadata"]["name"]

    def service(end: str, spec: Object) -> Object:
        return {**child(SERVICE, MODEL_DEPLOYMENT, owner, f"{name}-{end}", selector(name)), "spec": spec}

    backends = [
        service(revision, {"selector": selector(name, revision), "ports": [{"name": "http", "port": 8080}]})
        for revision in sorted(revisions)
    ]
    told = ".".join(f"{revision}-{percent}" for revision, percent in sorted(weights.items()))
    return (*backends, service("route", {"type": "ExternalName", "externalName": told}))


def observe(objects: Sequence[Object], now: datetime) -> Routes:
    route = next((obj for obj in objects if obj["spec"].get("type") == "ExternalName"), None)
    if route is None:
        return Routes({}, settled=False)
    parts = [part.rpartition("-") for part in route["spec"]["externalName"].split(".")]
    in_force = (route.get("status") or {}).get("observedGeneration")
    weights = {revision: int(percent) for revision, _, percent in parts}
    return Routes(weights, settled=in_force == route["metadata"]["generation"])
