"""A task as a Kubernetes Job. Its name follows from owner, task and attempt: created once, never patched."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from fettle.api.base import GROUP, MANAGED_LABEL, OPTIMIZED_MODEL_LABEL
from fettle.api.optimizedmodel import JobsSpec, TargetSpec
from fettle.api.pods import ResourceSpec
from fettle.api.task import LEADER_VARIABLE, AnyTask, encode_task
from fettle.api.uris import MOUNTS_VARIABLE, Address, encode_mounts
from fettle.cluster import credentials
from fettle.cluster.claims import claims_of, mounts
from fettle.cluster.kinds import JOB, OPTIMIZED_MODEL, SERVICE, Object
from fettle.cluster.owner import OWNER_ANNOTATION, child
from fettle.cluster.quantity import quantity
from fettle.cluster.security import container_security, pod_security, pull_secrets
from fettle.plan.run.devices import gpu_resources
from fettle.plan.run.images import image_of
from fettle.plan.run.state import TaskRequest
from fettle.plan.run.tasks import memory_of
from fettle.settings import Settings

CONTAINER = "optimizer"
TASK_ANNOTATION = f"{GROUP}/task"  # the whole hash
TITLE_ANNOTATION = f"{GROUP}/title"  # for a person
STAGE_LABEL = f"{GROUP}/stage"
ATTEMPT_LABEL = f"{GROUP}/attempt"
GENERATION_LABEL = f"{GROUP}/generation"
OWNER_UID_LABEL = f"{GROUP}/owner-uid"
TRAINS_ANNOTATION = f"{GROUP}/trains"  # its log tells how far a training has come
TRAINING_LABEL = f"{GROUP}/training"  # on pods that train together: what their Service, and the chart's NetworkPolicy, lets talk to each other
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
MEETING_PORT = 29500
LEADER = "0"


def job_name(owner: Object, request: TaskRequest) -> str:
    """`<name>-<stage>-<10 hex digits of owner's UID, task and attempt>`, at most 63 characters, and fewer where pods have a number behind it."""
    identity = f"{owner['metadata']['uid']}/{request.task_hash}/{request.attempt}"
    tail = f"-{request.stage}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    name: str = owner["metadata"]["name"]
    most = 63 - len(tail) - (len("-99") if request.nodes > 1 else 0)
    return name.replace(".", "-")[:most].rstrip("-") + tail


def trains(job: Object) -> bool:
    """Whether a Job is a training."""
    return TRAINS_ANNOTATION in (job["metadata"].get("annotations") or {})


def index_of(pod: Object) -> str:
    """The number of a pod among those that train together; LEADER, whose answer and log are the Job's, for one that is alone."""
    return str((pod["metadata"].get("annotations") or {}).get(INDEX_ANNOTATION, LEADER))


def meeting(job: str) -> str:
    """Name of the Service by which the pods of a Job find each other. It starts with a letter, which the name of a Job need not."""
    return f"training-{job[-10:]}"


def render_meeting(job: Object) -> Object:
    """That Service, which goes with the Job: without an address of its own, a name for each pod, before any of them is ready."""
    name = meeting(job["metadata"]["name"])
    labels = {MANAGED_LABEL: "true", OPTIMIZED_MODEL_LABEL: job["metadata"]["labels"][OPTIMIZED_MODEL_LABEL]}
    annotations = {OWNER_ANNOTATION: job["metadata"]["annotations"][OWNER_ANNOTATION]}
    return {
        **child(SERVICE, JOB, job, name, labels, annotations=annotations),
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {TRAINING_LABEL: name}},
    }


def render(owner: Object, jobs: JobsSpec, request: TaskRequest, store: Address, settings: Settings) -> Object:
    """The Job of one attempt at a task of the OptimizedModel `owner`, whose store is `store`."""
    metadata = owner["metadata"]
    labels = {
        **jobs.labels,
        **credentials.labels(credentials.addresses_of(request.task, store)),
        MANAGED_LABEL: "true",
        OPTIMIZED_MODEL_LABEL: metadata["name"][:63].rstrip("-."),
        OWNER_UID_LABEL: metadata["uid"],
        STAGE_LABEL: request.stage,
        ATTEMPT_LABEL: str(request.attempt),
        GENERATION_LABEL: str(metadata["generation"]),
    }
    annotations = {
        **jobs.annotations,
        TASK_ANNOTATION: request.task_hash,
        TITLE_ANNOTATION: request.label,
        OWNER_ANNOTATION: f"{OPTIMIZED_MODEL.kind}/{metadata['name']}",
        **({TRAINS_ANNOTATION: "true"} if request.trains else {}),
    }
    job = {
        **child(JOB, OPTIMIZED_MODEL, owner, job_name(owner, request), labels, annotations=annotations),
        "spec": {
            "backoffLimit": 0,  # another attempt is another Job: whether it may help is decided from the reason
            "activeDeadlineSeconds": max(request.deadline_seconds, 1),
            "ttlSecondsAfterFinished": settings.job_ttl_seconds,
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": pod_spec(jobs, request, store, settings),
            },
        },
    }
    return _together(job, request.nodes) if request.nodes > 1 else job


