"""A person's connection to a cluster: as kubectl finds it, with errors that fit on a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import click
from kubernetes import client, config
from kubernetes.client.rest import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from fettle.api.base import GROUP, VERSION
from fettle.api.reasons import Reason
from fettle.errors import ClusterError, MissingError, UsageError

FIELD_MANAGER = "kubectl-fettle"
Object = dict[str, Any]
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass(frozen=True)
class Cluster:
    """One namespace of one cluster. Every call raises ClusterError (MissingError: not there)."""

    api: Any  # kubernetes.client.ApiClient
    namespace: str

    @cached_property
    def core(self) -> Any:
        """Pods and claims."""
        return client.CoreV1Api(self.api)

    def get(self, plural: str, name: str) -> Object:
        """An object of ours."""
        with told(f"{plural}/{name} in namespace {self.namespace}"):
            found: Object = client.CustomObjectsApi(self.api).get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, name
            )
            return found

    def annotate(self, plural: str, name: str, annotations: dict[str, str]) -> None:
        """Set annotations of an object of ours."""
        with told(f"{plural}/{name} in namespace {self.namespace}"):
            client.CustomObjectsApi(self.api).patch_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                plural,
                name,
                {"metadata": {"annotations": annotations}},
                field_manager=FIELD_MANAGER,
                _content_type="application/merge-patch+json",
            )

    def operator_environment(self) -> dict[str, str]:
        """Plain environment variables of the operator, found by its label; empty where it cannot be seen."""
        try:
            found = client.AppsV1Api(self.api).list_deployment_for_all_namespaces(
                label_selector="app.kubernetes.io/name=fettle"
            )
        except (ApiException, HTTPError):
            return {}  # a user need not be allowed to look
        containers = [one for item in found.items for one in item.spec.template.spec.containers]
        return {entry.name: entry.value for container in containers for entry in container.env or () if entry.value}


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn the client's exceptions into one line that names `what`."""
    try:
        yield
    except ApiException as error:
        raise _error(error, what) from error
    except HTTPError as error:
        message = f"the API server does not answer: {error}"
        raise ClusterError(message, reason=Reason.CLUSTER_UNREACHABLE, retryable=True) from error


def _error(error: ApiException, what: str) -> ClusterError:
    message = error.reason or str(error)
    try:
        message = json.loads(error.body or "").get("message") or message
    except (ValueError, AttributeError, TypeError):
        message = f"{message}"
    if error.status == 404:
        return MissingError(message)
    if error.status in (401, 403):
        return ClusterError(message, reason=Reason.FORBIDDEN)
    return ClusterError(
        f"{what}: {message}", reason=Reason.CLUSTER_UNREACHABLE if error.status == 0 else Reason.INVALID_SPEC
    )


def connect(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """The cluster that kubectl would talk to. Raises UsageError without a usable kubeconfig."""
    try:
        _, current = config.list_kube_config_contexts(config_file=kubeconfig)
        contexts, _ = config.list_kube_config_contexts(config_file=kubeconfig)
        chosen = next((one for one in contexts if one["name"] == context), None) if context else current
        if chosen is None:
            names = ", ".join(one["name"] for one in contexts)
            raise UsageError(f"there is no context {context!r} in the kubeconfig (found: {names})")
        api = config.new_client_from_config(config_file=kubeconfig, context=context)
    except (ConfigException, OSError, TypeError) as error:
        raise UsageError(f"no usable kubeconfig: {error}") from error
    return Cluster(api, namespace or chosen["context"].get("namespace") or "default")


def cluster_options(command: Decorated) -> Decorated:
    """`--namespace`, `--context` and `--kubeconfig`, as kubectl has them."""
    options = (
        click.option("-n", "--namespace", metavar="NAME", help="Namespace [default: the context's]."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig [default: the current one]."),
        click.option("--kubeconfig", metavar="FILE", help="Kubeconfig [default: $KUBECONFIG, ~/.kube/config]."),
    )
    for option in reversed(options):
        command = option(command)
    return command
