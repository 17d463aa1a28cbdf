"""Why a pod does not run yet, as a reason: from the words of the scheduler, of the kubelet and of Events. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from fettle.api import images
from fettle.api.reasons import Reason
from fettle.api.text import MESSAGE_LIMIT, clip
from fettle.cluster.kinds import Object

QUIET_SECONDS = 20  # a pod or Job that has not moved for this long is asked for its Events
IMAGE_WAITS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
START_WAITS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
# Ends of containers of which the kubelet or the runtime only found the remains, after the node or the runtime itself was started
# again: their exit code (137, 255) is made up, and nothing in it is theirs.
REMAINS = ("ContainerStatusUnknown", "Unknown")
_MOUNTED = ("Pulling", "Pulled", "Created", "Started")  # what happens in a pod only once its volumes are there
_MOUNTS = ("FailedMount", "FailedAttachVolume", "ProvisioningFailed", "FailedBinding")

# What the scheduler says of volumes (pkg/scheduler/framework/plugins/volume*), and what to do then. First match counts.
_VOLUMES: tuple[tuple[str, Reason, str], ...] = (
    (
        "PersistentVolume's node affinity",  # since 1.34; before: volume node affinity conflict
        Reason.STORE_NOT_SHARED,
        "a claim's volume is only reachable from other nodes: use a ReadWriteMany claim, or select the volume's node",
    ),
    (
        "volume node affinity conflict",
        Reason.STORE_NOT_SHARED,
        "a claim's volume is only reachable from other nodes: use a ReadWriteMany claim, or select the volume's node",
    ),
    (
        "ReadWriteOncePod",
        Reason.STORE_NOT_SHARED,
        "another pod holds a ReadWriteOncePod claim: use a ReadWriteMany claim",
    ),
    ("persistentvolumeclaim", Reason.STORE_NOT_FOUND, "create the claim, or correct the URI that names it"),
    (
        "unbound immediate PersistentVolumeClaims",
        Reason.STORE_UNREACHABLE,
        "a claim has no volume yet: see its Events (kubectl describe pvc)",
    ),
)
_CLASS_ADVICE = "create the RuntimeClass, or correct runtimeClassName"
_SECRETS = ("tls", "tokens")  # volumes of Secrets that users name
_SECRET_ADVICE = "create the Secret, or correct the secretName in server.tls or server.auth"
_NO_NODE = "add a suitable node, or request less: nodeSelector, tolerations, resources"
_TOO_LITTLE = re.compile(r"Insufficient (cpu|memory|ephemeral-storage)")
_NO_CLASS = re.compile(r'RuntimeClass "[^"]*" not found')
_NO_IMAGE = "check the image's name, the registry, and imagePullSecrets"


def unscheduled(message: str, container: Object, field: str) -> tuple[Reason, str]:
    """Reason and message for a pod that the scheduler found no node for. `message` is its own.

    `container`: the pod's container that Fettle made. `field`: the field of the object that sets its resources.
    """
    known_causes = ((reason, todo) for words, reason, todo in _VOLUMES if words in message)
    reason, todo = next(known_causes, (Reason.UNSCHEDULABLE, _NO_NODE))
    requested = (container.get("resources") or {}).get("requests") or {}
    if reason is Reason.UNSCHEDULABLE and requested and _TOO_LITTLE.search(message):
        amounts = ", ".join(f"{name} {amount}" for name, amount in requested.items())
        todo = f"each pod requests {amounts}: request less in {field}, or add a node"
    return reason, _with_advice(message, todo)


def not_pulled(container: Object) -> str:
    """The message for a container whose image the kubelet cannot pull. `container`: its status."""
    waiting, default = container["state"]["waiting"], images.of_default(str(container.get("image", "")))
    todo = _NO_IMAGE
    if default is not None:
        value = images.chart_value(default)
        todo = f"that is the chart's default name: build docker/Dockerfile.{default}, push it, and set {value}"
    return _with_advice(f"{waiting['reason']}: {waiting.get('message', '')}", todo)


def container_of(pod: Object, name: str) -> Object:
    """A container of the pod as its spec describes it; empty if there is none of that name."""
    return next((each for each in (pod.get("spec") or {}).get("containers") or () if each["name"] == name), {})


def refused(message: str) -> tuple[Reason, str]:
    """Why no pod may be created: a quota, a RuntimeClass that is not there, or whatever else admission says."""
    if _NO_CLASS.search(message):
        return Reason.UNSCHEDULABLE, _with_advice(message, _CLASS_ADVICE)
    return Reason.QUOTA_EXCEEDED if "exceeded quota" in message else Reason.FORBIDDEN, clip(message)


def told_by(events: Sequence[Object]) -> tuple[Reason, str] | None:
    """Reason and message of the newest warning that tells one and is not over: whose volumes are there waits for none any more."""
    past = _MOUNTS if any(event.get("reason") in _MOUNTED for event in events) else ()
    warnings = [event for event in events if event.get("type") == "Warning" and event.get("reason") not in past]
    for event in sorted(warnings, key=_event_time, reverse=True):
        cause = _of_event(str(event.get("reason")), str(event.get("message", "")))
        if cause is not None:
            return cause
    return None


def quiet_in(pod: Object, now: datetime, patience: float) -> float | None:
    """Seconds until a pod that has a node but runs nothing there yet is worth asking for its Events (0 = now); None for others.

    What passes within `patience` seconds is not worth a word. That no node was found is never asked for: the pod says so itself, as
    long as it is so, and its Events go on saying it afterwards.
    """
    if not pod["spec"].get("nodeName") or (pod.get("status") or {}).get("phase") != "Pending":
        return None
    created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"]).astimezone(UTC)
    quiet = max(QUIET_SECONDS, patience)
    return min(max(quiet - (now - created).total_seconds(), 0.0), quiet)


def _of_event(word: str, message: str) -> tuple[Reason, str] | None:
    if word == "FailedCreate":
        return refused(f"{word}: {message}")
    quoted_message = clip(f"{word}: {message}")
    if "Multi-Attach" in message:
        todo = "pods on several nodes use a ReadWriteOnce claim: use a ReadWriteMany claim"
        return Reason.STORE_NOT_SHARED, _with_advice(quoted_message, todo)
    if word in _MOUNTS and any(f'volume "{name}"' in message for name in _SECRETS):
        return Reason.INVALID_SPEC, _with_advice(quoted_message, _SECRET_ADVICE)
    return (Reason.STORE_UNREACHABLE, quoted_message) if word in _MOUNTS else None


def _with_advice(message: str, todo: str) -> str:
    """The advice is never what is cut off."""
    return f"{clip(message, MESSAGE_LIMIT - len(todo.encode()) - 3)} ({todo})"


def _event_time(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