def _together(job: Object, nodes: int) -> Object:
    """The Job with so many pods, each with a number and a name, on different nodes where there are as many."""
    name, template = job["metadata"]["name"], job["spec"]["template"]
    service = meeting(name)
    (container,) = template["spec"]["containers"]
    leader = {"name": LEADER_VARIABLE, "value": f"{name}-0.{service}:{MEETING_PORT}"}
    apart = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {TRAINING_LABEL: service}},
    }
    labels = {**template["metadata"]["labels"], TRAINING_LABEL: service}
    pod = {
        **template["spec"],
        "subdomain": service,
        "topologySpreadConstraints": [apart],
        "containers": [{**container, "env": [*container["env"], leader]}],
    }
    numbered = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    template = {"metadata": {**template["metadata"], "labels": labels}, "spec": pod}
    return {**job, "spec": {**job["spec"], **numbered, "template": template}}


def pod_spec(jobs: JobsSpec, request: TaskRequest, store: Address, settings: Settings) -> Object:
    """The pod, at the restricted Pod Security level, without a token."""
    claims, addresses = claims_of(request.task), credentials.addresses_of(request.task, store)
    optional = {
        "serviceAccountName": jobs.service_account_name,
        "priorityClassName": jobs.priority_class_name,
        "imagePullSecrets": pull_secrets(jobs.image_pull_secrets, settings.image_pull_secrets),
        **_placement(request.target),
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": [_container(jobs, request, addresses, settings)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            *(
                {"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim}}
                for index, claim in enumerate(claims)
            ),
            *credentials.volumes(addresses),
        ],
        **{key: value for key, value in optional.items() if value},
    }


def _container(jobs: JobsSpec, request: TaskRequest, addresses: Sequence[Address], settings: Settings) -> Object:
    claims = claims_of(request.task)
    folders = mounts(claims)
    environment = {
        "HOME": "/tmp",
        MOUNTS_VARIABLE: encode_mounts(folders),
        **credentials.environment(addresses),
        "FETTLE_TASK": encode_task(request.task),
        **request.environment,
    }
    return {
        "name": CONTAINER,
        "image": settings.image(image_of(request.task)),
        "imagePullPolicy": settings.image_pull_policy.value,
        "command": ["python", "-m", "fettle.optimizer"],
        "env": [
            *(variable.to_json() for variable in jobs.env if variable.name not in environment),
            *({"name": name, "value": value} for name, value in environment.items()),
        ],
        "resources": resources_of(jobs, request, settings).to_json(),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            *(
                {"name": f"claim-{index}", "mountPath": folders[claim], "readOnly": read_only}
                for index, (claim, read_only) in enumerate(claims.items())
            ),
            *credentials.volume_mounts(addresses),
        ],
    }


def resources_of(jobs: JobsSpec, request: TaskRequest, settings: Settings) -> ResourceSpec:
    """The resources of a Job. On its target's nodes, it gets those of the target, or exactly `threads` cores, so that other pods do not disturb the
    measurement, and the memory that its models need; in both cases the GPU. Other Jobs get those of spec.jobs, or the operator's default."""
    target = request.target
    if target is not None:
        amounts: dict[str, int | str] = {"cpu": target.threads, "memory": _memory(request.task, settings)}
        given, gpus = target.resources, gpu_resources(target)
        if given.has_others:
            return given.with_gpus(gpus)
        return ResourceSpec(requests={**amounts, **gpus}, limits={**amounts, **gpus})
    given = jobs.resources
    return given if given.requests or given.limits else settings.job_resources


def _memory(task: AnyTask, settings: Settings) -> str:
    """The memory of a Job on its target's nodes: what its models are predicted to need, but at least the operator's setting."""
    floor, needed = quantity(settings.measure_memory) or 0, memory_of(task)
    return settings.measure_memory if needed <= floor else f"{math.ceil(needed / (1 << 20))}Mi"


def _placement(target: TargetSpec | None) -> Object:
    if target is None:
        return {}
    return {
        "nodeSelector": target.node_selector,
        "tolerations": [toleration.to_json() for toleration in target.tolerations],
        "runtimeClassName": target.runtime_class_name,
    }
