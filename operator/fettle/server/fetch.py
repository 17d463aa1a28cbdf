"""What the init container does: bring the artifact into the pod, whole and fit for this node, or say why not."""

from __future__ import annotations

import logging

from fettle.api.reasons import Reason
from fettle.errors import RuntimeFailure
from fettle.runtimes import cpu, machine
from fettle.server.settings import ServerSettings
from fettle.store.manifest import fetch_artifact
from fettle.store.uris import Mounts

log = logging.getLogger(__name__)


def fetch(settings: ServerSettings) -> None:
    """Raises StoreError (ArtifactNotFound, ArtifactTampered) and RuntimeFailure (NodeIncompatible)."""
    manifest = fetch_artifact(settings.artifact, settings.sha256, settings.folder, Mounts.from_environment())
    here = cpu.detect()
    missing = machine.missing(manifest.requires, here)
    if missing:
        raise RuntimeFailure(
            f"this node's {machine.describe(manifest.requires, here)} lacks {', '.join(missing)}, which the artifact needs; "
            "select nodes that have it with template.nodeSelector",
            reason=Reason.NODE_INCOMPATIBLE,
        )
    log.info("fetched %s: %d bytes, %s", settings.artifact, manifest.bytes, manifest.runtime)
