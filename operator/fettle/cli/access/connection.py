"""Options that select the cluster and the namespace. The module imports little: many commands have these options, few runs need a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Offered = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def cluster_options(command: Decorated) -> Decorated:
    """`--namespace`, `--context` and `--kubeconfig`, as kubectl has them."""
    options = (
        click.option(
            "-n",
            "--namespace",
            metavar="NAME",
            shell_complete=_offers("namespaces"),
            help="Namespace [default: the namespace of the context].",
        ),
        click.option(
            "--context",
            metavar="NAME",
            shell_complete=_offers("contexts"),
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


def _offers(what: str) -> Offered:
    """The function of that name in `completion`, which is imported only when a shell asks for completions."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from fettle.cli.access import completion

        offered: list[CompletionItem] = getattr(completion, what)(context, parameter, incomplete)
        return offered

    return complete
