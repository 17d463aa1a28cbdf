"""The chart, as helm renders it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.charts.helm import CHART, HelmError, helm, only, render

import fettle
from fettle.api.base import MODEL_DEPLOYMENT_LABEL, OPTIMIZED_MODEL_LABEL
from fettle.api.uris import Address
from fettle.cluster.credentials import labels
from fettle.cluster.jobs import TRAINING_LABEL
from fettle.cluster.kinds import LEASE, WATCHED, ResourceKind
from fettle.cluster.serving import MANAGEMENT_PORT, REVIEW_LABEL, TRACING_LABEL
from fettle.settings import Settings

GOLDEN = Path(__file__).parent / "golden"
PER_POD = {"namespace", "identity"}  # from the pod itself
NOT_IN_A_POD = {"kubeconfig", "health_host"}  # for a process outside of a cluster


def leaves(node: Any, where: str = "") -> dict[str, Any]:
    """Each value by its dotted path; an empty map or list is a value."""
    if not isinstance(node, dict) or not node:
        return {where: node}
    return {key: value for name, inner in node.items() for key, value in leaves(inner, f"{where}.{name}").items()}


def environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    """The values that are the same for every pod."""
    container = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry["value"] for entry in container["env"] if "$(" not in entry.get("value", "$(")}


def test_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in helm("lint", str(CHART), "--strict")


def test_the_default_rendering_is_the_golden_one() -> None:
    """After a change that is meant: UPDATE_GOLDEN=1 pytest tests/charts, then read the diff."""
    objects = [found for found in render() if found["kind"] != "CustomResourceDefinition"]
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120)
    golden = GOLDEN / "default.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_the_chart_has_the_programs_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == fettle.__version__


def test_every_setting_has_a_value() -> None:
    wanted = {f"FETTLE_{name.upper()}" for name in Settings.model_fields if name not in PER_POD | NOT_IN_A_POD}
    assert set(environment(render())) == wanted
    values = (CHART / "values.yaml").read_text()
    assert [name for name in wanted if name not in values] == []


def test_the_leader_is_named_after_its_pod_and_stays_the_same_when_the_container_restarts() -> None:
    listed = only(render(), "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    names = [entry["name"] for entry in listed]
    assert names.index("FETTLE_IDENTITY") > max(names.index("POD_NAME"), names.index("POD_UID")), (
        "only earlier ones count"
    )
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["FETTLE_IDENTITY"]["value"] == "$(POD_NAME)_$(POD_UID)"
    fields = [by_name[name]["valueFrom"]["fieldRef"]["fieldPath"] for name in ("POD_NAME", "POD_UID")]
    assert fields == ["metadata.name", "metadata.uid"]


def test_the_default_values_are_the_settings_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FETTLE_")]:
        monkeypatch.delenv(name)
    own = Settings(identity="me", namespace="here")
    for name, value in environment(render()).items():
        monkeypatch.setenv(name, value)
    given = Settings(identity="me", namespace="here")
    assert given.model_copy(update={"log_format": own.log_format}) == own  # a cluster's logs are JSON


def test_values_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "image": {"server": {"repository": "r:5000/server", "tag": "7"}, "pullSecrets": ["a", "b"]},
        "watchNamespaces": ["one", "two"],
        "store": {"size": "1Gi", "accessModes": ["ReadWriteOnce", "ReadWriteMany"], "create": False},
        "jobs": {"ttlSeconds": 10_000_000, "resources": {"limits": {"cpu": 2}}},
        "serving": {"connectionMaxSeconds": 0.5},
    }
    for name, value in environment(render(values)).items():
        monkeypatch.setenv(name, value)
    found = Settings()
    assert found.server_image == "r:5000/server:7"
    assert found.image_pull_secrets == ("a", "b")
    assert found.watch_namespaces == ("one", "two")
    assert (found.store_size, found.store_create) == ("1Gi", False)
    assert found.store_access_modes == ("ReadWriteOnce", "ReadWriteMany")
    assert found.job_ttl_seconds == 10_000_000
    assert found.job_resources.limits["cpu"] == 2
    assert found.connection_max_seconds == 0.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"image": {"operator": {"registry": "x"}}}, "additional properties 'registry' not allowed"),
        ({"operator": {"log": {"level": "LOUD"}}}, "value must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'"),
        ({"image": {"pullPolicy": "Sometimes"}}, "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ({"operator": {"workers": 0}}, "minimum: got 0, want 1"),
        ({"store": {"uri": "ftp://bucket"}}, "does not match pattern"),
        ({"store": {"size": "much"}}, "does not match pattern"),
        ({"watchNamespaces": ["a", "a"]}, "items at 0 and 1 are equal"),
    ],
)
def test_a_value_that_means_nothing_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(HelmError, match=re.escape(words)):
        render(values)


def test_monitors_are_made_where_they_are_asked_for_and_find_what_they_scrape() -> None:
    assert {"ServiceMonitor", "PodMonitor"} & {found["kind"] for found in render()} == set()
    asked = {"enabled": True, "interval": "30s", "labels": {"release": "prometheus"}}
    objects = render({"metrics": {"serviceMonitor": asked, "podMonitor": asked}})
    monitor, service = only(objects, "ServiceMonitor"), only(objects, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]
    assert service["spec"]["ports"][0]["name"] == "http"
    pods = only(objects, "PodMonitor")
    assert pods["spec"]["namespaceSelector"] == {"any": True}
    assert pods["spec"]["podMetricsEndpoints"][0]["port"] == "management"
    assert pods["metadata"]["labels"]["release"] == "prometheus"
    (named,) = [
        found
        for found in render({"metrics": {"podMonitor": asked}, "watchNamespaces": ["one"]})
        if found["kind"] == "PodMonitor"
    ]
    assert named["spec"]["namespaceSelector"] == {"matchNames": ["one"]}


def test_a_service_monitor_without_its_service_is_refused() -> None:
    with pytest.raises(HelmError, match=r"metrics\.serviceMonitor needs metrics\.service\.enabled"):
        render({"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}})


def test_the_crds_are_kept_unless_told_otherwise() -> None:
    def crds(**values: bool) -> list[dict[str, Any]]:
        return [found for found in render({"crds": values}) if found["kind"] == "CustomResourceDefinition"]

    assert [found["metadata"]["name"] for found in crds()] == [
        "modeldeployments.fettle.dev",
        "optimizedmodels.fettle.dev",
    ]
    assert all(found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for found in crds())
    assert all("annotations" not in found["metadata"] for found in crds(keep=False))
    assert crds(enabled=False) == []


def test_with_namespaces_to_watch_rights_are_granted_only_there() -> None:
    objects = render({"watchNamespaces": ["one", "fettle-system"]})
    assert "ClusterRoleBinding" not in {found["kind"] for found in objects}
    bound = [found["metadata"]["namespace"] for found in objects if found["kind"] == "RoleBinding"]
    assert sorted(bound) == ["fettle-system", "fettle-system", "one"]  # the Lease's Role too


def test_a_team_without_rights_on_the_cluster_installs_nothing_cluster_wide() -> None:
    objects = render(
        {"watchNamespaces": ["team-a"], "crds": {"enabled": False}, "rbac": {"userRoles": False}}, namespace="team-a"
    )
    assert [found["kind"] for found in objects if "namespace" not in found["metadata"]] == []
    assert {found["roleRef"]["kind"] for found in objects if found["kind"] == "RoleBinding"} == {"Role"}


def test_a_role_in_a_watched_namespace_grants_what_the_cluster_role_does() -> None:
    def rules(kind: str, **values: Any) -> Any:
        objects = [one for one in render(values) if (one["kind"], one["metadata"]["name"]) == (kind, "fettle")]
        return [one["rules"] for one in objects]

    (everywhere,) = rules("ClusterRole")
    assert rules("Role", watchNamespaces=["one", "two"]) == [everywhere] * 3  # in the operator's own as well
    assert rules("ClusterRole", watchNamespaces=["one"]) == []


@pytest.mark.parametrize("kind", [*WATCHED, LEASE], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["one"]}], ids=["everywhere", "one namespace"])
def test_every_kind_may_be_watched_wherever_the_operator_watches(kind: ResourceKind, values: dict[str, Any]) -> None:
    """kopf watches every kind in the same namespaces, the Lease too."""
    roles = [one for one in render(values) if one["metadata"]["name"] == "fettle" and "rules" in one]
    assert {role["metadata"].get("namespace") for role in roles} == ({"one", "fettle-system"} if values else {None})
    for role in roles:
        granted = [
            rule["verbs"]
            for rule in role["rules"]
            if kind.group in rule["apiGroups"] and kind.plural in rule["resources"]
        ]
        assert any({"list", "watch"} <= set(verbs) for verbs in granted)


def test_without_rbac_and_account_nothing_of_them_is_made() -> None:
    objects = render({"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "mine"}})
    assert {found["kind"] for found in objects} & {"ServiceAccount", "ClusterRoleBinding", "Role"} == set()
    assert only(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


def test_no_role_may_write_a_spec_read_a_secret_or_use_a_wildcard() -> None:
    rules = [
        (rule, found["metadata"]["name"])
        for found in render()
        if found["kind"] in {"ClusterRole", "Role"} and not found["metadata"]["name"].endswith("-edit")
        for rule in found["rules"]
    ]
    assert rules
    for rule, name in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], name
        if "secrets" in rule["resources"]:  # what is made for pods to show each other; the operator cannot read it back
            assert rule["verbs"] == ["create"], name
        if {"optimizedmodels", "modeldeployments"} & set(rule["resources"]):
            assert set(rule["verbs"]) <= {"get", "list", "watch"}, name


def test_whoever_may_edit_a_namespace_may_give_commands_there() -> None:
    """A command is an annotation on the object; its subresource for status is the operator's alone."""
    (role,) = [one for one in render() if one["kind"] == "ClusterRole" and one["metadata"]["name"].endswith("-edit")]
    assert role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    patched = {name for rule in role["rules"] if "patch" in rule["verbs"] for name in rule["resources"]}
    assert patched == {"optimizedmodels", "modeldeployments", "modeldeployments/scale"}


