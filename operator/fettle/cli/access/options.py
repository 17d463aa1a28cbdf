"""What a command that talks to a cluster is given: a connection, as its options say."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from fettle.cli.access.cluster import connect
from fettle.cli.access.connection import cluster_options


def with_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """`cluster_options`, turned into the argument `cluster`."""

    @cluster_options
    @wraps(command)
    def run(namespace: str | None, context: str | None, kubeconfig: str | None, **others: Any) -> None:
        command(cluster=connect(kubeconfig, context, namespace), **others)

    return run
