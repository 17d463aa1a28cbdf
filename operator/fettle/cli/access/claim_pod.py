"""The temporary pod through which the command line accesses a claim: at the restricted Pod Security level, without a token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream
from kubernetes.stream.ws_client import ERROR_CHANNEL
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from websocket import WebSocketException

from fettle.api.reasons import Reason
from fettle.api.uris import claim_of
from fettle.cli.access.cluster import Cluster, Object, api_errors
from fettle.cluster.security import container_security, pod_security
from fettle.errors import ClusterError, MissingError, UsageError
from fettle.store.uris import path_of

MOUNT = "/claim"
LIFETIME_SECONDS = 3600  # a pod whose owner died ends by itself
ANSWER_SECONDS = 600.0  # hashing what is there already, or flushing a large file, takes its time
POLL_SECONDS = 0.5
# The first ErrImagePull may pass; the kubelet tries again before it says ImagePullBackOff.
HOPELESS = {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull"}
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass(frozen=True)
class ClaimPath:
    """`pvc://CLAIM/PATH`."""

    claim: str
    path: str


class Wire(Protocol):
    """The stdin and stdout of a program that runs in the pod."""

    def send(self, data: bytes) -> None:
        """Write to its stdin."""
        ...

    def line(self) -> str:
        """The next line of its stdout; empty if it has ended."""
        ...

    def read(self, size: int) -> bytes:
        """The next `size` bytes of its stdout; fewer if it has ended."""
        ...


def parse_target(uri: str) -> ClaimPath:
    """Parse pvc://CLAIM/PATH. Raises UsageError for anything else, and for a PATH that leaves the claim."""
    claim = claim_of(uri)
    if not claim:
        raise UsageError(f"{uri}: expected pvc://CLAIM/PATH, such as pvc://models/digits/model.onnx")
    return ClaimPath(claim, path_of(uri, UsageError).lstrip("/"))


def pod_options(command: Decorated) -> Decorated:
    """`--image` and `--timeout`."""
    options = (
        click.option(
            "--image",
            envvar="FETTLE_CLI_IMAGE",
            metavar="IMAGE",
            help="Image of the temporary pod, with Python 3.11 [default: the operator's server image].",
        ),
        click.option(
            "--timeout", default=300, show_default=True, metavar="SECONDS", help="Time to wait for the pod to start."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def progress_bar(total: int | None) -> Progress:
    """A progress bar for `total` bytes in a terminal; invisible elsewhere, or if there are no bytes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal or total == 0)


def find_image(cluster: Cluster, image: str | None) -> tuple[str, tuple[str, ...]]:
    """The image to run, and the Secrets to pull it with. Raises UsageError if none can be found."""
    if image:
        return image, ()
    environment = cluster.operator_environment()
    server_image = environment.get("FETTLE_SERVER_IMAGE")
    if not server_image:
        raise UsageError(
            "no running operator was found to take an image from: pass --image (any image with Python 3.11)"
        )
    names = environment.get("FETTLE_IMAGE_PULL_SECRETS", "")
    return server_image, tuple(name for name in names.split(",") if name)


def pod(claim: str, image: str, pull_secrets: tuple[str, ...] = (), *, purpose: str, read_only: bool = False) -> Object:
    """A pod that only mounts the claim; `purpose` is part of its name."""
    name = f"fettle-{purpose}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-{secrets.token_hex(4)}",
            "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "fettle-cli"},
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LIFETIME_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "imagePullSecrets": [{"name": name} for name in pull_secrets],
            "securityContext": pod_security(),
            "containers": [
                {
                    "name": "files",
                    "image": image,
                    "command": ["python", "-c", f"import time; time.sleep({LIFETIME_SECONDS})"],
                    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
                    "securityContext": container_security(),
                    "volumeMounts": [{"name": "claim", "mountPath": MOUNT, "readOnly": read_only}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }


@contextmanager
def running_pod(cluster: Cluster, manifest: Object, timeout: int) -> Iterator[str]:
    """Create the pod and yield its name when it runs. It is always deleted afterwards. Raises ClusterError if it does not start."""
    name = manifest["metadata"]["name"]
    with api_errors(f"pod {name}"):
        cluster.core.create_namespaced_pod(cluster.namespace, manifest)
    try:
        _wait(cluster, name, timeout)
        yield name
    finally:
        with suppress(ApiException):
            cluster.core.delete_namespaced_pod(name, cluster.namespace, grace_period_seconds=0)


def _wait(cluster: Cluster, name: str, timeout: int) -> None:
    ends = time.monotonic() + timeout
    while True:
        with api_errors(f"pod {name}"):
            status = cluster.core.read_namespaced_pod(name, cluster.namespace).status
        if status.phase == "Running":
            return
        why = why_not_running(status)
        hopeless = status.phase in ("Failed", "Succeeded") or any(why.startswith(word) for word in HOPELESS)
        if hopeless or time.monotonic() > ends:
            problem = f"pod {name} did not start" if hopeless else f"pod {name} did not start in {timeout} s"
            reason = Reason.UNSCHEDULABLE if why.startswith("Unschedulable") else Reason.JOB_FAILED
            raise ClusterError(f"{problem}: {why or status.phase}", reason=reason)
        time.sleep(POLL_SECONDS)


def why_not_running(status: Any) -> str:
    """'Unschedulable: 0/1 nodes are available', from the pod's status; empty if nothing is wrong."""
    for container in status.container_statuses or ():
        waiting = container.state.waiting if container.state is not None else None
        if waiting is not None and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting.reason}: {waiting.message or ''}".rstrip(": ")
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message or ''}".rstrip(": ")
    return str(status.message or "")