def test_the_readme_tells_every_right_of_the_operator() -> None:
    told = (CHART / "README.md").read_text().lower()
    rules = next(
        found["rules"] for found in render() if (found["kind"], found["metadata"]["name"]) == ("ClusterRole", "fettle")
    )
    assert [name for rule in rules for name in rule["resources"] if name.split("/")[0] not in told] == []


POLICIES = [
    "fettle",
    "fettle-jobs",
    "fettle-trainings",
    "fettle-servers",
    "fettle-addresses",
    "fettle-token-review",
    "fettle-tracing",
]


def policies(values: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {
        (found["metadata"]["namespace"], found["metadata"]["name"]): found["spec"]
        for found in render(values)
        if found["kind"] == "NetworkPolicy"
    }


def test_the_operator_has_a_network_policy_and_jobs_and_servers_where_the_chart_knows_their_namespaces() -> None:
    assert list(policies({})) == [("fettle-system", "fettle")]
    assert policies({"networkPolicies": {"enabled": False}}) == {}
    watched = policies({"watchNamespaces": ["team-a"]})
    assert list(watched) == list(zip(["fettle-system", *["team-a"] * 6], POLICIES, strict=True))
    listed = policies({"networkPolicies": {"namespaces": ["team-b"]}})
    assert list(listed) == list(zip(["fettle-system", *["team-b"] * 6], POLICIES, strict=True))


def test_network_policies_select_the_pods_that_there_are_and_let_nothing_of_a_job_through() -> None:
    found = policies({"watchNamespaces": ["team-a"]})
    assert found["fettle-system", "fettle"]["podSelector"] == only(render(), "Deployment")["spec"]["selector"]
    for name, label in (("fettle-jobs", OPTIMIZED_MODEL_LABEL), ("fettle-servers", MODEL_DEPLOYMENT_LABEL)):
        spec = found["team-a", name]
        assert spec["podSelector"] == {"matchExpressions": [{"key": label, "operator": "Exists"}]}
        assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & found["team-a", "fettle-jobs"].keys()
    servers = found["team-a", "fettle-servers"]
    assert [port["port"] for rule in servers["ingress"] for port in rule["ports"]] == ["http", "grpc", "management"]
    assert all(
        "from" in rule for rule in servers["ingress"] if {"protocol": "TCP", "port": "management"} in rule["ports"]
    )
    assert servers["egress"][1]["ports"] == [{"protocol": "TCP", "port": MANAGEMENT_PORT}]


def test_pods_that_train_together_reach_each_other_and_names_and_nothing_else() -> None:
    spec = policies({"watchNamespaces": ["team-a"]})["team-a", "fettle-trainings"]
    each_other = [{"podSelector": {"matchExpressions": [{"key": TRAINING_LABEL, "operator": "Exists"}]}}]
    assert [spec["podSelector"]] == [one["podSelector"] for one in each_other]
    assert spec["ingress"] == [{"from": each_other}]
    names, peers = spec["egress"]
    assert [port["port"] for port in names["ports"]] == [53, 53]
    assert peers == {"to": each_other}


def test_pods_with_addresses_outside_reach_them_and_no_other_pod_does() -> None:
    values = {"watchNamespaces": ["team-a"], "networkPolicies": {"addressPorts": [443, 9000]}}
    spec = policies(values)["team-a", "fettle-addresses"]
    assert spec["podSelector"] == {"matchLabels": labels([Address("s3://bucket/model.onnx")])}
    assert labels([Address("pvc://models/model.onnx"), Address("file:///m.onnx")]) == {}
    assert spec["policyTypes"] == ["Egress"]
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 443, 9000]


