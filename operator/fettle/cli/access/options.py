"""The decorator that gives a command its connection to a cluster, from the command's options."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from fettle.cli.access.cluster import connect
from fettle.cli.access.connection import cluster_options


def with_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `cluster_options`, and passes the connection as the argument `cluster`."""

    @cluster_options
    @wraps(command)
    def run(namespace: str | None, context: str | None, kubeconfig: str | None, **others: Any) -> None:
        command(cluster=connect(kubeconfig, context, namespace), **others)

    return run
