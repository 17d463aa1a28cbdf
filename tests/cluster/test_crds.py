"""What a real API server says to good and bad manifests, and what people see through kubectl."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from tests.data.manifest_tables import BAD, EXAMPLES, GOOD, TABLES, manifest
from tools.demo.watch import polls

from fettle.api.base import API_VERSION
from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.optimizedmodel import OptimizedModelSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus

pytestmark = pytest.mark.cluster

MODELS = {"optimizedmodel": OptimizedModelSpec, "modeldeployment": ModelDeploymentSpec}
UNCHECKED = "some validation rules were not checked"  # the server's own remark beside a complaint


@pytest.fixture(scope="module")
def objects(cluster: Any) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(config.new_client_from_config(str(cluster.kubeconfig)))


def create(objects: client.CustomObjectsApi, kind: str, body: dict[str, Any], **options: str) -> dict[str, Any]:
    found: dict[str, Any] = objects.create_namespaced_custom_object(
        "fettle.dev", "v1alpha1", "default", f"{kind}s", body, dry_run="All", field_validation="Strict", **options
    )
    return found


def complaints(error: client.ApiException) -> list[str]:
    """Each cause as FIELD: MESSAGE, without the words that Kubernetes puts before a rule's own message."""
    status = json.loads(error.body)
    found = []
    for cause in status.get("details", {}).get("causes", []):
        message = cause["message"].removeprefix('Invalid value: "object": ').removeprefix('Invalid value: "string": ')
        message = message.removeprefix("Invalid value: ") if message.endswith("input") else message
        if UNCHECKED not in message:
            found.append(f"{cause['field']}: {message}".removeprefix("<nil>: "))
    return found or [status["message"].split(": ", 1)[1]]


@pytest.mark.parametrize(("kind", "case"), GOOD)
def test_a_good_manifest_is_taken(objects: client.CustomObjectsApi, kind: str, case: str) -> None:
    body = manifest(kind, "good", case)
    stored = create(objects, kind, body)
    # What the server stored (with its defaults) means the same to us as what was written.
    assert MODELS[kind].model_validate(stored["spec"]) == MODELS[kind].model_validate(body["spec"])


@pytest.mark.parametrize(("kind", "case"), BAD)
def test_a_bad_manifest_is_refused_with_words_that_help(objects: client.CustomObjectsApi, kind: str, case: str) -> None:
    with pytest.raises(client.ApiException) as refused:
        create(objects, kind, manifest(kind, "bad", case))
    assert complaints(refused.value) == TABLES[kind]["bad"][case]["complaints"]


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_and_every_manifest_of_the_docs_is_taken(objects: client.CustomObjectsApi, text: str) -> None:
    for body in yaml.safe_load_all(text):
        create(objects, body["kind"].lower(), body)


@pytest.mark.parametrize("kind", TABLES)
def test_items_of_lists_grow_no_fields(objects: client.CustomObjectsApi, kind: str) -> None:
    """A GitOps tool compares lists as a whole: a default inside of one would make every object look changed."""
    for case in TABLES[kind]["good"]:
        body = manifest(kind, "good", case)
        stored = create(objects, kind, body)
        lists = [(key, value) for key, value in _walk(body["spec"]) if isinstance(value, list)]
        found = dict(_walk(stored["spec"]))
        assert [(key, found[key]) for key, _ in lists] == lists


def _walk(node: Any, where: str = "") -> list[tuple[str, Any]]:
    here = [(where, node)]
    if isinstance(node, dict):
        for key, value in node.items():
            here += _walk(value, f"{where}.{key}")
    return here


