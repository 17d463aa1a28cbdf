"""Jobs as they are sent to the API server: golden YAML. FETTLE_UPDATE_GOLDEN=1 writes it anew."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.plan.optimize.world import stored

from fettle.api.optimizedmodel import JobsSpec, OptimizedModelSpec
from fettle.api.recipe import RecipeStep, RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.task import (
    LEADER_VARIABLE,
    PLAIN_LIMIT,
    AnyTask,
    BuildPlan,
    BuildTask,
    BuiltCandidate,
    CandidatePlan,
    MeasureTask,
    PrepareTask,
    PublishTask,
    StoredData,
    TrainingPlan,
    decode_task,
    task_hash,
)
from fettle.api.training import TrainSpec
from fettle.api.uris import Address
from fettle.api.vocabulary import RuntimeName
from fettle.cluster.claims import claims_of, read_from
from fettle.cluster.credentials import EGRESS_LABEL
from fettle.cluster.jobs import job_name, render, render_meeting, trains
from fettle.cluster.kinds import Object
from fettle.cluster.owner import Key, controller_of, owner_key
from fettle.plan.run.state import TaskRequest
from fettle.plan.run.tasks import prepare_task
from fettle.settings import Settings

GOLDEN = Path(__file__).parent / "golden"
OWNER = {"metadata": {"namespace": "team", "name": "digits", "uid": "3e1c7f1e", "generation": 2}}
STORE = Address("pvc://fettle-store")
SETTINGS = Settings(optimizer_image="registry.example/optimizer:1", image_pull_secrets=("pull",))


def spec(**fields: Any) -> OptimizedModelSpec:
    return OptimizedModelSpec.model_validate(
        {"source": {"uri": "pvc://models/digits.onnx"}, "targets": [{"name": "cpu"}], **fields}
    )


def prepare(**fields: Any) -> PrepareTask:
    given = spec(**fields)
    store = given.store.uri if given.store is not None else "pvc://fettle-store"
    return PrepareTask(store=store, source=given.source, data=given.data, builds=())


def publish(verdicts: int = 0, **changes: Any) -> PublishTask:
    return PublishTask.model_validate(
        {
            "store": "pvc://fettle-store/digits",
            "namespace": "team",
            "name": "digits",
            "generation": 2,
            "objective": "Latency",
            "prepare": "p" * 64,
            "builds": [f"{number:064d}" for number in range(verdicts)],
            "measures": [],
            "verdicts": [],
            **changes,
        }
    )


def wanted(task: AnyTask, stage: str, **fields: Any) -> TaskRequest:
    return TaskRequest(task, task_hash(task), 0, stage, stage, 3600, **fields)


TARGET = spec(
    targets=[
        {
            "name": "edge",
            "threads": 2,
            "nodeSelector": {"pool": "edge"},
            "tolerations": [{"key": "edge", "operator": "Exists"}],
            "runtimeClassName": "kata",
        }
    ]
).targets[0]
GPU_TARGET = spec(
    targets=[
        {
            "name": "l4",
            "device": {"kind": "nvidia", "architecture": "sm89"},
            "nodeSelector": {"nvidia.com/gpu.compute.major": "8"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "runtimeClassName": "nvidia",
        }
    ]
).targets[0]
JOBS = JobsSpec.model_validate(
    {
        "serviceAccountName": "optimizer",
        "imagePullSecrets": [{"name": "team-pull"}],
        "labels": {"kueue.x-k8s.io/queue-name": "batch"},
        "annotations": {"note": "nightly"},
        "priorityClassName": "low",
        "env": [{"name": "OMP_WAIT_POLICY", "value": "PASSIVE"}, {"name": "FETTLE_TASK", "value": "stolen"}],
        "resources": {"requests": {"cpu": 2}, "limits": {"cpu": 2, "memory": "8Gi"}},
    }
)
DATA = {
    "calibration": {"uri": "pvc://models/calibration.npz"},
    "evaluation": {"uri": "pvc://data.v2/evaluation.npz"},
}
OUTSIDE = prepare(
    source={"uri": "https://models.example/digits.onnx", "secretName": "web"},
    data={
        "calibration": {"uri": "s3://data/calibration.npz"},
        "evaluation": {"uri": "s3://data/evaluation.npz", "secretName": "minio"},
    },
    store={"uri": "s3://artifacts/team", "secretName": "minio"},
)
REPOSITORY = {"uri": "oci://registry.example/models/digits", "secretName": "registry"}
CASES = {
    "prepare-with-addresses-outside": (JobsSpec(), wanted(OUTSIDE, "prepare")),
    "prepare": (JobsSpec(), wanted(prepare(data=DATA), "prepare")),
    "publish-to-a-registry": (JobsSpec(), wanted(publish(publish=REPOSITORY), "publish")),
    "publish-with-everything-in-spec-jobs": (JOBS, wanted(publish(), "publish")),
    "measure-on-its-target": (JOBS, wanted(publish(), "measure", target=TARGET)),
    "measure-on-a-gpu": (JobsSpec(), wanted(publish(), "measure", target=GPU_TARGET)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_job_looks_like_its_golden_file(name: str) -> None:
    jobs, task = CASES[name]
    # Without what is said twice as one object, for which YAML would write anchors.
    plain = json.loads(json.dumps(render(OWNER, jobs, task, Address(task.task.store, "minio"), SETTINGS)))
    text = yaml.safe_dump(plain, sort_keys=False, width=120)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("FETTLE_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_a_pull_secret_that_the_spec_and_the_operator_both_name_is_there_once() -> None:
    jobs = JobsSpec.model_validate({"imagePullSecrets": [{"name": "pull"}, {"name": "own"}]})
    pod = render(OWNER, jobs, wanted(publish(), "publish"), Address("pvc://fettle-store"), SETTINGS)["spec"][
        "template"
    ]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "pull"}, {"name": "own"}]


@pytest.mark.parametrize(
    ("megabytes", "memory"),
    [(2, "2Gi"), (200, "5052Mi"), (2000, "37452Mi")],
    ids=["small models: the setting", "what is loaded at once", "large models are not killed"],
)
def test_a_measuring_job_asks_for_the_memory_its_models_need(megabytes: int, memory: str) -> None:
    size = megabytes << 20
    files = stored("portable", size)
    plan = CandidatePlan(name="int8", recipe="int8", runtime=RuntimeName.OPENVINO, settings=RuntimeSettings())
    candidate = BuiltCandidate(plan=plan, model=files)
    task = MeasureTask(
        store="pvc://fettle-store",
        target="edge",
        threads=2,
        batch_sizes=(1,),
        source_sha256="0" * 64,
        signature=Signature(inputs=(), outputs=()),
        baseline=candidate,
        candidates=(candidate,) * 9,
        items=StoredData(sha256="0" * 64, items=900, bytes=92 << 20),
        generated=False,
        alpha=0.05,
    )
    pod = render(OWNER, JobsSpec(), wanted(task, "measure", target=TARGET), STORE, SETTINGS)["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == memory


@pytest.mark.parametrize(("megabytes", "memory"), [(2, "2454Mi"), (2000, "8448Mi")])
def test_a_job_that_builds_on_a_gpu_has_room_for_cuda_and_for_the_model(megabytes: int, memory: str) -> None:
    plan = BuildPlan(name="float32-tensorrt", family=RuntimeName.TENSORRT, steps=())
    nothing, model = Signature(inputs=(), outputs=()), stored("portable", megabytes << 20)
    task = BuildTask(store="pvc://fettle-store", plan=plan, cache_key="0" * 64, portable=model, signature=nothing)
    request = wanted(task, "build", target=GPU_TARGET)
    pod = render(OWNER, JobsSpec(), request, STORE, SETTINGS)["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == memory


@pytest.mark.parametrize(
    ("target", "limits"),
    [
        ({"device": {"kind": "nvidia"}}, {"cpu": 1, "memory": "2Gi", "nvidia.com/gpu": 1}),
        ({"resources": {"limits": {"nvidia.com/gpu": 2}}}, {"cpu": 1, "memory": "2Gi", "nvidia.com/gpu": 2}),
        ({"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}}, {"cpu": 1, "memory": "2Gi", "nvidia.com/mig-1g.10gb": 1}),
        ({"device": {"kind": "nvidia"}, "resources": {"limits": {"cpu": 4}}}, {"cpu": 4, "nvidia.com/gpu": 1}),
        ({"resources": {"requests": {"nvidia.com/gpu": 1}}}, {"cpu": 1, "memory": "2Gi", "nvidia.com/gpu": 1}),
        ({"resources": {"requests": {"cpu": 4, "nvidia.com/gpu": 1}}}, {"nvidia.com/gpu": 1}),
        ({"device": {"kind": "cpu"}}, {"cpu": 1, "memory": "2Gi"}),
        ({"resources": {"limits": {"nvidia.com/gpu": "0"}}}, {"cpu": 1, "memory": "2Gi"}),
        ({"device": {"kind": "nvidia"}, "resources": {"limits": {"nvidia.com/gpu": 0}}}, {"cpu": 1, "memory": "2Gi", "nvidia.com/gpu": 1}),
    ],
    ids=["one, by the device", "as many as the limits say", "a part of one", "beside other limits", "among the requests", "beside other requests",
         "none", "a limit of 0", "one, with a limit of 0"],
)  # fmt: skip
def test_a_job_on_a_gpu_asks_for_it(target: dict[str, Any], limits: dict[str, Any]) -> None:
    (asked,) = spec(targets=[{"name": "gpu", **target}]).targets
    pod = render(OWNER, JobsSpec(), wanted(publish(), "measure", target=asked), STORE, SETTINGS)["spec"]["template"][
        "spec"
    ]
    assert pod["containers"][0]["resources"]["limits"] == limits


def test_each_attempt_owner_and_task_has_a_name_of_its_own() -> None:
    one = wanted(publish(), "publish")
    other_owner = {"metadata": {**OWNER["metadata"], "uid": "another"}}
    again = TaskRequest(one.task, one.task_hash, 1, one.stage, one.label, 10)
    names = {
        job_name(OWNER, one),
        job_name(OWNER, again),
        job_name(other_owner, one),
        job_name(OWNER, CASES["prepare"][1]),
    }
    assert len(names) == 4
    assert job_name(OWNER, one) == job_name(OWNER, one)


@pytest.mark.parametrize("name", ["x", "a" * 253, "with.dots." + "b" * 60, "-".join(["ab"] * 30)])
def test_a_name_is_a_label_whatever_the_objects_name(name: str) -> None:
    owner = {"metadata": {**OWNER["metadata"], "name": name}}
    made = job_name(owner, wanted(publish(), "publish"))
    assert len(made) <= 63 and "." not in made and "--" not in made
    labels: Object = render(owner, JobsSpec(), wanted(publish(), "publish"), STORE, SETTINGS)["metadata"]["labels"]
    assert all(len(value) <= 63 and value[-1].isalnum() for value in labels.values())


def environment_of(task: AnyTask) -> dict[str, str]:
    job: Object = render(OWNER, JobsSpec(), wanted(task, task.kind), STORE, SETTINGS)
    return {one["name"]: one["value"] for one in job["spec"]["template"]["spec"]["containers"][0]["env"]}


def test_a_big_task_is_compressed_and_reads_back_the_same() -> None:
    small, big = publish(), publish(verdicts=2000)
    assert environment_of(small)["FETTLE_TASK"] == small.canonical().decode()
    assert len(big.canonical()) > PLAIN_LIMIT
    text = environment_of(big)["FETTLE_TASK"]
    assert text.startswith("zlib:")
    assert decode_task(text) == big


def test_the_store_is_written_and_everything_else_only_read() -> None:
    assert claims_of(prepare(data=DATA)) == {"models": True, "data.v2": True, "fettle-store": False}
    assert claims_of(prepare(store={"uri": "pvc://models/store"})) == {"models": False}
    assert claims_of(publish()) == {"fettle-store": False}


@pytest.mark.parametrize(("step", "told"), [({"prune": {}}, True), ({"quantize": {"mode": "Dynamic"}}, False)])
def test_only_a_job_that_trains_says_so(step: dict[str, Any], told: bool) -> None:
    plan = BuildPlan(name="lean", family=RuntimeName.TORCHSCRIPT, steps=(RecipeStep.model_validate(step),))
    nothing = Signature(inputs=(), outputs=())
    task = BuildTask(store=STORE.uri, plan=plan, cache_key="0" * 64, portable=stored("portable"), signature=nothing)
    assert trains(render(OWNER, JobsSpec(), wanted(task, "build"), STORE, SETTINGS)) is told


def test_the_code_of_a_factory_is_read_where_it_lies_and_with_the_secret_beside_it() -> None:
    factory = {"callable": "nets:create", "uri": "pvc://code/nets"}
    source = {"uri": "pvc://models/weights.pt", "factory": factory}
    assert claims_of(prepare(source=source)) == {"models": True, "code": True, "fettle-store": False}
    remote = {**source, "factory": {**factory, "uri": "s3://code/nets.whl", "secretName": "code"}}
    assert read_from(prepare(source=remote))["spec.source.factory.uri"] == Address("s3://code/nets.whl", "code")


def test_the_code_of_a_loss_is_read_where_it_lies_and_with_the_secret_beside_it() -> None:
    def given(custom: dict[str, str]) -> PrepareTask:
        recipe = {"name": "lean", "steps": [{"prune": {}}], "train": {"loss": "Custom", "custom": custom}}
        training = {"training": {"uri": "pvc://models/training.npz"}}
        asked = spec(data=training, recipes=[recipe], targets=[{"name": "cpu", "runtimes": ["openvino"]}])
        assert asked.addresses()["spec.recipes[0].train.custom.uri"] == Address(custom["uri"], custom.get("secretName"))
        return prepare_task(asked, "pvc://fettle-store")

    assert claims_of(given({"uri": "pvc://code/loss.py"})) == {"models": True, "code": True, "fettle-store": False}
    remote = read_from(given({"uri": "s3://code/loss.py", "secretName": "code"}))
    assert remote["train.custom.uri of lean-openvino"] == Address("s3://code/loss.py", "code")


def training(nodes: int, items: bool = True) -> TaskRequest:
    """A build that trains, on so many nodes."""
    plan = BuildPlan(
        name="lean",
        family=RuntimeName.TORCHSCRIPT,
        steps=(RecipeStep.model_validate({"prune": {}}),),
        training=TrainingPlan(spec=TrainSpec(nodes=nodes)),
    )
    task = BuildTask(
        store=STORE.uri,
        plan=plan,
        cache_key="0" * 64,
        portable=stored("portable"),
        signature=Signature(inputs=(), outputs=()),
        training=StoredData(sha256="1" * 64, items=100) if items else None,
    )
    return wanted(task, "build")


def test_pods_that_train_together_have_numbers_and_names_and_are_kept_apart() -> None:
    alone, job = (render(OWNER, JobsSpec(), training(nodes), STORE, SETTINGS) for nodes in (1, 3))
    assert "completionMode" not in alone["spec"] and "subdomain" not in alone["spec"]["template"]["spec"]
    spec, pod = job["spec"], job["spec"]["template"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (
        "Indexed",
        3,
        3,
        0,
    )
    service = render_meeting(job | {"metadata": {**job["metadata"], "uid": "job-uid"}})
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert controller_of(service) == {**(controller_of(service) or {}), "kind": "Job", "uid": "job-uid"}, (
        "it goes with the Job"
    )
    assert owner_key(service) == Key("OptimizedModel", "team", "digits")
    name = service["metadata"]["name"]
    assert pod["spec"]["subdomain"] == name and re.fullmatch("[a-z][a-z0-9-]{0,62}", name)
    (container,) = pod["spec"]["containers"]
    assert container["env"][-1] == {"name": LEADER_VARIABLE, "value": f"{job['metadata']['name']}-0.{name}:29500"}
    assert container["securityContext"] == alone["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    (apart,) = pod["spec"]["topologySpreadConstraints"]
    assert apart["labelSelector"]["matchLabels"] == service["spec"]["selector"]


def test_a_pods_number_fits_behind_the_name_of_its_job() -> None:
    owner = {"metadata": {**OWNER["metadata"], "name": "d" * 253}}
    assert len(job_name(owner, training(1))) == 63
    assert len(f"{job_name(owner, training(16))}-15") <= 63


def test_a_step_without_training_items_runs_in_one_pod() -> None:
    assert training(3, items=False).nodes == 1


def test_a_job_that_prepares_may_ask_the_registry_that_winners_go_to() -> None:
    asked = prepare_task(spec(publish=REPOSITORY), STORE.uri)
    pod = render(OWNER, JobsSpec(), wanted(asked, "prepare"), STORE, SETTINGS)["spec"]["template"]
    assert pod["metadata"]["labels"][EGRESS_LABEL] == "true"
    assert [volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume] == ["registry"]
