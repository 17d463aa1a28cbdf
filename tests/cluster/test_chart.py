"""The chart's objects on a real API server: what the operator may do, what it may not, and that its pod is admitted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.charts.helm import only, render

pytestmark = pytest.mark.cluster

MAY = [
    "list optimizedmodels.fettle.dev",
    "watch modeldeployments.fettle.dev",
    "update optimizedmodels.fettle.dev/status",
    "update modeldeployments.fettle.dev/status",
    "create jobs.batch",
    "delete jobs.batch",
    "get pods/log",
    "patch deployments.apps",
    "patch controllerrevisions.apps",
    "patch services",
    "patch poddisruptionbudgets.policy",
    "create persistentvolumeclaims",
    "create events",
    "create secrets",
    "list events",
    "list nodes",  # which GPUs they offer
]
MAY_NOT = [
    "update optimizedmodels.fettle.dev",
    "patch modeldeployments.fettle.dev",
    "delete modeldeployments.fettle.dev",
    "get secrets",
    "list configmaps",
    "create pods",
    "delete pods",
    "create pods/exec",
    "patch jobs.batch",
    "patch persistentvolumeclaims",
    "get pods",
    "delete services",
    "delete poddisruptionbudgets.policy",
    "update optimizedmodels.fettle.dev/finalizers",
    "update modeldeployments.fettle.dev/finalizers",
    "delete persistentvolumeclaims",
    "watch nodes",
    "patch nodes",
    "list namespaces",
    "create leases.coordination.k8s.io",
    "impersonate users",
    "create clusterroles.rbac.authorization.k8s.io",
]


@pytest.fixture(scope="module")
def installed(cluster: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The chart in a namespace of its own, but for CRDs (there are) and what runs (its image need not be)."""
    name = "test-chart"
    objects = render({"crds": {"enabled": False}}, release=name, namespace=name)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    wanted = [space, *(found for found in objects if found["kind"] not in ("Deployment", "Pod"))]
    cluster.apply(*wanted)
    yield name, objects
    for found in wanted:
        if "namespace" not in found["metadata"]:
            cluster("delete", found["kind"], found["metadata"]["name"], "--wait=false")


def review(account: str, request: str, namespace: str) -> dict[str, Any]:
    """The question whether the ServiceAccount may do `request` ("verb resource") there."""
    verb, resource = request.split()
    resource, _, sub = resource.partition("/")
    plural, _, group = resource.partition(".")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural, "subresource": sub}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "resourceAttributes": attributes},
    }


def allowed(cluster: Any, account: str, request: str, namespace: str) -> bool:
    """The answer."""
    return bool(cluster.create(review(account, request, namespace))["status"]["allowed"])


@pytest.mark.parametrize(("requests", "expected"), [(MAY, True), (MAY_NOT, False)], ids=["may", "may not"])
def test_the_operator_may_what_it_needs_and_nothing_else(
    cluster: Any, installed: tuple[str, list[dict[str, Any]]], requests: list[str], expected: bool
) -> None:
    account = f"system:serviceaccount:{installed[0]}:{only(installed[1], 'ServiceAccount')['metadata']['name']}"
    reviews = {"apiVersion": "v1", "kind": "List", "items": [review(account, one, "default") for one in requests]}
    printed = ("-o", r'jsonpath={.status.allowed}{"\n"}')
    answers = cluster("create", "-f", "-", *printed, stdin=json.dumps(reviews)).split()  # one start of kubectl
    wrong = [one for one, answer in zip(requests, answers, strict=True) if (answer == "true") != expected]
    assert wrong == []


def test_its_lease_is_the_only_one_it_may_take(cluster: Any, installed: tuple[str, list[dict[str, Any]]]) -> None:
    name, objects = installed
    account = f"system:serviceaccount:{name}:{only(objects, 'ServiceAccount')['metadata']['name']}"
    assert allowed(cluster, account, "create leases.coordination.k8s.io", name)
    assert not allowed(cluster, account, "update leases.coordination.k8s.io", name)  # any name
    as_operator = [f"--as={account}", f"--namespace={name}"]
    assert cluster("auth", "can-i", "update", "leases.coordination.k8s.io/fettle", *as_operator).strip() == "yes"


def test_whoever_may_view_a_namespace_sees_both_kinds_and_whoever_may_edit_it_changes_them(
    cluster: Any, installed: tuple[str, list[dict[str, Any]]]
) -> None:
    name = installed[0]
    for role, user in (("view", "viewer"), ("edit", "editor")):
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": user, "namespace": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }
        cluster.apply(binding)
    assert allowed(cluster, "viewer", "list optimizedmodels.fettle.dev", name)
    assert not allowed(cluster, "viewer", "create modeldeployments.fettle.dev", name)
    assert allowed(cluster, "editor", "list modeldeployments.fettle.dev", name)
    assert allowed(cluster, "editor", "patch modeldeployments.fettle.dev", name)
    assert allowed(cluster, "editor", "patch modeldeployments.fettle.dev/scale", name)
    assert not allowed(cluster, "editor", "update modeldeployments.fettle.dev/status", name)


def test_the_operators_pod_is_admitted_at_the_restricted_level(
    cluster: Any, installed: tuple[str, list[dict[str, Any]]]
) -> None:
    name, objects = installed
    template = copy.deepcopy(only(objects, "Deployment")["spec"]["template"])
    template["metadata"] |= {"name": "operator", "namespace": name}
    cluster.create({"apiVersion": "v1", "kind": "Pod", **template}, "--dry-run=server")
    cluster.create(only(objects, "Pod"), "--dry-run=server")  # that of `helm test`
    container = template["spec"]["containers"][0]
    container["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        cluster.create({"apiVersion": "v1", "kind": "Pod", **template}, "--dry-run=server")


EVERYTHING: dict[str, Any] = {
    "replicas": 2,
    "podDisruptionBudget": {"enabled": True},
    "argocd": {"customizations": True},
    "image": {"pullPolicy": "Always", "pullSecrets": ["one"]},
    "jobs": {"resources": {"limits": {"cpu": 2}}},
    "serviceAccount": {"annotations": {"example.com/role": "operator"}},
    "metrics": {"service": {"annotations": {"prometheus.io/scrape": "true"}}},
    "operator": {
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
        "podLabels": {"team": "ml"},
        "podAnnotations": {"note": "x"},
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}
                ]
            }
        },
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
    },
}


@pytest.mark.parametrize("where", [{}, {"watchNamespaces": ["default"]}], ids=["everywhere", "one namespace"])
def test_the_api_server_takes_every_object_of_every_value(cluster: Any, namespace: str, where: dict[str, Any]) -> None:
    """The monitors are of another operator's kinds, which are not here."""
    objects = render({**EVERYTHING, **where, "crds": {"enabled": False}}, release="all", namespace=namespace)
    kinds = {found["kind"] for found in objects}
    assert {"NetworkPolicy", "ConfigMap", "PodDisruptionBudget", "Deployment", "Service", "RoleBinding"} <= kinds
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    cluster("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)


def test_the_charts_crds_are_taken_by_the_api_server(cluster: Any) -> None:
    for found in render():
        if found["kind"] == "CustomResourceDefinition":
            cluster(
                "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", stdin=json.dumps(found)
            )
