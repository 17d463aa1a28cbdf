"""What the init container does: bring the artifact into the pod, whole and fit for this node, or say why not."""

from __future__ import annotations

import logging

from fettle.api.compatibility import differences
from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.errors import RuntimeFailure
from fettle.runtimes.artifact import require_machine
from fettle.server.settings import ServerSettings
from fettle.store.files import DISK_FULL
from fettle.store.manifest import fetch_artifact
from fettle.store.uris import Mounts

MOST_TOLD = 4096  # bytes of a termination message that Kubernetes keeps
log = logging.getLogger(__name__)


def fetch(settings: ServerSettings) -> Signature:
    """Fetch the artifact; returns its inputs and outputs.

    Raises StoreError (ArtifactNotFound, ArtifactTampered) and RuntimeFailure (NodeIncompatible, SignatureIncompatible, ModelLoadFailed where
    the disk is full).
    """
    try:
        manifest = fetch_artifact(settings.artifact, settings.sha256, settings.folder, Mounts.from_environment())
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        advice = "free space there, or select other nodes with template.nodeSelector"
        message = f"this node's disk has no room for {settings.artifact}: {advice} ({error.strerror})"
        raise RuntimeFailure(message, reason=Reason.MODEL_LOAD_FAILED, retryable=True) from error
    require_machine(manifest, "select nodes that have it with template.nodeSelector")
    _require_signature(manifest.signature, settings)
    log.info("fetched %s: %d bytes, %s", settings.artifact, manifest.bytes, manifest.runtime)
    return manifest.signature


def told(signature: Signature) -> str:
    """The termination message in which the operator finds `signature`; empty if Kubernetes would cut it off."""
    message = signature.canonical().decode()
    return message if len(message.encode()) <= MOST_TOLD else ""


def _require_signature(signature: Signature, settings: ServerSettings) -> None:
    """Raises RuntimeFailure (SignatureIncompatible) if clients of the stable revision could not use this artifact."""
    found = differences(settings.replaces, signature) if settings.replaces is not None else ()
    if found:
        advice = f"Publish a model that takes the same requests, or run kubectl fettle retry {settings.model} to roll this one out all the same"
        message = f"clients of the stable revision could not use this one (-1 = any size): {'; '.join(found)}. {advice}"
        raise RuntimeFailure(message, reason=Reason.SIGNATURE_INCOMPATIBLE)
