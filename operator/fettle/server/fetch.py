"""What the init container does: bring the artifact into the pod, whole and fit for this node, or say why not."""

from __future__ import annotations

import logging

from fettle.runtimes.artifact import require_machine
from fettle.server.settings import ServerSettings
from fettle.store.manifest import fetch_artifact
from fettle.store.uris import Mounts

log = logging.getLogger(__name__)


def fetch(settings: ServerSettings) -> None:
    """Raises StoreError (ArtifactNotFound, ArtifactTampered) and RuntimeFailure (NodeIncompatible)."""
    manifest = fetch_artifact(settings.artifact, settings.sha256, settings.folder, Mounts.from_environment())
    require_machine(manifest, "select nodes that have it with template.nodeSelector")
    log.info("fetched %s: %d bytes, %s", settings.artifact, manifest.bytes, manifest.runtime)
