"""Options that say which cluster and namespace a command is about."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from fettle.cli.access import completion
from fettle.cli.access.cluster import connect

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def with_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """`cluster_options`, turned into the argument `cluster`."""

    @cluster_options
    @wraps(command)
    def run(namespace: str | None, context: str | None, kubeconfig: str | None, **others: Any) -> None:
        command(cluster=connect(kubeconfig, context, namespace), **others)

    return run


def cluster_options(command: Decorated) -> Decorated:
    """`--namespace`, `--context` and `--kubeconfig`, as kubectl has them."""
    options = (
        click.option(
            "-n",
            "--namespace",
            metavar="NAME",
            shell_complete=completion.namespaces,
            help="Namespace [default: the namespace of the context].",
        ),
        click.option(
            "--context",
            metavar="NAME",
            shell_complete=completion.contexts,
            help="Kubeconfig context [default: the current context].",
        ),
        click.option(
            "--kubeconfig",
            metavar="FILE",
            type=click.Path(),
            help="Kubeconfig file [default: $KUBECONFIG, ~/.kube/config].",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