def test_pods_that_check_tokens_reach_the_api_server_and_no_other_serving_pod_does() -> None:
    values = {"watchNamespaces": ["team-a"], "networkPolicies": {"apiServerPorts": [6443]}}
    spec = policies(values)["team-a", "fettle-token-review"]
    assert spec["podSelector"] == {"matchLabels": {REVIEW_LABEL: "true"}}
    assert spec["policyTypes"] == ["Egress"]
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 6443]


def test_pods_that_are_traced_reach_collectors_and_no_other_serving_pod_does() -> None:
    values = {"watchNamespaces": ["team-a"], "networkPolicies": {"tracingPorts": [4317, 4318]}}
    spec = policies(values)["team-a", "fettle-tracing"]
    assert spec["podSelector"] == {"matchLabels": {TRACING_LABEL: "true"}}
    assert spec["policyTypes"] == ["Egress"]
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 4317, 4318]


def test_only_service_accounts_that_are_named_may_check_tokens_and_they_may_do_nothing_else() -> None:
    assert not any(found["metadata"]["name"] == "fettle-token-review" for found in render())
    named = [{"namespace": "team", "name": "server"}, {"namespace": "other", "name": "default"}]
    for values in ({}, {"watchNamespaces": ["team"]}):
        objects = render({**values, "rbac": {"tokenReviewers": named}})
        role, binding = (
            found
            for found in objects
            if found["metadata"]["name"] == "fettle-token-review" and found["kind"].startswith("ClusterRole")
        )
        assert role["rules"] == [
            {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
        ]
        assert binding["roleRef"]["name"] == "fettle-token-review"
        assert binding["subjects"] == [{"kind": "ServiceAccount", **one} for one in named]


# Another value for each that has no other of its type.
OTHER: dict[str, Any] = {
    "image.pullPolicy": "Always",
    "operator.log.level": "DEBUG",
    "operator.log.format": "text",
    "store.uri": "pvc://other",
    "store.size": "1Gi",
    "store.accessModes": ["ReadWriteMany"],
    "jobs.measureMemory": "3Gi",
    "serving.memory": "2Gi",
    "serving.resources": {"limits": {"cpu": 1}},
    "operator.env": [{"name": "A", "value": "b"}],
    "operator.imagePullSecrets": [{"name": "registry"}],
    "operator.tolerations": [{"operator": "Exists"}],
    "operator.topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
    ],
    "operator.affinity": {"podAntiAffinity": {}},
    "operator.resources.limits": {"memory": "1Gi"},
    "operator.resources.requests": {"cpu": 1},
    "rbac.tokenReviewers": [{"namespace": "team", "name": "server"}],
    "networkPolicies.apiServerPorts": [8443],
    "networkPolicies.addressPorts": [9000],
    "networkPolicies.tracingPorts": [4318],
    "jobs.resources.requests": {"cpu": 2},
    "jobs.resources.limits.memory": "7Gi",
    "metrics.serviceMonitor.interval": "7s",
    "metrics.podMonitor.interval": "7s",
}
# What another value needs to be in force before it changes an object.
NEEDS: dict[str, dict[str, Any]] = {
    "podDisruptionBudget.minAvailable": {"podDisruptionBudget": {"enabled": True}},
    "serviceAccount.annotations": {},
    "networkPolicies.addressPorts": {"networkPolicies": {"namespaces": ["team"]}},
    "networkPolicies.tracingPorts": {"networkPolicies": {"namespaces": ["team"]}},
    "metrics.serviceMonitor.interval": {"metrics": {"serviceMonitor": {"enabled": True}}},
    "metrics.serviceMonitor.labels": {"metrics": {"serviceMonitor": {"enabled": True}}},
    "metrics.podMonitor.interval": {"metrics": {"podMonitor": {"enabled": True}}},
    "metrics.podMonitor.labels": {"metrics": {"podMonitor": {"enabled": True}}},
}