@pytest.fixture(scope="module")
def explain(cluster: Any) -> Callable[[str], str]:
    """`kubectl explain`, once the server publishes the CRDs' schema: some seconds after they are established."""
    for kind in ("om", "mdep"):
        for _ in polls(60):
            with suppress(AssertionError):
                cluster("explain", kind)
                break
    return lambda path: " ".join(cluster("explain", path).split())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("om", "An OptimizedModel converts, optimizes and measures a trained model"),
        ("om.spec.constraints.accuracy.maxDrop", "Maximum accuracy drop, in the unit of the metric."),
        ("om.spec.targets.threads", "Maximum number of threads for one inference. Default: 1."),
        ("om.status.candidates.accuracyDrop", "Accuracy drop compared with the original. Positive means worse."),
        ("mdep", "New versions start as canaries"),
        (
            "mdep.spec.rollout.analysis.minRequests",
            "Minimum number of requests before a window is judged. Default: 50.",
        ),
        ("mdep.status.canary.actualWeight", "its share of ready pods"),
    ],
)
def test_kubectl_explain_tells_what_a_field_means(explain: Callable[[str], str], path: str, words: str) -> None:
    assert words in explain(path)


def row(kubectl: Any, kind: str, status: dict[str, Any]) -> dict[str, Any]:
    """What `kubectl get` would print of the object `digits` with that status; nothing is stored, an operator may be at work."""
    api = config.new_client_from_config(str(kubectl.kubeconfig))
    found = api.call_api(
        "PATCH",
        f"{api.configuration.host}/apis/{API_VERSION}/namespaces/{kubectl.namespace}/{kind}s/digits/status?dryRun=All",
        {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io", "Content-Type": "application/merge-patch+json"},
        {"status": status},
    )
    table = json.loads(found.read())
    names = [column["name"] for column in table["columnDefinitions"]]
    return dict(zip(names, table["rows"][0]["cells"], strict=True))


def test_kubectl_get_shows_an_optimizedmodels_winners(kubectl: Any) -> None:
    kubectl.apply(manifest("optimizedmodel", "good", "the smallest one"))
    artifact = {
        "candidate": "int8",
        "runtime": "openvino",
        "uri": "pvc://fettle-store/artifacts/x",
        "sha256": "0" * 64,
        "bytes": 1_230_000,
        "speedup": 2.512,
        "accuracy_drop": 0.001,
    }
    published = [{"target": "cpu"} | artifact, {"target": "small"} | artifact]
    cells = row(kubectl, "optimizedmodel", OptimizedModelStatus(artifacts=published).to_json())
    assert list(cells) == ["Name", "Ready", "Targets", "Speedup", "Drop", "Size", "Reason", "Age"]
    assert (cells["Targets"], cells["Speedup"]) == ("cpu,small", "2.51x,2.51x")
    assert (cells["Drop"], cells["Size"]) == ("0.001,0.001", "1.23MB,1.23MB")


def test_kubectl_get_shows_a_modeldeployments_canary(kubectl: Any) -> None:
    kubectl.apply(manifest("modeldeployment", "good", "the smallest one"))
    revision = {"revision": "abc", "artifact": "x", "replicas": 2, "ready": 2}
    canary = revision | {"revision": "def", "weight": 50, "actualWeight": 33, "step": 1}
    status = {"stable": revision, "canary": canary, "address": {"url": "http://digits"}}
    cells = row(kubectl, "modeldeployment", status)
    assert list(cells) == ["Name", "Ready", "Stable", "Canary", "Weight", "Step", "Reason", "URL", "Age"]
    assert list(cells.values())[2:6] == ["abc", "def", 33, 1]
    assert cells["URL"] == "http://digits"


def test_both_kinds_answer_to_their_short_names_and_their_category(kubectl: Any) -> None:
    for kind in TABLES:
        kubectl.apply(manifest(kind, "good", "the smallest one"))
    found = kubectl("get", "fettle", "-o", "name").split()
    assert sorted(found) == ["modeldeployment.fettle.dev/digits", "optimizedmodel.fettle.dev/digits"]
    assert kubectl("get", "om,mdep", "-o", "name").split() == sorted(found, reverse=True)


def test_an_autoscaler_can_scale_a_modeldeployment(kubectl: Any) -> None:
    kubectl.apply(manifest("modeldeployment", "good", "the smallest one"))
    kubectl("scale", "mdep", "digits", "--replicas=4")
    assert kubectl.get("mdep", "digits", "--subresource=scale")["spec"]["replicas"] == 4
    assert kubectl.get("mdep", "digits")["spec"]["replicas"] == 4
