"""Addresses of files: `pvc://CLAIM/PATH` in a claim of the object's namespace, and how a pod is told where its claims lie."""

from __future__ import annotations

import json
from collections.abc import Mapping

MOUNTS_VARIABLE = "FETTLE_MOUNTS"


def claim_of(uri: str) -> str | None:
    """CLAIM of `pvc://CLAIM/PATH`, also without a path; None for another scheme."""
    scheme, _, rest = uri.partition("://")
    return rest.split("/", 1)[0] if scheme == "pvc" else None


def encode_mounts(folders: Mapping[str, str]) -> str:
    """`FETTLE_MOUNTS` for these folders, by claim."""
    return json.dumps(dict(folders), sort_keys=True)
