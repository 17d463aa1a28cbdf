"""What every pod of ours runs as: the restricted Pod Security level, on a root file system nobody writes.

One user for Jobs, serving pods and `fettle push`, so that what one of them writes into a claim belongs to the group that reads it.
"""

from __future__ import annotations

from typing import Any

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
