"""Ownership of objects: which object owns another, and writing only to objects that Fettle owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fettle.api.base import GROUP, MANAGED_LABEL, MODEL_DEPLOYMENT_LABEL, OPTIMIZED_MODEL_LABEL, canonical_digest
from fettle.api.reasons import Reason
from fettle.cluster.client import Client
from fettle.cluster.kinds import MODEL_DEPLOYMENT, OPTIMIZED_MODEL, OWN, Object, ResourceKind
from fettle.cluster.quantity import quantity
from fettle.errors import ClusterError, ConflictError

OWNER_ANNOTATION = f"{GROUP}/owner"  # "<Kind>/<name>" on pods, whose controller is a Job or ReplicaSet, not ours
APPLIED_ANNOTATION = f"{GROUP}/applied"  # digest of what was applied: tells when a field was taken out


class Key(NamedTuple):
    """The key of an object of one of our two kinds, as the queue holds it."""

    kind: str  # OptimizedModel or ModelDeployment
    namespace: str
    name: str


def key_of(kind: ResourceKind, obj: Object) -> Key:
    """The key of one of our own objects."""
    return Key(kind.kind, obj["metadata"]["namespace"], obj["metadata"]["name"])


def controller_of(obj: Object) -> Object | None:
    """The ownerReference that controls `obj`, or None."""
    references: Sequence[Object] = obj["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def owned_by(obj: Object, uid: str) -> bool:
    """Whether the object with `uid` controls `obj`. Only then may Fettle write to it."""
    reference = controller_of(obj)
    return reference is not None and reference["uid"] == uid


def terminating(obj: Object) -> bool:
    """Whether `obj` is being deleted."""
    return "deletionTimestamp" in obj["metadata"]


def owner_key(child: Object) -> Key | None:
    """The key of our object that `child` belongs to: by its controller, or by the annotation or label from its pod template."""
    metadata = child["metadata"]
    namespace = metadata["namespace"]
    reference = controller_of(child)
    if reference is not None and reference["apiVersion"].startswith(f"{GROUP}/"):
        return Key(reference["kind"], namespace, reference["name"])
    kind, _, name = (metadata.get("annotations") or {}).get(OWNER_ANNOTATION, "").partition("/")
    if name and kind in {own.kind for own in OWN}:
        return Key(kind, namespace, name)
    labels = metadata.get("labels") or {}
    for label, own in ((MODEL_DEPLOYMENT_LABEL, MODEL_DEPLOYMENT), (OPTIMIZED_MODEL_LABEL, OPTIMIZED_MODEL)):
        if label in labels:
            return Key(own.kind, namespace, labels[label])
    return None


def owner_reference(kind: ResourceKind, owner: Object) -> Object:
    """A controller ownerReference to `owner`. It never blocks the owner's deletion."""
    metadata = owner["metadata"]
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }


def child(
    kind: ResourceKind,
    owner_kind: ResourceKind,
    owner: Object,
    name: str,
    labels: Mapping[str, str],
    **metadata: Object,
) -> Object:
    """Kind and metadata of an object that `owner` controls, so that it is deleted together with it; `metadata` is additional metadata."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "namespace": owner["metadata"]["namespace"],
            "name": name,
            "labels": labels,
            **metadata,
            "ownerReferences": [owner_reference(owner_kind, owner)],
        },
    }


async def apply_owned(client: Client, kind: ResourceKind, desired: Object, current: Object | None) -> Object:
    """Update a child to `desired` (with its controller ownerReference) and return it. Nothing is sent if nothing differs.

    `current` is the cached child, or None. Raises ClusterError NameConflict if an object of that name belongs to something else (retryable
    if that object is about to be removed), and the client's errors.
    """
    metadata = desired["metadata"]
    owner = controller_of(desired)
    if owner is None:
        raise ValueError(f"{kind.kind} {metadata['name']} has no controller ownerReference")
    marked = _marked(desired)
    if current is None:
        current = await client.get(kind, metadata["namespace"], metadata["name"])
    if current is None:
        try:
            # Without force: whoever took the name in this very moment keeps it.
            return await client.apply(kind, marked, force=False)
        except ConflictError:
            current = await client.get(kind, metadata["namespace"], metadata["name"])
            if current is None:
                raise
    if not owned_by(current, owner["uid"]) or terminating(current):
        raise name_conflict(kind, current, owner)
    if covers(current, marked):
        return current
    guarded = {**marked, "metadata": {**marked["metadata"], "uid": current["metadata"]["uid"]}}
    return await client.apply(kind, guarded)


def name_conflict(kind: ResourceKind, obj: Object, owner: Object | None) -> ClusterError:
    """The error for a child whose name is in use by an object of something else. `owner`: a reference to the owner that needs the name.

    Retryable if the conflict resolves itself: the object is being deleted, or will be, because its owner was deleted and created again.
    """
    metadata, whose = obj["metadata"], controller_of(obj)
    holder = f"{whose['kind']} {whose['name']}" if whose else "nobody"
    left = whose is not None and owner is not None and _namesakes(whose, owner)
    going = terminating(obj) or left
    todo = "it is being deleted; waiting" if going else "delete or rename it, or rename this object"
    if left:
        holder = f"an earlier {holder}, which was deleted"
    return ClusterError(
        f"{kind.kind} {metadata['namespace']}/{metadata['name']} exists and is controlled by {holder}: {todo}",
        reason=Reason.NAME_CONFLICT,
        retryable=going,
    )


def _namesakes(reference: Object, other: Object) -> bool:
    """Whether two references are to different objects with the same name, of which only one still exists."""
    same = all(reference[key] == other[key] for key in ("apiVersion", "kind", "name"))
    return same and reference["uid"] != other["uid"]


def _marked(desired: Object) -> Object:
    """`desired` with the managed label, and with its own digest as an annotation."""
    metadata = desired["metadata"]
    digest = canonical_digest(desired)[:16]
    return {
        **desired,
        "metadata": {
            **metadata,
            "labels": {**(metadata.get("labels") or {}), MANAGED_LABEL: "true"},
            "annotations": {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: digest},
        },
    }


def covers(current: Any, desired: Any, *, amounts: bool = False) -> bool:
    """Whether `current` already has everything in `desired`. Fields that the API server added are ignored.

    `amounts`: the values are quantities, which may be stored in another notation. Elsewhere, text is compared as text: '1' differs from '1.0',
    and a digest such as 84e6440816313204 is not a number.
    """
    if desired in ("", None, False, 0, {}, [], ()):  # what the API server may drop on storing
        return current is None or current == desired or (isinstance(desired, dict) and isinstance(current, dict))
    if isinstance(desired, Mapping):
        return isinstance(current, Mapping) and all(
            covers(current.get(key), value, amounts=amounts or key in AMOUNTS) for key, value in desired.items()
        )
    if isinstance(desired, list | tuple):
        return (
            isinstance(current, list)
            and len(current) == len(desired)
            and all(
                covers(current_item, desired_item, amounts=amounts)
                for current_item, desired_item in zip(current, desired, strict=True)
            )
        )
    return current == desired or (amounts and _same_quantity(current, desired))


AMOUNTS = frozenset({"limits", "requests", "sizeLimit"})  # fields of what we write that hold quantities


def _same_quantity(current: Any, desired: Any) -> bool:
    """Whether two quantities are equal: '1000m' may be stored as '1'."""
    current_quantity, desired_quantity = quantity(current), quantity(desired)
    return current_quantity is not None and current_quantity == desired_quantity
