"""Which cluster a demo or a test talks to: one that was started here (`choice.py`), or the one that FETTLE_KUBECONFIG names.

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

from tools.cluster import kind
from tools.cluster.errors import ClusterError
from tools.cluster.paths import CLUSTERS, TEST, Paths, checkout

HARMLESS_CONTEXTS = ("kind-*", "minikube*", "fettle*")


class TargetError(ClusterError):
    """No cluster to use, or one that might be somebody's."""


@dataclass(frozen=True)
class Target:
    """A cluster to use. `registry` is where images go, without a scheme; None where nobody said.

    `paths`: of the embedded cluster of this checkout that it is; None for any other.
    `kind`: the name of a cluster of kind without a registry, whose nodes images are loaded into.
    """

    kubeconfig: Path
    registry: str | None
    paths: Paths | None = None
    kind: str | None = None

    @property
    def embedded(self) -> bool:
        return self.paths is not None


def is_named(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether FETTLE_KUBECONFIG names a cluster."""
    return bool(environment.get("FETTLE_KUBECONFIG"))


def resolve_target(environment: Mapping[str, str] = os.environ, paths: Paths | None = None) -> Target:
    """The cluster to use: the one that is named, else that of `paths`. Raises TargetError with one clear line."""
    paths = paths or checkout()
    if not is_named(environment):
        if not paths.kubeconfig.exists():
            raise TargetError(f"cluster {paths.cluster.name} is not running: {_how_to_start(paths)}")
        if kind.is_ours(paths):
            return Target(paths.kubeconfig, kind.REGISTRY, kind=kind.NAME)
        return Target(paths.kubeconfig, paths.cluster.registry, paths)
    named = environment["FETTLE_KUBECONFIG"]
    file = Path(named).expanduser().absolute()
    settings = _read(file)
    context = str(settings.get("current-context") or "")
    if not is_harmless(context) and environment.get("CONFIRM") != "yes":
        raise TargetError(
            f"FETTLE_KUBECONFIG={named} points to context {context or '(none)'}, which is not one of "
            f"{', '.join(HARMLESS_CONTEXTS)}: set CONFIRM=yes if this is intended"
        )
    registry = environment.get("FETTLE_REGISTRY", "").removeprefix("https://").rstrip("/")
    servers, ours = _servers(settings), [Paths(paths.root, cluster) for cluster in CLUSTERS]
    if not registry:  # an embedded cluster, perhaps another checkout's
        registry = next((cluster.registry for cluster in CLUSTERS if cluster.server in servers), "")
    if context.startswith(kind.CONTEXT_PREFIX):
        name = context.removeprefix(kind.CONTEXT_PREFIX)
        return Target(file, registry) if registry else Target(file, kind.REGISTRY, kind=name)
    return Target(file, registry or None, next((each for each in ours if each.kubeconfig == file), None))


def _how_to_start(paths: Paths) -> str:
    start = "start it with `make cluster`"
    if paths.cluster == TEST:
        start = f"run this with `make test`, or start one: `python -m tools.cluster up --name {TEST.name}`, then `images` likewise"
    return f"{start}; or name another cluster: FETTLE_KUBECONFIG=<path>"


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
