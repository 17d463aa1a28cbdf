"""Which cluster a person gets: kind where a Docker engine answers, else the embedded one. `choose` is pure; `look` looks around."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tools.cluster import kind
from tools.cluster.builders import docker_answers
from tools.cluster.errors import ClusterError
from tools.cluster.paths import Paths
from tools.cluster.target import is_named

VARIABLE = "FETTLE_CLUSTER"
# What a cluster of kind takes beside a Docker engine, and where its installation is described.
TOOLS: Mapping[str, str] = {
    "kind": "https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
    "helm": "https://helm.sh/docs/intro/install/",
}
_OTHERWISE = "or name a cluster of your own: FETTLE_KUBECONFIG=<path>"


class Provider(StrEnum):
    """Who runs the cluster."""

    NAMED = "named"  # whoever wrote FETTLE_KUBECONFIG
    KIND = "kind"
    EMBEDDED = "embedded"


@dataclass(frozen=True)
class Machine:
    """What there is to choose from. `missing`: the `TOOLS` that are not installed. `current`: what the last `up` started here."""

    docker: bool
    missing: tuple[str, ...]
    root: bool
    current: Provider | None = None

    @property
    def why_not_kind(self) -> str | None:
        """What a cluster of kind lacks here, and how to get it."""
        if not self.docker:
            return "no Docker engine answers"
        if self.missing:
            return "; ".join(f"{name} is not installed (see {TOOLS[name]})" for name in self.missing)
        return None


@dataclass(frozen=True)
class Choice:
    """The cluster, and why it is this one."""

    provider: Provider
    why: str


def choose(machine: Machine, environment: Mapping[str, str] = os.environ) -> Choice:
    """The cluster to start. Raises ClusterError with what to do where there is none, or where another one is in the way."""
    if is_named(environment):
        return Choice(Provider.NAMED, f"FETTLE_KUBECONFIG={environment['FETTLE_KUBECONFIG']}; nothing is started")
    asked = environment.get(VARIABLE, "")
    if asked not in ("", Provider.KIND, Provider.EMBEDDED):
        raise ClusterError(f"{VARIABLE}={asked}: expected {Provider.KIND.value} or {Provider.EMBEDDED.value}")
    current = machine.current
    if current is not None and asked in ("", current):
        return Choice(current, "it was started here before; `make cluster-down` removes it")
    if current is not None:
        raise ClusterError(
            f"{VARIABLE}={asked}, but a cluster of another kind ({current.value}) was started here: "
            "run `make cluster-down` first"
        )
    if asked:
        if asked == Provider.KIND and machine.why_not_kind is not None:
            raise ClusterError(f"{VARIABLE}={asked}: {machine.why_not_kind}")
        return Choice(Provider(asked), f"{VARIABLE}={asked}")
    return _unasked(machine)


def _unasked(machine: Machine) -> Choice:
    missing = machine.why_not_kind
    if missing is None:
        return Choice(Provider.KIND, f"a Docker engine answers, and {', '.join(TOOLS)} are installed")
    if not machine.root:
        raise ClusterError(
            f"no cluster can be started: {missing}, and this user is not root on Linux, which the embedded cluster requires; {_OTHERWISE}"
        )
    quicker = "; with it the first start would take a minute" if machine.docker else ""
    return Choice(Provider.EMBEDDED, f"{missing}{quicker}")


def look(paths: Paths) -> Machine:
    """This machine, and what runs for this checkout."""
    search = kind.tool_path(paths)
    missing = tuple(name for name in TOOLS if shutil.which(name, path=search) is None)
    embedded = Provider.EMBEDDED if paths.kubeconfig.exists() else None
    return Machine(
        docker=docker_answers(),
        missing=missing,
        root=sys.platform == "linux" and os.geteuid() == 0,
        current=Provider.KIND if kind.is_ours(paths) else embedded,
    )
