"""What a ModelDeployment is made of, as it is sent to the API server: golden YAML. FETTLE_UPDATE_GOLDEN=1 writes it anew."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fettle.api.base import REVISION_LABEL
from fettle.api.modeldeployment import TemplateSpec
from fettle.api.optimizedmodel_status import Placement
from fettle.api.pods import ResourceSpec
from fettle.api.server import ServerSpec
from fettle.api.vocabulary import RuntimeName
from fettle.cluster import ledger, serving
from fettle.cluster.credentials import EGRESS_LABEL
from fettle.cluster.kinds import Object
from fettle.plan.rollout.revision import ModelRevision, ServedArtifact
from fettle.plan.rollout.state import OpenEntry
from fettle.settings import Settings

GOLDEN = Path(__file__).parent / "golden"
OWNER = {"metadata": {"namespace": "team", "name": "digits", "uid": "3e1c7f1e", "generation": 2}}
SETTINGS = Settings(server_image="registry.example/server:1", image_pull_secrets=("pull",))
SHA = "ab" * 32
GPU = "nvidia.com/gpu"
URI = f"pvc://fettle-store/artifacts/{SHA}"


def revision(placement: dict[str, Any] | None = None, uri: str = URI, **fields: Any) -> ModelRevision:
    artifact = ServedArtifact(uri, SHA, RuntimeName.OPENVINO, 2, Placement.model_validate(placement or {}))
    server = ServerSpec.model_validate(fields.get("server", {}))
    return ModelRevision("0123456789", artifact, server, TemplateSpec.model_validate(fields.get("template", {})))


EVERYTHING = revision(
    {
        "nodeSelector": {"pool": "edge", "arch": "new"},
        "tolerations": [{"key": "edge", "operator": "Exists"}],
        "runtimeClassName": "kata",
    },
    server={
        "threads": 1,
        "batching": {"maxSize": 8, "maxDelayMilliseconds": 2.5},
        "tls": {"secretName": "digits-tls", "requireClientCertificate": True},
        "auth": {"secretName": "digits-tokens"},
        "image": "registry.example/server:mine",
        "resources": {"requests": {"cpu": "200m"}, "limits": {"cpu": "200m", "memory": "512Mi"}},
        "env": [{"name": "LOG", "value": "x"}, {"name": "FETTLE_SERVER_PORT", "value": "1"}],
    },
    template={
        "labels": {"team": "vision", "fettle.dev/revision": "forged"},
        "annotations": {"note": "mine"},
        "nodeSelector": {"arch": "old"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "serviceAccountName": "server",
        "imagePullSecrets": [{"name": "own"}, {"name": "pull"}],
        "priorityClassName": "high",
    },
)


REVIEWING = revision(
    server={"auth": {"tokenReview": {"groups": ["system:serviceaccounts:team"]}}, "samples": 0},
    template={"serviceAccountName": "server"},
)
TRACED = revision(server={"tracing": {"endpoint": "http://collector.observability:4317", "sampleRatio": 0.1}})
LOGGING = revision(server={"logging": {"requests": {"uri": "pvc://fettle-store", "maxItems": 300}}})
ENCRYPTED = OWNER | {"spec": {"server": {"tls": {"secretName": "digits-tls"}}}}
ON_A_GPU = replace(
    revision(),
    artifact=ServedArtifact(
        URI,
        SHA,
        RuntimeName.TENSORRT_RTX,
        1,
        Placement.model_validate(
            {
                "nodeSelector": {"nvidia.com/gpu.compute.major": "8", "nvidia.com/gpu.compute.minor": "9"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "runtimeClassName": "nvidia",
                "architecture": "sm89",
                "limits": {GPU: 1},
            }
        ),
    ),
)


@pytest.mark.parametrize(
    ("name", "rendered"),
    [
        ("serving-pod-template", serving.pod_template(OWNER, revision(), SETTINGS)),
        ("serving-pod-template-with-everything", serving.pod_template(OWNER, EVERYTHING, SETTINGS)),
        ("serving-pod-template-with-tokens-of-kubernetes", serving.pod_template(OWNER, REVIEWING, SETTINGS)),
        ("serving-pod-template-with-traces", serving.pod_template(OWNER, TRACED, SETTINGS)),
        ("serving-pod-template-with-a-request-log", serving.pod_template(OWNER, LOGGING, SETTINGS)),
        ("serving-pod-template-on-a-gpu", serving.pod_template(OWNER, ON_A_GPU, SETTINGS)),
        ("serving-deployment", serving.deployment(OWNER, "0123456789", URI, {"metadata": {}, "spec": {}}, 3)),
        ("serving-service", serving.service(OWNER, "0123456789")),
        ("serving-service-with-tls", serving.service(ENCRYPTED, "0123456789")),
        ("serving-samples-service", serving.samples_service(OWNER, "0123456789")),
        ("serving-samples-secret", serving.samples_secret(OWNER, "token")),
        ("serving-disruption-budget", serving.disruption_budget(OWNER)),
        ("ledger-line", ledger.render(OWNER, OpenEntry(4, "0123456789", URI, adopt=False), {"spec": {}})),
    ],
)
def test_what_is_sent_is_what_the_golden_file_says(name: str, rendered: Object) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump(rendered, sort_keys=True, width=120)
    if os.environ.get("FETTLE_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text()


def test_the_service_finds_the_pods_of_every_revision() -> None:
    labels = serving.pod_template(OWNER, EVERYTHING, SETTINGS)["metadata"]["labels"]
    selector = serving.service(OWNER, None)["spec"]["selector"]
    assert selector.items() <= labels.items()
    assert REVISION_LABEL not in selector


def test_samples_come_from_the_stable_revisions_pods_only() -> None:
    labels = serving.pod_template(OWNER, EVERYTHING, SETTINGS)["metadata"]["labels"]
    assert serving.samples_service(OWNER, "0123456789")["spec"]["selector"].items() <= labels.items()
    assert not serving.samples_service(OWNER, "another")["spec"]["selector"].items() <= labels.items()


def test_without_samples_pods_neither_know_the_secret_nor_the_stable_revision() -> None:
    spec = serving.pod_template(OWNER, revision(server={"samples": 0}), SETTINGS)["spec"]
    told = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
    assert told["FETTLE_SERVER_SAMPLES"] == "0"
    assert "FETTLE_SERVER_STABLE" not in told
    assert "samples" not in {volume["name"] for volume in spec["volumes"]}


def test_a_name_of_any_length_has_its_way_to_samples() -> None:
    owner = {"metadata": {**OWNER["metadata"], "name": "m" * 46}}
    assert len(serving.samples_name(owner)) <= 63
    assert serving.samples_name(owner) != serving.samples_name({"metadata": {**owner["metadata"], "uid": "another"}})


def logging_to(uri: str, secret: str | None = None) -> dict[str, Any]:
    return {"logging": {"requests": {"uri": uri, **({"secretName": secret} if secret is not None else {})}}}


def test_a_claim_that_is_read_and_written_is_one_volume() -> None:
    """A pod with two volumes of a claim may never start."""
    spec = serving.pod_template(OWNER, LOGGING, SETTINGS)["spec"]
    claims = [one for one in spec["volumes"] if "persistentVolumeClaim" in one]
    assert claims == [{"name": "store", "persistentVolumeClaim": {"claimName": "fettle-store"}}]
    fetch, serve = (spec[kind][0]["volumeMounts"] for kind in ("initContainers", "containers"))
    mounted = {"name": "store", "mountPath": "/mnt/claims/fettle-store"}
    assert mounted | {"readOnly": True} in fetch and mounted in serve


def test_the_server_can_write_its_log_and_not_read_where_the_artifact_lies() -> None:
    logged = revision(uri=f"s3://models/store/artifacts/{SHA}", server=logging_to("s3://logs/fettle", "log-keys"))
    logged = replace(logged, artifact=replace(logged.artifact, secret_name="store-keys"))
    template = serving.pod_template(OWNER, logged, SETTINGS)
    spec = template["spec"]
    secrets = {one["name"]: one["secret"]["secretName"] for one in spec["volumes"] if one["name"].startswith("secret")}

    def reached(kind: str) -> tuple[set[str], Any]:
        container = spec[kind][0]
        told = {one["name"]: one["value"] for one in container["env"]}
        return {secrets[one["name"]] for one in container["volumeMounts"] if one["name"] in secrets}, json.loads(
            told["FETTLE_SECRETS"]
        )

    assert reached("initContainers") == ({"store-keys"}, {"s3://models/store": "/mnt/secrets/store-keys"})
    assert reached("containers") == ({"log-keys"}, {"s3://logs/fettle": "/mnt/secrets/log-keys"})
    assert template["metadata"]["labels"][EGRESS_LABEL] == "true"


def test_a_log_outside_of_the_cluster_lets_the_pod_out_to_it() -> None:
    labels = serving.pod_template(OWNER, revision(server=logging_to("gs://logs")), SETTINGS)["metadata"]["labels"]
    assert labels[EGRESS_LABEL] == "true"
    assert EGRESS_LABEL not in serving.pod_template(OWNER, LOGGING, SETTINGS)["metadata"]["labels"]


def test_only_the_init_container_sees_the_store_and_only_to_read() -> None:
    spec = serving.pod_template(OWNER, revision(), SETTINGS)["spec"]
    mounts = {one["mountPath"]: one for one in spec["initContainers"][0]["volumeMounts"]}
    assert mounts["/mnt/claims/fettle-store"]["readOnly"] is True
    assert all("claims" not in one["mountPath"] for one in spec["containers"][0]["volumeMounts"])
    told = {one["name"]: one["value"] for one in spec["initContainers"][0]["env"]}
    assert json.loads(told["FETTLE_MOUNTS"]) == {"fettle-store": "/mnt/claims/fettle-store"}


def test_only_the_init_container_gets_the_credentials_of_a_bucket_and_no_value_of_them() -> None:
    plain = revision(uri=f"s3://bucket/artifacts/{SHA}")
    given = replace(plain, artifact=replace(plain.artifact, secret_name="minio"))
    template = serving.pod_template(OWNER, given, SETTINGS)
    assert template["metadata"]["labels"][EGRESS_LABEL] == "true"
    (volume,) = (one for one in template["spec"]["volumes"] if one.get("secret", {}).get("secretName") == "minio")
    fetch, server = template["spec"]["initContainers"][0], template["spec"]["containers"][0]
    assert {"name": volume["name"], "mountPath": "/mnt/secrets/minio", "readOnly": True} in fetch["volumeMounts"]
    assert volume["name"] not in {one["name"] for one in server["volumeMounts"]}
    told = {one["name"]: one for one in fetch["env"]}
    assert json.loads(told["FETTLE_SECRETS"]["value"]) == {"s3://bucket": "/mnt/secrets/minio"}
    assert not [one for one in fetch["env"] if "valueFrom" in one]
    assert "FETTLE_SECRETS" not in {one["name"] for one in server["env"]}


def test_a_store_that_is_no_claim_mounts_none() -> None:
    spec = serving.pod_template(OWNER, revision(uri=f"s3://bucket/artifacts/{SHA}"), SETTINGS)["spec"]
    assert [volume["name"] for volume in spec["volumes"]] == ["model", "tmp", "samples"]


def test_the_contracts_environment_wins_over_the_users() -> None:
    for container in ("initContainers", "containers"):
        environment = serving.pod_template(OWNER, EVERYTHING, SETTINGS)["spec"][container][0]["env"]
        assert [one["value"] for one in environment if one["name"] == "FETTLE_SERVER_PORT"] == ["8080"]
        assert {"name": "LOG", "value": "x"} in environment


@pytest.mark.parametrize(
    ("spec", "default", "gpus", "expected"),
    [
        ({}, {}, {}, {"cpu": 2, "memory": "1Gi"}),
        ({"threads": 4}, {}, {}, {"cpu": 4, "memory": "1Gi"}),
        ({}, {"limits": {"cpu": "3"}}, {}, {"cpu": "3"}),
        ({"resources": {"limits": {"cpu": "5"}}}, {"limits": {"cpu": "3"}}, {}, {"cpu": "5"}),
        ({}, {}, {GPU: 1}, {"cpu": 2, "memory": "1Gi", GPU: 1}),
        ({}, {"limits": {"cpu": "3"}}, {GPU: 1}, {"cpu": "3", GPU: 1}),
        ({"resources": {"limits": {"cpu": "5"}}}, {}, {"nvidia.com/mig-1g.10gb": 1}, {"cpu": "5", "nvidia.com/mig-1g.10gb": 1}),
        ({"resources": {"limits": {GPU: 2}}}, {}, {GPU: 1}, {GPU: 2}),
        ({"resources": {"limits": {GPU: "0"}}}, {}, {GPU: 1}, {GPU: 1}),
        ({"resources": {"requests": {GPU: 2}}}, {}, {GPU: 1}, {GPU: 2}),
    ],
)  # fmt: skip
def test_resources_come_from_the_spec_then_the_settings_then_the_threads_and_a_gpu_from_the_artifact(
    spec: dict[str, Any], default: dict[str, Any], gpus: dict[str, int], expected: dict[str, Any]
) -> None:
    settings = Settings(server_resources=ResourceSpec.model_validate(default))
    artifact = revision({"limits": gpus} if gpus else None).artifact
    assert serving.resources_of(ServerSpec.model_validate(spec), artifact, settings).limits == expected


@pytest.mark.parametrize(
    ("runtime", "setting", "expected"),
    [
        (RuntimeName.TENSORRT_RTX, "1Gi", "2048Mi"),
        (RuntimeName.TORCHSCRIPT_CUDA, "1Gi", "3072Mi"),
        (RuntimeName.ONNXRUNTIME_CUDA, "8Gi", "8Gi"),
        (RuntimeName.ONNXRUNTIME, "1Gi", "1Gi"),
        (RuntimeName.OPENVINO, "8Gi", "8Gi"),
    ],
)
def test_a_pod_on_a_gpu_has_the_memory_that_the_operator_is_told_and_what_cuda_takes_at_least(
    runtime: RuntimeName, setting: str, expected: str
) -> None:
    """Also where a runtime of CPUs won on a target with a GPU: what a bare process takes is no limit for one with a model."""
    artifact = replace(ON_A_GPU.artifact, runtime=runtime)
    found = serving.resources_of(ServerSpec(), artifact, Settings(server_memory=setting))
    assert found.limits == found.requests == {"cpu": 1, "memory": expected, GPU: 1}


def test_a_pod_outlives_its_drain() -> None:
    spec = serving.pod_template(OWNER, revision(), Settings(drain_seconds=40))["spec"]
    assert spec["terminationGracePeriodSeconds"] > 40
