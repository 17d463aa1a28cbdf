"""What every pod of ours runs as: the restricted Pod Security level, on a root file system nobody writes; and whose images it may pull.

One user for Jobs, serving pods and `fettle push`, so that what one of them writes into a claim belongs to the group that reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fettle.api.pods import LocalReference

USER = 65532  # of the images


def pod_security() -> dict[str, Any]:
    """A pod's `securityContext`."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """A container's `securityContext`."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pull_secrets(own: Iterable[LocalReference], operators: Iterable[str]) -> list[dict[str, str]]:
    """A pod's `imagePullSecrets`: those of its spec, then the operator's. Each once, since the API server takes the name as the key."""
    names = [secret.name for secret in own]
    return [{"name": name} for name in dict.fromkeys([*names, *operators])]
