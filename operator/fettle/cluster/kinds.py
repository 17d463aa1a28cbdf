"""The kinds of Kubernetes objects that Fettle reads or writes: one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fettle.api.base import GROUP, VERSION

Object = dict[str, Any]
"""A Kubernetes object as the API server gives it."""

DISRUPTION = (
    "DisruptionTarget"  # the condition of a pod that is evicted or preempted, or whose node is drained or tainted
)


def held_condition(obj: Object, kind: str) -> Object | None:
    """The condition of that type in an object's status, if its status is True."""
    for condition in (obj.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == "True":
            held: Object = condition
            return held
    return None


def holds(obj: Object, kind: str) -> bool:
    """Whether the object has a condition of that type with the status True."""
    return held_condition(obj, kind) is not None


@dataclass(frozen=True)
class ResourceKind:
    """A kind, and where the API server keeps it."""

    group: str  # "" = core
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As it stands in an object's `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Path on the API server: of all namespaces, of one, of an object or of its subresource."""
        parts = ["/apis", self.group] if self.group else ["/api"]
        parts.append(self.version)
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/".join(parts)


OPTIMIZED_MODEL = ResourceKind(GROUP, VERSION, "optimizedmodels", "OptimizedModel")
MODEL_DEPLOYMENT = ResourceKind(GROUP, VERSION, "modeldeployments", "ModelDeployment")
JOB = ResourceKind("batch", "v1", "jobs", "Job")
POD = ResourceKind("", "v1", "pods", "Pod")
DEPLOYMENT = ResourceKind("apps", "v1", "deployments", "Deployment")
CONTROLLER_REVISION = ResourceKind("apps", "v1", "controllerrevisions", "ControllerRevision")
SERVICE = ResourceKind("", "v1", "services", "Service")
POD_DISRUPTION_BUDGET = ResourceKind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
SECRET = ResourceKind("", "v1", "secrets", "Secret")
CLAIM = ResourceKind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
LEASE = ResourceKind("coordination.k8s.io", "v1", "leases", "Lease")
EVENT = ResourceKind("", "v1", "events", "Event")
NODE = ResourceKind("", "v1", "nodes", "Node")

OWN = (OPTIMIZED_MODEL, MODEL_DEPLOYMENT)
CHILDREN = (JOB, POD, DEPLOYMENT, CONTROLLER_REVISION, SERVICE, POD_DISRUPTION_BUDGET, CLAIM)
WATCHED = (*OWN, *CHILDREN)
"""What the cache holds: our own kinds whole, children by the label `fettle.dev/managed=true`."""
