"""What the operator says of itself at /metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from fettle.api.conditions import READY, RECONCILING, STALLED
from fettle.cluster.kinds import Object, holds

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

RECONCILES = Counter("fettle_reconciles", "Number of reconciliations.", ["kind"], registry=REGISTRY)
RECONCILE_SECONDS = Histogram(
    "fettle_reconcile_seconds",
    "Duration of a reconciliation, in seconds.",
    ["kind"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
    registry=REGISTRY,
)
ERRORS = Counter("fettle_reconcile_errors", "Number of failed reconciliations.", ["kind", "reason"], registry=REGISTRY)
QUEUE_DEPTH = Gauge("fettle_queue_depth", "Number of objects waiting for a worker.", registry=REGISTRY)
LEADER = Gauge("fettle_leader", "1 on the leader, 0 on standbys.", registry=REGISTRY)
API_WRITES = Gauge("fettle_api_writes", "Number of requests to the API server that write.", ["kind"], registry=REGISTRY)
API_REQUESTS = Gauge(
    "fettle_api_requests",
    "Number of requests to the API server, by RBAC verb and resource, without watches.",
    ["verb", "resource"],
    registry=REGISTRY,
)
OBJECTS = Gauge("fettle_objects", "Number of objects in the cache.", ["kind"], registry=REGISTRY)
CONDITIONS = (READY, RECONCILING, STALLED)
CONDITION_OBJECTS = Gauge(
    "fettle_condition_objects",
    "Number of objects whose condition is True. An object that is Stalled has failed and needs a person.",
    ["kind", "condition"],
    registry=REGISTRY,
)


ROLLBACKS = Gauge(
    "fettle_rollbacks_in_force",
    "Number of ModelDeployments that a rollback-to keeps from the revision that their spec asks for.",
    registry=REGISTRY,
)


def rolled_back(objects: Iterable[Object]) -> int:
    """How many of the ModelDeployments have a rollback in force."""
    return sum(bool((obj.get("status") or {}).get("rollback")) for obj in objects)


def with_condition(objects: Iterable[Object], condition: str) -> int:
    """How many of the objects have that condition with the status True. Whatever else their status holds is not looked at."""
    return sum(holds(obj, condition) for obj in objects)
