"""The state of a revision, derived from its Deployment and pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from fettle.api.base import REVISION_LABEL
from fettle.api.reasons import Reason
from fettle.api.signature import Signature
from fettle.api.text import clip
from fettle.cluster.kinds import DISRUPTION, Object, held_condition, holds
from fettle.cluster.owner import terminating
from fettle.cluster.serving import ARTIFACT_ANNOTATION, FETCH, SERVER, uses_tls
from fettle.cluster.waiting import IMAGE_WAITS, REMAINS, START_WAITS, container_of, not_pulled, refused, unscheduled
from fettle.plan import timestamps
from fettle.plan.rollout.state import TRAFFIC_LABEL, PodFault, Workload
from fettle.plan.rollout.window_totals import Crash

HOPELESS = frozenset(
    {Reason.ARTIFACT_TAMPERED, Reason.ARTIFACT_NOT_FOUND, Reason.MODEL_LOAD_FAILED, Reason.OUT_OF_MEMORY}
)
OOM_KILLED = "OOMKilled"
CERTAIN = frozenset({Reason.SIGNATURE_INCOMPATIBLE})  # it follows from the two artifacts alone
ATTEMPTS = 3  # after so many the same answer is final
NO_FAULT = ("Completed", *REMAINS)  # ends of a container that its revision is not blamed for


def revision_of(obj: Object) -> str | None:
    """The revision of an object: from a Deployment's selector, which cannot be changed, or from its label."""
    chosen = ((obj.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
    revision: str | None = chosen.get(REVISION_LABEL) or (obj["metadata"].get("labels") or {}).get(REVISION_LABEL)
    return revision


def artifact_of(deployment: Object) -> str:
    """The URI of the artifact that its pods serve."""
    return str((deployment["metadata"].get("annotations") or {}).get(ARTIFACT_ANNOTATION, ""))


def signature_of(pods: Iterable[Object]) -> Signature | None:
    """The inputs and outputs of a revision's artifact, as the init container of one of its pods told them when it ended.

    None if none of them did: without pods, with a server image of before, or with too many inputs and outputs for such a message.
    """
    statuses = (status for pod in pods for status in (pod.get("status") or {}).get("initContainerStatuses") or ())
    ends = (((one.get("state") or {}).get("terminated") or {}) for one in statuses if one["name"] == FETCH)
    for ended in ends:
        with suppress(ValidationError):
            return Signature.model_validate_json(ended.get("message") or "")
    return None


def observe(deployment: Object, pods: Iterable[Object], told: Mapping[str, PodFault] | None = None) -> Workload:
    """A revision's workload. `pods` are all pods of the revision; `told`: UID -> fault from the pod's Events."""
    pods = list(pods)
    staying = [pod for pod in pods if not terminating(pod) and not is_over(pod)]
    ours = [pod for pod in staying if not taken_out(pod)]
    ready = sum(is_ready(pod) for pod in ours)
    status = deployment.get("status") or {}
    # The Deployment knows nothing of the label: it counts pods that were taken out among those that are available.
    set_aside = sum(holds(pod, "Ready") for pod in staying if taken_out(pod))
    available = int(status.get("availableReplicas") or 0) - set_aside
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
        tls=uses_tls(deployment),
    )


def is_over(pod: Object) -> bool:
    """Whether the pod has ended (evicted, preempted, or its node is gone), so that its Deployment has replaced it."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def taken_out(pod: Object) -> bool:
    """Whether a person took the pod out of the Service, to inspect it. Such a pod is not evidence about its revision."""
    return (pod["metadata"].get("labels") or {}).get(TRAFFIC_LABEL) != "on"


def is_ready(pod: Object) -> bool:
    """Whether the pod gets traffic."""
    return holds(pod, "Ready") and not taken_out(pod) and not terminating(pod)


def fault_of(deployment: Object, pods: Sequence[Object], told: Mapping[str, PodFault]) -> PodFault | None:
    """Why pods do not become ready: the most serious fault of the pods, or why there are no pods."""
    waiting = [pod for pod in pods if not is_ready(pod)]
    said = (pod_fault(pod) or told.get(pod["metadata"].get("uid", "")) for pod in waiting)
    faults = [fault for fault in said if fault is not None]
    if faults:
        return max(faults, key=lambda fault: (fault.final, fault.reason.value))
    failure = held_condition(deployment, "ReplicaFailure")
    if failure is None:
        return None
    message = str(failure.get("message", ""))
    return PodFault(*refused(message))


def pod_fault(pod: Object) -> PodFault | None:
    """Why one pod is not ready, if it says so."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = str(condition.get("message", ""))
            return PodFault(*unscheduled(message, container_of(pod, SERVER), "spec.server.resources"))
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        fault = _container_fault(container, limited=_limited(pod, container["name"]))
        if fault is not None:
            return fault
    return None


def _container_fault(container: Object, *, limited: bool) -> PodFault | None:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    waiting = state.get("waiting") or {}
    if waiting.get("reason") in IMAGE_WAITS:
        return PodFault(Reason.IMAGE_PULL_FAILED, not_pulled(container))
    if waiting.get("reason") in START_WAITS:
        return PodFault(Reason.MODEL_LOAD_FAILED, clip(f"{waiting['reason']}: {waiting.get('message', '')}"))
    ended = state.get("terminated") or last.get("terminated") or {}
    if not ended or ended.get("reason") in NO_FAULT or (ended.get("exitCode") == 0 and not ended.get("signal")):
        return None
    reason, message = exit_reason(ended, limited=limited)
    own = reason is not Reason.OUT_OF_MEMORY or limited
    again = own and reason in HOPELESS and int(container.get("restartCount") or 0) >= ATTEMPTS - 1
    return PodFault(reason, message, final=again or reason in CERTAIN)


def exit_reason(ended: Any, *, limited: bool) -> tuple[Reason, str]:
    """Reason and message of a failed container: the server writes `<Reason>: <message>` as its termination message.

    `limited`: whether the container has a memory limit.
    """
    if ended.get("reason") == OOM_KILLED and limited:
        return Reason.OUT_OF_MEMORY, "killed by the kernel at its memory limit: raise server.resources.limits.memory"
    if ended.get("reason") == OOM_KILLED:
        return (
            Reason.OUT_OF_MEMORY,
            "the node ran out of memory, and the container has no limit of its own: set server.resources.limits",
        )
    text = str(ended.get("message") or "").strip()
    word, colon, rest = text.partition(": ")
    if colon and word in set(Reason):
        return Reason(word), clip(rest)
    return Reason.MODEL_LOAD_FAILED, f"exit code {ended.get('exitCode')}: {text[-400:] or 'no message'}"


def crashes(pods: Iterable[Object]) -> tuple[Crash, ...]:
    """Server containers that exited by their own fault, including kills at their own memory limit.

    Evictions, preemptions and a lack of memory on the node do not count, and neither do pods that a person took out of the Service.
    """
    crashed = []
    for pod in pods:
        if terminating(pod) or is_over(pod) or taken_out(pod) or holds(pod, DISRUPTION):
            continue
        limited = _limited(pod, SERVER)
        for ended in _ends(pod):
            at = timestamps.read(ended.get("finishedAt"))
            if at is not None and _own_fault(ended, limited=limited):
                text = clip(exit_reason(ended, limited=limited)[1], 256)
                crashed.append(Crash(pod["metadata"]["name"], at, text))
    return tuple(crashed)


def _ends(pod: Object) -> list[Object]:
    """The last termination of the server, and while it is down also the one before."""
    servers = [
        container
        for container in (pod.get("status") or {}).get("containerStatuses") or ()
        if container["name"] == SERVER
    ]
    states = [(server.get(word) or {}).get("terminated") for server in servers for word in ("lastState", "state")]
    return [ended for ended in states if ended]


def _own_fault(ended: Object, *, limited: bool) -> bool:
    """Whether a termination is the container's own fault. Without a memory limit, only its node can have run out of memory."""
    if not ended.get("exitCode") or ended.get("reason") in NO_FAULT:
        return False
    return ended.get("reason") != OOM_KILLED or limited


def _limited(pod: Object, container: str) -> bool:
    """Whether a container, or its pod as a whole, has a memory limit."""
    spec = pod.get("spec") or {}
    own = [
        part
        for part in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
        if part["name"] == container
    ]
    limits = [(part.get("resources") or {}).get("limits") or {} for part in (spec, *own)]
    return any("memory" in limit for limit in limits)