def other(path: str, value: Any) -> Any:
    """A value that is not the default."""
    for known, replaced in OTHER.items():
        if path == known or path.startswith(f"{known}."):
            return next(iter(replaced.values())) if path != known and isinstance(replaced, dict) else replaced
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {str: "other", list: ["other"], dict: {"example.com/other": "yes"}}[type(value)]


def nested(path: str, value: Any) -> dict[str, Any]:
    """`value` at a dotted path."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], two[key]) for key in one.keys() & two.keys() if isinstance(one[key], dict)}
    return {**one, **two, **both}


VALUES = {
    path.lstrip("."): value for path, value in leaves(yaml.safe_load((CHART / "values.yaml").read_text())).items()
}


@pytest.mark.parametrize("path", VALUES)
def test_every_value_changes_an_object(path: str) -> None:
    given = NEEDS.get(path, {})
    if not path.startswith("crds."):  # nothing else changes those, and they are what takes long to render
        given = {**given, "crds": {"enabled": False}}
    assert render(merged(given, nested(path, other(path, VALUES[path])))) != render(given)


def test_options_appear_where_they_are_asked_for() -> None:
    objects = render(
        {
            "replicas": 2,
            "podDisruptionBudget": {"enabled": True, "minAvailable": 1},
            "operator": {
                "imagePullSecrets": [{"name": "registry"}],
                "priorityClassName": "high",
                "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"operator": "Exists"}],
                "affinity": {"podAntiAffinity": {}},
                "podLabels": {"team": "ml"},
                "podAnnotations": {"note": "x"},
                "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
            },
            "metrics": {"service": {"annotations": {"prometheus.io/scrape": "true"}}},
        }
    )
    template = only(objects, "Deployment")["spec"]["template"]
    assert only(objects, "Deployment")["spec"]["replicas"] == 2
    assert template["metadata"]["labels"]["team"] == "ml"
    assert template["metadata"]["annotations"] == {"note": "x"}
    wanted = {"imagePullSecrets", "priorityClassName", "nodeSelector", "tolerations", "affinity"}
    assert wanted <= template["spec"].keys()
    assert environment(objects)["HTTPS_PROXY"] == "http://proxy"
    budget = only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert budget == only(objects, "Service")["spec"]["selector"]
    assert budget.items() <= template["metadata"]["labels"].items()
