"""Shell completion of names and revisions: it asks the cluster, with a short timeout and without error messages."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, Cluster, connect
from fettle.cli.access.objects import deployment_of
from fettle.cli.access.subject import KINDS, kind_of
from fettle.errors import FettleError

PATIENCE_SECONDS = 2.0  # whoever presses the tab key waits no longer


def deployment_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of ModelDeployments."""
    return _names(context, incomplete, (DEPLOYMENTS,))


def model_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of OptimizedModels."""
    return _names(context, incomplete, (MODELS,))


def names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of objects of both kinds."""
    return _names(context, incomplete, KINDS)


def contexts(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Contexts of the kubeconfig."""
    from kubernetes import config

    try:
        available, _ = config.list_kube_config_contexts(config_file=context.params.get("kubeconfig"))
    except (config.ConfigException, OSError, TypeError):
        return []
    return _items([entry["name"] for entry in available], incomplete)


def namespaces(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Namespaces of the cluster, if the user may list them."""
    available: list[str] = []
    with suppress(FettleError):
        available = _cluster(context).namespaces(timeout=PATIENCE_SECONDS)
    return _items(available, incomplete)


def sources(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Sources for `fettle pull`: after `om/`, names of OptimizedModels; else local files."""
    kind, slash, _ = incomplete.partition("/")
    if not slash or kind_of(kind) != MODELS:
        return [CompletionItem(incomplete, type="file")]
    return _names(context, incomplete, (MODELS,))


def _names(context: click.Context, incomplete: str, kinds: tuple[str, ...]) -> list[CompletionItem]:
    """Names of objects of these kinds; after `KIND/`, names of that kind."""
    kind, slash, bare = incomplete.rpartition("/")
    if slash:
        kinds = tuple(plural for plural in kinds if plural == kind_of(kind))
    resources: list[str] = []
    with suppress(FettleError):  # a shell's prompt is no place for errors
        cluster = _cluster(context)
        for plural in kinds:
            resources += cluster.names(plural, timeout=PATIENCE_SECONDS)
    return [CompletionItem(f"{kind}{slash}{item.value}") for item in _items(resources, bare)]


def _items(values: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in dict.fromkeys(values) if name.startswith(incomplete)]


def _cluster(context: click.Context) -> Cluster:
    """The cluster that the options before the cursor select. Raises UsageError."""
    given = context.params
    return connect(given.get("kubeconfig"), given.get("context"), given.get("namespace"))


def revisions(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Revisions in the ledger of the ModelDeployment that the command line names."""
    try:
        records = deployment_of(_cluster(context), context.params["deployment"]).status.revisions
    except (FettleError, KeyError):
        return []
    told = {record.revision: f"left {record.left}: {record.reason}" if record.left else "serves" for record in records}
    return [CompletionItem(name, help=text) for name, text in told.items() if name.startswith(incomplete)]
