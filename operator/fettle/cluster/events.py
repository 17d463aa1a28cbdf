"""Kubernetes Events: one for each transition, never twice."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from fettle.api.reasons import Reason
from fettle.api.secrets import without_secrets
from fettle.api.text import EVENT_LIMIT, clip, quoted
from fettle.cluster.client import Client
from fettle.cluster.kinds import EVENT, Object, ResourceKind
from fettle.errors import ClusterError, ExistsError
from fettle.plan import timestamps
from fettle.plan.events import EventDraft

logger = logging.getLogger(__name__)

COMPONENT = "fettle"


def render(kind: ResourceKind, about: Object, event: EventDraft, now: datetime) -> Object:
    """The Event about an object. Its name follows from what it says and from its occurrence, so that saying it again is no second Event."""
    metadata = about["metadata"]
    said = (event.type, event.reason, event.message, *([event.occurrence] if event.occurrence else ()))
    identity = "\n".join((metadata["uid"], str(metadata.get("generation", 0)), *said))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    at = timestamps.write(now)
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"namespace": metadata["namespace"], "name": f"{metadata['name'][:200].rstrip('-.')}.{digest}"},
        "involvedObject": {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": clip(without_secrets(event.message), EVENT_LIMIT),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


async def about(client: Client, namespace: str, uid: str) -> Sequence[Object]:
    """Events about an object; none where reading them is not allowed: they only explain. Raises ClusterError."""
    try:
        return (await client.list(EVENT, namespace, fields=f"involvedObject.uid={uid}")).items
    except ClusterError as error:
        if error.reason != Reason.FORBIDDEN:
            raise
        logger.warning("cannot read Events: %s", error)
        return ()


class EventRecorder:
    """Writes Events, and the same into the log. One that cannot be written is logged, never an error: no decision hangs on it."""

    def __init__(self, client: Client, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._client = client
        self._now = now

    async def emit(self, kind: ResourceKind, about: Object, event: EventDraft) -> None:
        """Write an Event about an object, once per generation, message and occurrence."""
        metadata, level = about["metadata"], logging.INFO if event.type == "Normal" else logging.WARNING
        reason = event.reason.value
        try:
            await self._client.create(EVENT, render(kind, about, event, self._now()))
            told = quoted(without_secrets(event.message), EVENT_LIMIT)  # a line, whatever a pod said
            logger.log(level, "%s %s/%s: %s: %s", kind.kind, metadata["namespace"], metadata["name"], reason, told)
        except ExistsError:
            logger.debug("Event %s about %s already exists", reason, metadata["name"])
        except ClusterError as error:
            logger.warning("Event %s about %s was not written: %s", reason, metadata["name"], error)
