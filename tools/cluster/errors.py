"""Errors of the embedded cluster.

ClusterError               one clear line for the user, exit code 1
+-- UnsupportedError       this machine cannot run the cluster; the line says what to use instead
+-- ComponentDiedError     a component ended while it was waited for
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
        super().__init__(f"{component} ended: {last_line or 'it said nothing'} (whole log: {log})")
        self.component = component