@contextmanager
def _unbroken() -> Iterator[None]:
    try:
        yield
    except (OSError, WebSocketException) as error:
        text = f"lost the connection to the pod: {error}"
        raise ClusterError(text, reason=Reason.CLUSTER_UNREACHABLE, retryable=True) from error


def require_claim(cluster: Cluster, claim: str) -> None:
    """Check that the claim exists. Raises UsageError if it does not, and ClusterError."""
    try:
        with api_errors(f"claim {claim}"):
            cluster.core.read_namespaced_persistent_volume_claim(claim, cluster.namespace)
    except MissingError as error:
        raise UsageError(f"claim {claim!r} not found in namespace {cluster.namespace!r}") from error


class Exec:
    """A program of this package that runs in the pod, sent there as text: a `Wire`."""

    def __init__(self, cluster: Cluster, name: str, program: str) -> None:
        """Start `program`, the path of a module that needs only the standard library. Raises ClusterError."""
        source = Path(program).read_text(encoding="utf-8")
        with api_errors(f"pod {name}"):
            self._socket = stream(
                cluster.core.connect_get_namespaced_pod_exec,
                name,
                cluster.namespace,
                command=["python", "-c", source, MOUNT],
                stdin=True,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,
                _preload_content=False,
            )

    def send(self, data: bytes) -> None:
        """Write to its stdin. Output that arrives meanwhile is kept for `line` and `read`."""
        with _unbroken():
            self._socket.write_stdin(data)

    def line(self) -> str:
        """The next line of its stdout. If it has ended, its stderr, or why it could not be run."""
        with _unbroken():
            line: bytes = self._socket.readline_stdout(timeout=ANSWER_SECONDS)
            line = (
                line or self._socket.read_stderr(timeout=0).strip() or self._socket.read_channel(ERROR_CHANNEL).strip()
            )
            return line.decode(errors="replace")

    def read(self, size: int) -> bytes:
        """The next `size` bytes of its stdout, which are the last that were requested; fewer if it has ended."""
        parts: list[bytes] = []
        with _unbroken():
            while size > 0 and (part := self._socket.read_stdout(timeout=ANSWER_SECONDS)):
                parts.append(part)
                size -= len(part)
            self._socket.read_all()  # the client keeps everything that ever arrived; here it is let go
        return b"".join(parts)


@contextmanager
def inside_claim(
    cluster: Cluster,
    claim: str,
    program: str,
    image: str | None,
    timeout: int,
    *,
    purpose: str,
    read_only: bool = False,
) -> Iterator[Exec]:
    """Run `program` in a pod that mounts an existing claim, and yield its `Wire`. Raises UsageError, ClusterError."""
    require_claim(cluster, claim)
    pod_image, pull_secrets = find_image(cluster, image)
    manifest = pod(claim, pod_image, pull_secrets, purpose=purpose, read_only=read_only)
    with running_pod(cluster, manifest, timeout) as name:
        yield Exec(cluster, name, program)
