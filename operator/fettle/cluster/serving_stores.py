"""The stores of a serving pod: the artifact's, which only the init container reads, and that of the request log, which only the server writes."""

from __future__ import annotations

from fettle.api.uris import MOUNTS_VARIABLE, Address, claim_of, encode_mounts, store_of
from fettle.cluster import credentials
from fettle.cluster.claims import mounts
from fettle.cluster.kinds import Object
from fettle.plan.rollout.revision import ModelRevision


def read_from(revision: ModelRevision) -> Address:
    """The store of the artifact."""
    return Address(store_of(revision.artifact.uri), revision.artifact.secret_name)


def written_to(revision: ModelRevision) -> Address | None:
    """The store of the request log; None if requests are not logged."""
    asked = revision.server.request_log
    return Address(asked.uri, asked.secret_name) if asked is not None else None


def labels(revision: ModelRevision) -> dict[str, str]:
    """Labels of a pod that reaches them."""
    return credentials.labels(_all(revision))


def environment(address: Address) -> list[Object]:
    """What the container that opens `address` is told."""
    told = {MOUNTS_VARIABLE: encode_mounts(_folders(address)), **credentials.environment([address])}
    return [{"name": name, "value": value} for name, value in told.items()]


def volume_mounts(revision: ModelRevision, address: Address, *, writes: bool) -> list[Object]:
    """The claim of `address`, and its Secret: no other one of the pod's."""
    access = {} if writes else {"readOnly": True}
    claims = _claims(revision)
    own = {mount["mountPath"] for mount in credentials.volume_mounts([address])}
    return [
        *({"name": claims[claim][0], "mountPath": folder, **access} for claim, folder in _folders(address).items()),
        *(mount for mount in credentials.volume_mounts(_all(revision)) if mount["mountPath"] in own),
    ]


def volumes(revision: ModelRevision) -> list[Object]:
    """Their claims and Secrets."""
    return [
        *(
            {"name": name, "persistentVolumeClaim": {"claimName": claim, **access}}
            for claim, (name, access) in _claims(revision).items()
        ),
        *credentials.volumes(_all(revision)),
    ]


def _all(revision: ModelRevision) -> list[Address]:
    log = written_to(revision)
    return [read_from(revision), *([log] if log is not None else [])]


def _claims(revision: ModelRevision) -> dict[str, tuple[str, Object]]:
    """Claim -> name and access of its volume. Each is one volume: a pod that has a claim twice may never start."""
    log = written_to(revision)
    read, written = claim_of(read_from(revision).uri), claim_of(log.uri) if log is not None else None
    claims: dict[str, tuple[str, Object]] = {}
    if read is not None:
        claims[read] = ("store", {"readOnly": True} if read != written else {})
    if written is not None and written != read:
        claims[written] = ("requests", {})
    return claims


def _folders(address: Address) -> dict[str, str]:
    claim = claim_of(address.uri)
    return mounts([claim] if claim is not None else [])
