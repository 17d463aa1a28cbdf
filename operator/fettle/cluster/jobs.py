"""A task as a Kubernetes Job. Its name follows from owner, task and attempt: created once, never patched."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from fettle.api.base import GROUP, MANAGED_LABEL
from fettle.api.optimizedmodel import JobsSpec, TargetSpec
from fettle.api.pods import ResourceSpec
from fettle.api.task import AnyTask, encode_task
from fettle.api.uris import MOUNTS_VARIABLE, Address, encode_mounts
from fettle.cluster import credentials
from fettle.cluster.claims import claims_of, mounts
from fettle.cluster.kinds import JOB, OPTIMIZED_MODEL, Object
from fettle.cluster.owner import OPTIMIZED_MODEL_LABEL, OWNER_ANNOTATION, child
from fettle.cluster.quantity import quantity
from fettle.cluster.security import container_security, pod_security
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


def job_name(owner: Object, request: TaskRequest) -> str:
    """`<name>-<stage>-<10 hex digits of owner's UID, task and attempt>`, at most 63 characters."""
    identity = f"{owner['metadata']['uid']}/{request.task_hash}/{request.attempt}"
    tail = f"-{request.stage}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
    name: str = owner["metadata"]["name"]
    return name.replace(".", "-")[: 63 - len(tail)].rstrip("-") + tail


def trains(job: Object) -> bool:
    """Whether a Job is a training."""
    return TRAINS_ANNOTATION in (job["metadata"].get("annotations") or {})


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
    return {
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


def pod_spec(jobs: JobsSpec, request: TaskRequest, store: Address, settings: Settings) -> Object:
    """The pod, at the restricted Pod Security level, without a token."""
    claims, addresses = claims_of(request.task), credentials.addresses_of(request.task, store)
    secrets = [
        *({"name": name} for name in settings.image_pull_secrets),
        *(ref.to_json() for ref in jobs.image_pull_secrets),
    ]
    optional = {
        "serviceAccountName": jobs.service_account_name,
        "priorityClassName": jobs.priority_class_name,
        "imagePullSecrets": secrets,
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
        "NNCF_CI": "1",  # no telemetry
        MOUNTS_VARIABLE: encode_mounts(folders),
        **credentials.environment(addresses),
        "FETTLE_TASK": encode_task(request.task),
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
    """A Job on its target's nodes gets the target's resources, else exactly `threads` cores, so that it measures the model and not its
    neighbours, and the memory that its models need; and its GPU in any case. The others get what spec.jobs says, else the operator's default."""
    target = request.target
    if target is not None:
        amounts: dict[str, int | str] = {"cpu": target.threads, "memory": _memory(request.task, settings)}
        given, gpus = target.resources, gpu_resources(target)
        if given.requests or set(given.limits) - set(gpus):
            return given.model_copy(update={"limits": {**given.limits, **gpus}})
        return ResourceSpec(requests={**amounts, **gpus}, limits={**amounts, **gpus})
    given = jobs.resources
    return given if given.requests or given.limits else settings.job_resources


def _memory(task: AnyTask, settings: Settings) -> str:
    """The memory of a Job on its target's nodes: what its models are predicted to need, never less than the operator's setting."""
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
