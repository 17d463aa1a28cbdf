"""PersistentVolumeClaims: which of them a task needs, and the default store's own."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fettle.api.base import MANAGED_LABEL
from fettle.api.reasons import Reason
from fettle.api.task import AnyTask, PrepareTask
from fettle.api.uris import Address, claim_of
from fettle.cluster.client import Client
from fettle.cluster.kinds import CLAIM, Object
from fettle.errors import ClusterError, ExistsError
from fettle.settings import Settings

logger = logging.getLogger(__name__)


def claims_of(task: AnyTask) -> dict[str, bool]:
    """Claims a task mounts -> whether it may only read. The store is written to; a claim that is the store as well is too."""
    claims = {claim: True for address in read_from(task).values() if (claim := claim_of(address.uri)) is not None}
    store = claim_of(task.store)
    return {**claims, store: False} if store is not None else claims


def read_from(task: AnyTask) -> dict[str, Address]:
    """What a task reads beside the store: field of the spec -> address."""
    return task.addresses() if isinstance(task, PrepareTask) else {}


def render_store(settings: Settings, namespace: str, name: str) -> Object:
    """The default store's claim. It has no owner: artifacts outlive what made them."""
    spec: Object = {
        "accessModes": list(settings.store_access_modes),
        "resources": {"requests": {"storage": settings.store_size}},
    }
    if settings.store_storage_class is not None:
        spec["storageClassName"] = settings.store_storage_class
    return {
        "apiVersion": CLAIM.api_version,
        "kind": CLAIM.kind,
        "metadata": {"namespace": namespace, "name": name, "labels": {MANAGED_LABEL: "true"}},
        "spec": spec,
    }


async def require_claims(client: Client, settings: Settings, namespace: str, task: AnyTask) -> None:
    """Make sure that each claim of `task` is there; the default store's is created where that is allowed, never changed.

    Raises ClusterError (retryable) with StoreNotFound, SourceNotFound or DataNotFound, or why it could not be created.
    """
    store = claim_of(task.store)
    for name in claims_of(task):
        if await client.get(CLAIM, namespace, name) is not None:
            continue
        if name == store and name == settings.default_store_claim and settings.store_create:
            await _create_store(client, settings, namespace, name)
            continue
        reason, what = _what_for(task, name)
        raise ClusterError(
            f"{what} is on PersistentVolumeClaim {name}, which does not exist in namespace {namespace}: create it, or correct the URI",
            reason=reason,
            retryable=True,
        )


async def _create_store(client: Client, settings: Settings, namespace: str, name: str) -> None:
    try:
        await client.create(CLAIM, render_store(settings, namespace, name))
        logger.info("created the default store's claim %s/%s", namespace, name)
    except ExistsError:
        logger.debug("claim %s/%s was created in the meantime", namespace, name)


def _what_for(task: AnyTask, claim: str) -> tuple[Reason, str]:
    if claim == claim_of(task.store):
        return Reason.STORE_NOT_FOUND, "the store"
    field = next(field for field, address in read_from(task).items() if claim_of(address.uri) == claim)
    return Reason.SOURCE_NOT_FOUND if field.startswith("spec.source.") else Reason.DATA_NOT_FOUND, field


def mounts(claims: Iterable[str]) -> dict[str, str]:
    """Where each claim is mounted: what FETTLE_MOUNTS says."""
    return {claim: f"/mnt/claims/{claim}" for claim in claims}
