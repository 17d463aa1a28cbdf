"""Errors of the embedded cluster.

ClusterError               one clear line for the user, exit code 1
+-- UnsupportedError       this machine cannot run the cluster; the line says what to use instead
+-- ComponentDiedError     a component ended while it was waited for
+-- TakenError             another checkout's cluster of that name runs
+-- InUseError             a command has the cluster to itself
"""

from __future__ import annotations

from pathlib import Path


class ClusterError(Exception):
    """Something the user can act on; printed as one line, without a traceback."""


class UnsupportedError(ClusterError):
    """The machine lacks something that the embedded cluster needs."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"the embedded cluster cannot run here: {missing}. Use another cluster instead: FETTLE_KUBECONFIG=<path>"
        )


class ComponentDiedError(ClusterError):
    """A component ended while it was waited for."""

    def __init__(self, component: str, log: Path, last_line: str) -> None:
        super().__init__(f"{component} exited: {last_line or 'no output'} (full log: {log})")
        self.component = component


class TakenError(ClusterError):
    """There is one cluster of a name on a machine, and it belongs to another checkout."""

    def __init__(self, name: str, root: Path, kubeconfig: Path) -> None:
        super().__init__(
            f"cluster {name} of {root} is already running on this machine: run `down` there, or use it with FETTLE_KUBECONFIG={kubeconfig}"
        )


class InUseError(ClusterError):
    """A command has the cluster to itself until it ends."""

    def __init__(self, name: str, pid: str) -> None:
        super().__init__(f"cluster {name} is in use by a command that stops it when it ends (pid {pid or 'unknown'})")
