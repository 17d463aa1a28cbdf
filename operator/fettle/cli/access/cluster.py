"""A user's connection to a cluster, found as kubectl does, with errors that fit on one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from kubernetes import client, config
from kubernetes.client.rest import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from fettle.api.base import GROUP, MANAGED_LABEL, MODEL_DEPLOYMENT_LABEL, VERSION
from fettle.api.reasons import Reason
from fettle.api.text import joined
from fettle.cluster.refusal import Refusal
from fettle.errors import ClusterError, MissingError, UsageError

FIELD_MANAGER = "kubectl-fettle"
DEPLOYMENTS, MODELS = "modeldeployments", "optimizedmodels"
LOOK_SECONDS = 5.0  # for what only makes an error more helpful
Object = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """What to list or watch: `call` is the client's function with its selectors bound, `what` names the objects in messages."""

    api: Any  # kubernetes.client.ApiClient
    call: Callable[..., Any]
    what: str

    def __call__(self, **options: Any) -> Object:
        """The whole list, as the API server returns it. Raises the client's exceptions."""
        listing: Object = self.api.sanitize_for_serialization(self.call(**options))
        return listing


@dataclass(frozen=True)
class Cluster:
    """One namespace of one cluster. Every call raises ClusterError, or MissingError if the object does not exist."""

    api: Any  # kubernetes.client.ApiClient
    namespace: str

    @cached_property
    def core(self) -> Any:
        """Pods, claims and Events."""
        return client.CoreV1Api(self.api)

    def get(self, plural: str, name: str) -> Object:
        """A Fettle object. MissingError names the objects that exist."""
        try:
            with api_errors(f"{plural}/{name} in namespace {self.namespace}"):
                resource: Object = self._custom.get_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, plural, name
                )
                return resource
        except MissingError as error:
            raise MissingError(f"{error.message}; {self._there(plural)}; {self.elsewhere((plural,), name)}") from error

    def objects(self, plural: str, timeout: float | None = None) -> list[Object]:
        """All Fettle objects of one kind."""
        with api_errors(f"{plural} in namespace {self.namespace}"):
            resources: list[Object] = self._custom.list_namespaced_custom_object(
                GROUP, VERSION, self.namespace, plural, _request_timeout=timeout
            )["items"]
            return resources

    def names(self, plural: str, timeout: float | None = None) -> list[str]:
        """Names of all Fettle objects of one kind."""
        return sorted(item["metadata"]["name"] for item in self.objects(plural, timeout))

    def children(self) -> list[Object]:
        """Jobs and ledger lines that the operator created for Fettle objects."""
        jobs = client.BatchV1Api(self.api).list_namespaced_job
        ledgers = client.AppsV1Api(self.api).list_namespaced_controller_revision
        with api_errors(f"jobs and controllerrevisions in namespace {self.namespace}"):
            listed = [call(self.namespace, label_selector=MANAGED_LABEL).items for call in (jobs, ledgers)]
            return [child for items in listed for child in self._plain(items)]

    def namespaces(self, timeout: float) -> list[str]:
        """Names of all namespaces."""
        with api_errors("namespaces"):
            return [namespace.metadata.name for namespace in self.core.list_namespace(_request_timeout=timeout).items]

    def ledger(self, name: str) -> list[Object]:
        """The ControllerRevisions of a ModelDeployment: its ledger."""
        with api_errors(f"controllerrevisions in namespace {self.namespace}"):
            revisions = client.AppsV1Api(self.api).list_namespaced_controller_revision(
                self.namespace, label_selector=f"{MODEL_DEPLOYMENT_LABEL}={name}"
            )
            return self._plain(revisions.items)

    def pods(self, name: str) -> list[Object]:
        """The pods of a ModelDeployment."""
        listing = self.pod_listing(name)
        with api_errors(listing.what):
            pods: list[Object] = listing()["items"]
            return pods

    def pod_listing(self, name: str) -> Listing:
        """The pods of a ModelDeployment, to list or watch."""
        selector = f"{MODEL_DEPLOYMENT_LABEL}={name}"
        call = partial(self.core.list_namespaced_pod, self.namespace, label_selector=selector)
        return Listing(self.api, call, f"pods in namespace {self.namespace}")

    def listing(self, plural: str, name: str) -> Listing:
        """The Fettle object of that name, as a listing with one object or none."""
        call = partial(
            self._custom.list_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            plural,
            field_selector=f"metadata.name={name}",
        )
        return Listing(self.api, call, f"{plural}/{name} in namespace {self.namespace}")

    def events(self, uid: str) -> list[Object]:
        """Events about the object with that UID."""
        with api_errors(f"events in namespace {self.namespace}"):
            selector = f"involvedObject.uid={uid}"
            return self._plain(self.core.list_namespaced_event(self.namespace, field_selector=selector).items)

    def annotate(self, plural: str, name: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a Fettle object; None removes one."""
        with api_errors(f"{plural}/{name} in namespace {self.namespace}"):
            self._custom.patch_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                plural,
                name,
                {"metadata": {"annotations": annotations}},
                field_manager=FIELD_MANAGER,
                _content_type="application/merge-patch+json",
            )

    @property
    def _custom(self) -> Any:
        return client.CustomObjectsApi(self.api)

    def _plain(self, items: Iterable[Any]) -> list[Object]:
        return [self.api.sanitize_for_serialization(item) for item in items]

    def _there(self, plural: str) -> str:
        try:
            names = self.names(plural)
        except MissingError:
            return f"the cluster has no resource {plural}.{GROUP}: is Fettle installed?"
        except ClusterError:
            return "the existing ones cannot be listed"
        return f"existing: {', '.join(names[:20])}" if names else f"namespace {self.namespace} has none"

    def elsewhere(self, plurals: Iterable[str], name: str) -> str:
        """The advice to look in another namespace, with those that have an object of that name, as far as the user may list them."""
        found: set[str] = set()
        for plural in plurals:
            with suppress(ClusterError), api_errors(plural):
                listed = self._custom.list_cluster_custom_object(
                    GROUP, VERSION, plural, field_selector=f"metadata.name={name}", _request_timeout=LOOK_SECONDS
                )
                found |= {item["metadata"]["namespace"] for item in listed["items"]}
        if not found:
            return "-n NAMESPACE selects another namespace"
        return f"there is one in namespace {joined(sorted(found), 'or')}, which -n selects"

    def operator_environment(self) -> dict[str, str]:
        """Plain environment variables of the operator, which is found by its label; empty if it cannot be read."""
        try:
            deployments = client.AppsV1Api(self.api).list_deployment_for_all_namespaces(
                label_selector="app.kubernetes.io/name=fettle"
            )
        except (ApiException, HTTPError):
            return {}  # a user need not be allowed to look
        containers = [container for item in deployments.items for container in item.spec.template.spec.containers]
        return {entry.name: entry.value for container in containers for entry in container.env or () if entry.value}


@contextmanager
def api_errors(what: str) -> Iterator[None]:
    """Convert the client's exceptions to an error of one line that names `what`."""
    try:
        yield
    except ApiException as error:
        raise _error(error, what) from error
    except HTTPError as error:
        cause = getattr(error, "reason", None) or error
        message = (
            f"the API server does not answer ({type(cause).__name__}: {str(cause).partition('>: ')[2] or cause}); "
        )
        message += "check that the cluster is running and that this is the right context"
        raise ClusterError(message, reason=Reason.CLUSTER_UNREACHABLE, retryable=True) from error


def _error(error: ApiException, what: str) -> ClusterError:
    refusal = Refusal.of(error.status or 0, error.body or "", error.reason or str(error))
    texts = {
        401: f"the API server rejected your credentials ({refusal.message}): log in again",
        403: _missing_right(refusal.message),
        404: refusal.message,
    }
    return refusal.error(texts.get(refusal.status, f"{what}: {refusal.message}"))


def _missing_right(message: str) -> str:
    """The API server's message, preceded by the missing permission as a Role would write it."""
    match = re.search(r'cannot (\w+) resource "([^"]+)" in API group "([^"]*)"', message)
    if match is None:
        return message
    verb, resource, group = match.groups()
    return f"you do not have permission to {verb} {resource}{f'.{group}' if group else ''}: {message}"


def connect(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """The cluster that kubectl would use. Raises UsageError without a usable kubeconfig."""
    try:
        contexts, current = config.list_kube_config_contexts(config_file=kubeconfig)
        chosen = next((entry for entry in contexts if entry["name"] == context), None) if context else current
        if chosen is None:
            names = ", ".join(entry["name"] for entry in contexts)
            raise UsageError(f"context {context!r} not found in the kubeconfig (available: {names})")
        api = config.new_client_from_config(config_file=kubeconfig, context=context)
    except (ConfigException, OSError, TypeError) as error:
        raise UsageError(
            f"no usable kubeconfig ({error}): set $KUBECONFIG or --kubeconfig to your cluster's"
        ) from error
    return Cluster(api, namespace or chosen["context"].get("namespace") or "default")
