"""What Deployments and pods say about a revision. Pure: objects in, domain values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.cluster.kinds import Object
from fettle.cluster.owner import terminating
from fettle.cluster.serving import ARTIFACT_ANNOTATION, REVISION_LABEL, SERVER
from fettle.cluster.waits import IMAGE_WAITS, START_WAITS, refused, unscheduled
from fettle.plan import moment
from fettle.plan.analysis import Crash
from fettle.plan.rollout_state import TRAFFIC_LABEL, PodFault, Workload

HOPELESS = frozenset({Reason.ARTIFACT_TAMPERED, Reason.ARTIFACT_NOT_FOUND, Reason.MODEL_LOAD_FAILED})
ATTEMPTS = 3  # after so many the same answer is final
NO_FAULT = ("OOMKilled", "Completed")  # ends of a container that its revision is not blamed for


def revision_of(obj: Object) -> str | None:
    """The revision an object belongs to."""
    label: str | None = (obj["metadata"].get("labels") or {}).get(REVISION_LABEL)
    return label


def artifact_of(deployment: Object) -> str:
    """Address of what its pods serve."""
    return str((deployment["metadata"].get("annotations") or {}).get(ARTIFACT_ANNOTATION, ""))


def observe(deployment: Object, pods: Iterable[Object], told: Mapping[str, PodFault] | None = None) -> Workload:
    """A revision's workload. `pods` are all pods of that revision; `told`: by UID, what the Events of some of them say."""
    pods = list(pods)
    staying = [pod for pod in pods if not terminating(pod) and not _ended(pod)]
    ours = [pod for pod in staying if not taken_out(pod)]
    ready = sum(is_ready(pod) for pod in ours)
    status = deployment.get("status") or {}
    # The Deployment knows nothing of the label: it counts pods that were taken out among those that are available.
    available = int(status.get("availableReplicas") or 0) - sum(_says_ready(pod) for pod in staying if taken_out(pod))
    return Workload(
        revision=revision_of(deployment) or "",
        artifact=artifact_of(deployment),
        replicas=int((deployment.get("spec") or {}).get("replicas", 1)),
        ready=ready,
        available=max(min(available, ready), 0),
        pods=max(len(staying), int(status.get("replicas") or 0)),
        leaving=sum(terminating(pod) for pod in pods),
        out=len(staying) - len(ours),
        fault=fault_of(deployment, ours, told or {}),
    )


def _ended(pod: Object) -> bool:
    """Evicted, preempted, or its node is gone: its Deployment has another one already."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def taken_out(pod: Object) -> bool:
    """Whether a person took the pod out of the Service, to look at it. What it does then says nothing of its revision."""
    return (pod["metadata"].get("labels") or {}).get(TRAFFIC_LABEL) != "on"


def is_ready(pod: Object) -> bool:
    """Whether the pod gets traffic."""
    return _says_ready(pod) and not taken_out(pod) and not terminating(pod)


def _says_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def fault_of(deployment: Object, pods: Sequence[Object], told: Mapping[str, PodFault]) -> PodFault | None:
    """Why pods do not become ready: the gravest of what they say, else why there are none."""
    waiting = [pod for pod in pods if not is_ready(pod)]
    said = (pod_fault(pod) or told.get(pod["metadata"].get("uid", "")) for pod in waiting)
    faults = [fault for fault in said if fault is not None]
    if faults:
        return max(faults, key=lambda fault: (fault.final, fault.reason.value))
    for condition in (deployment.get("status") or {}).get("conditions") or ():
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            message = str(condition.get("message", ""))
            return PodFault(refused(message), clip(message))
    return None


def pod_fault(pod: Object) -> PodFault | None:
    """Why one pod is not ready, if it says so."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return PodFault(*unscheduled(str(condition.get("message", ""))))
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        fault = _container_fault(container)
        if fault is not None:
            return fault
    return None


def _container_fault(container: Object) -> PodFault | None:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    waiting = state.get("waiting") or {}
    if waiting.get("reason") in IMAGE_WAITS:
        return PodFault(Reason.IMAGE_PULL_FAILED, clip(f"{waiting['reason']}: {waiting.get('message', '')}"))
    if waiting.get("reason") in START_WAITS:
        return PodFault(Reason.MODEL_LOAD_FAILED, clip(f"{waiting['reason']}: {waiting.get('message', '')}"))
    ended = state.get("terminated") or last.get("terminated") or {}
    if not ended or (ended.get("exitCode") == 0 and not ended.get("signal")):
        return None
    reason, message = said(ended)
    final = reason in HOPELESS and int(container.get("restartCount") or 0) >= ATTEMPTS - 1
    return PodFault(reason, message, final)


def said(ended: Any) -> tuple[Reason, str]:
    """What a container that failed said: the server writes `<Reason>: <message>` as its termination message."""
    if ended.get("reason") == "OOMKilled":
        return Reason.OUT_OF_MEMORY, "the kernel ended it at its memory limit: raise server.resources.limits.memory"
    text = str(ended.get("message") or "").strip()
    word, colon, rest = text.partition(": ")
    if colon and word in set(Reason):
        return Reason(word), clip(rest)
    return Reason.MODEL_LOAD_FAILED, f"exit code {ended.get('exitCode')}: {text[-400:] or 'no message'}"


def crashes(pods: Iterable[Object]) -> tuple[Crash, ...]:
    """Ends of server containers by their own fault. Evicted, preempted and memory-killed ones are not among them, nor those of
    pods that a person took out."""
    found = []
    for pod in pods:
        if terminating(pod) or _ended(pod) or taken_out(pod):
            continue
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get(
                "terminated"
            )
            if container["name"] != SERVER or not ended or ended.get("reason") in NO_FAULT:
                continue
            at = moment.read(ended.get("finishedAt"))
            if at is not None and ended.get("exitCode"):
                found.append(Crash(pod["metadata"]["name"], at, clip(said(ended)[1], 256)))
    return tuple(found)
