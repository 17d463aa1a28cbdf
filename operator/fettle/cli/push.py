"""`fettle push`: a file or folder into a claim, through a short-lived pod at the restricted Pod Security level."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from websocket import WebSocketException

from fettle.api.reasons import Reason
from fettle.cli import receive
from fettle.cli.display import size as readable
from fettle.cli.kube import Cluster, Object, cluster_options, connect, told
from fettle.cli.push_files import Target, entries, parse_target, transfer
from fettle.cluster.security import container_security, pod_security
from fettle.errors import ClusterError, MissingError, UsageError

MOUNT = "/claim"
LIFETIME_SECONDS = 3600  # a pod whose pusher died ends by itself
ANSWER_SECONDS = 600.0  # hashing what is there already, or flushing a large file, takes its time
POLL_SECONDS = 0.5
# The first ErrImagePull may pass; the kubelet tries again before it says ImagePullBackOff.
HOPELESS = {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull"}


@click.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("uri", metavar="pvc://CLAIM/PATH")
@click.option("--create", is_flag=True, help="Create the claim if it is missing.")
@click.option(
    "--size", "claim_size", default="1Gi", show_default=True, metavar="QUANTITY", help="Size of a created claim."
)
@click.option("--storage-class", metavar="NAME", help="StorageClass of a created claim [default: the cluster's].")
@click.option(
    "--access-mode",
    type=click.Choice(["ReadWriteOnce", "ReadWriteMany"]),
    default="ReadWriteOnce",
    show_default=True,
    help="Access mode of a created claim; ReadWriteMany where pods may land on several nodes.",
)
@click.option(
    "--image",
    envvar="FETTLE_PUSH_IMAGE",
    metavar="IMAGE",
    help="Image with Python 3.11 [default: the operator's server image].",
)
@click.option(
    "--timeout", default=300, show_default=True, metavar="SECONDS", help="How long the pod may take to start."
)
@cluster_options
def push(
    source: Path,
    uri: str,
    create: bool,
    claim_size: str,
    storage_class: str | None,
    access_mode: str,
    image: str | None,
    timeout: int,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> None:
    """Bring FILE (or a folder) into a claim of the cluster.

    Each file is checked against its digest and renamed when it is whole; what is there already is not sent again.
    A PATH that ends with / is a folder.

    \b
    fettle push model.onnx pvc://models/digits/model.onnx
    fettle push ./digits pvc://models/digits --create --size 5Gi
    """
    target = parse_target(uri)
    files = entries(source, target)
    cluster = connect(kubeconfig, context, namespace)
    ensure_claim(cluster, target, claim(target, claim_size, storage_class, access_mode) if create else None)
    image, pull_secrets = find_image(cluster, image)
    total = sum(entry.bytes for entry in files)
    console = Console(stderr=True)
    with _bar(console, total) as progress, running_pod(cluster, pod(target, image, pull_secrets), timeout) as name:
        task = progress.add_task(source.name, total=total)
        count = transfer(files, Exec(cluster, name), lambda number: progress.advance(task, number))
    unchanged = f", {len(files) - count} unchanged" if count < len(files) else ""
    click.echo(f"{count} of {len(files)} files pushed to {uri} ({readable(total)}{unchanged})")


def _bar(console: Console, total: int) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal or not total)


def claim(target: Target, size: str, storage_class: str | None, access_mode: str) -> Object:
    """The claim to create."""
    spec: Object = {"accessModes": [access_mode], "resources": {"requests": {"storage": size}}}
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": target.claim}, "spec": spec}


def ensure_claim(cluster: Cluster, target: Target, manifest: Object | None) -> None:
    """See that the claim is there, or create it from `manifest`. Raises UsageError when it is missing and may not be made."""
    try:
        with told(f"claim {target.claim}"):
            cluster.core.read_namespaced_persistent_volume_claim(target.claim, cluster.namespace)
        return
    except MissingError as error:
        if manifest is None:
            message = (
                f"there is no claim {target.claim!r} in namespace {cluster.namespace!r}: create it, or say --create"
            )
            raise UsageError(message) from error
    with told(f"claim {target.claim}"):
        cluster.core.create_namespaced_persistent_volume_claim(cluster.namespace, manifest)
    click.echo(f"claim {target.claim} created in namespace {cluster.namespace}", err=True)


def find_image(cluster: Cluster, image: str | None) -> tuple[str, tuple[str, ...]]:
    """The image to run, and the secrets to pull it with. Raises UsageError when there is no way to know one."""
    if image:
        return image, ()
    environment = cluster.operator_environment()
    found = environment.get("FETTLE_SERVER_IMAGE")
    if not found:
        raise UsageError("no running operator was found to take an image from: say --image (any with Python 3.11)")
    names = environment.get("FETTLE_IMAGE_PULL_SECRETS", "")
    return found, tuple(name for name in names.split(",") if name)


def pod(target: Target, image: str, pull_secrets: tuple[str, ...] = ()) -> Object:
    """A pod that does nothing but hold the claim open, at the restricted Pod Security level and without a token."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"fettle-push-{secrets.token_hex(4)}",
            "labels": {"app.kubernetes.io/name": "fettle-push", "app.kubernetes.io/managed-by": "fettle-cli"},
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
                    "name": "push",
                    "image": image,
                    "command": ["python", "-c", f"import time; time.sleep({LIFETIME_SECONDS})"],
                    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
                    "securityContext": container_security(),
                    "volumeMounts": [{"name": "claim", "mountPath": MOUNT}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": target.claim}}],
        },
    }


@contextmanager
def running_pod(cluster: Cluster, manifest: Object, timeout: int) -> Iterator[str]:
    """The name of the pod while it runs; it is deleted in any case. Raises ClusterError when it does not start."""
    name = manifest["metadata"]["name"]
    with told(f"pod {name}"):
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
        with told(f"pod {name}"):
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
    """'Unschedulable: 0/1 nodes are available', from what the pod says of itself; empty while nothing is wrong."""
    for one in status.container_statuses or ():
        waiting = one.state.waiting if one.state is not None else None
        if waiting is not None and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting.reason}: {waiting.message or ''}".rstrip(": ")
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message or ''}".rstrip(": ")
    return str(status.message or "")


class Exec:
    """The receiver, run in the pod: a `Wire`."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        """Start it. Raises ClusterError."""
        source = Path(receive.__file__).read_text(encoding="utf-8")
        with told(f"pod {name}"):
            self._socket = stream(
                cluster.core.connect_get_namespaced_pod_exec,
                name,
                cluster.namespace,
                command=["python", "-c", source, MOUNT],
                stdin=True,
                stdout=True,
                stderr=True,
                tty=False,
                _preload_content=False,
            )

    def send(self, data: bytes) -> None:
        """Write to its stdin; what it said meanwhile stays for `line`."""
        try:
            self._socket.write_stdin(data)
        except (OSError, WebSocketException) as error:
            raise ClusterError(
                f"the connection to the pod broke: {error}", reason=Reason.CLUSTER_UNREACHABLE
            ) from error

    def line(self) -> str:
        """The next line of its stdout; what it wrote to stderr instead, when it ended."""
        try:
            line = str(self._socket.readline_stdout(timeout=ANSWER_SECONDS))
            return line or str(self._socket.read_stderr(timeout=0)).strip()
        except (OSError, WebSocketException) as error:
            raise ClusterError(
                f"the connection to the pod broke: {error}", reason=Reason.CLUSTER_UNREACHABLE
            ) from error
