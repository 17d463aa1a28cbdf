"""Which cluster a demo or a test talks to: the embedded one, or the one that FETTLE_KUBECONFIG names.

A plain KUBECONFIG is never used: it may be somebody's production.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.cluster.errors import ClusterError
from tools.cluster.paths import ADDRESS, API_PORT, REGISTRY, Paths, checkout

HARMLESS_CONTEXTS = ("kind-*", "minikube*", "fettle*")


class TargetError(ClusterError):
    """No cluster to use, or one that might be somebody's."""


@dataclass(frozen=True)
class Target:
    """A cluster to use. `registry` is where images go, without a scheme; None where nobody said."""

    kubeconfig: Path
    registry: str | None
    embedded: bool


def resolve_target(environment: Mapping[str, str] = os.environ, paths: Paths | None = None) -> Target:
    """The cluster to use. Raises TargetError with one clear line."""
    paths = paths or checkout()
    named = environment.get("FETTLE_KUBECONFIG", "")
    if not named:
        if not paths.kubeconfig.exists():
            raise TargetError("no cluster runs: start one with `make cluster`, or name one: FETTLE_KUBECONFIG=<path>")
        return Target(paths.kubeconfig, REGISTRY, embedded=True)
    file = Path(named).expanduser().absolute()
    settings = _read(file)
    context = str(settings.get("current-context") or "")
    if not is_harmless(context) and environment.get("CONFIRM") != "yes":
        raise TargetError(
            f"FETTLE_KUBECONFIG={named} points to context {context or '(none)'}, which is not one of "
            f"{', '.join(HARMLESS_CONTEXTS)}: set CONFIRM=yes if that is meant"
        )
    registry = environment.get("FETTLE_REGISTRY", "").removeprefix("https://").rstrip("/")
    if not registry and f"https://{ADDRESS}:{API_PORT}" in _servers(settings):
        registry = REGISTRY  # an embedded cluster, perhaps another checkout's
    return Target(file, registry or None, embedded=file == paths.kubeconfig)


def is_harmless(context: str) -> bool:
    """Whether a context's name says that the cluster is for trying things."""
    return any(fnmatch.fnmatchcase(context, pattern) for pattern in HARMLESS_CONTEXTS)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"FETTLE_KUBECONFIG={file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise TargetError(f"FETTLE_KUBECONFIG={file} is not a kubeconfig") from error
    if not isinstance(settings, dict):
        raise TargetError(f"FETTLE_KUBECONFIG={file} is not a kubeconfig")
    return settings


def _servers(settings: Mapping[str, Any]) -> set[str]:
    return {str(entry.get("cluster", {}).get("server", "")) for entry in settings.get("clusters") or []}
