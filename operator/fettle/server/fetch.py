"""What the init container does: bring the artifact into the pod, whole and fit for this node, or say why not."""

from __future__ import annotations

import logging

from fettle.api.reasons import Reason
from fettle.errors import RuntimeFailure
from fettle.runtimes.artifact import require_machine
from fettle.server.settings import ServerSettings
from fettle.store.files import DISK_FULL
from fettle.store.manifest import fetch_artifact
from fettle.store.uris import Mounts

log = logging.getLogger(__name__)


def fetch(settings: ServerSettings) -> None:
    """Raises StoreError (ArtifactNotFound, ArtifactTampered) and RuntimeFailure (NodeIncompatible, ModelLoadFailed where the disk is full)."""
    try:
        manifest = fetch_artifact(settings.artifact, settings.sha256, settings.folder, Mounts.from_environment())
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        advice = "free space there, or select other nodes with template.nodeSelector"
        message = f"this node's disk has no room for {settings.artifact}: {advice} ({error.strerror})"
        raise RuntimeFailure(message, reason=Reason.MODEL_LOAD_FAILED, retryable=True) from error
    require_machine(manifest, "select nodes that have it with template.nodeSelector")
    log.info("fetched %s: %d bytes, %s", settings.artifact, manifest.bytes, manifest.runtime)
