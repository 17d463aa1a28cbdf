"""A Node that only the API server knows, and its kubelet played by the test: Jobs' pods run on it, answer, fail, and their logs are read.

Everything but the kubelet is real: Job controller, garbage collector, admission, and the API server that fetches logs from the node.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import ipaddress
import socket
import ssl
import tempfile
import uuid
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.unit.plan.optimize.world import World

from fettle.api.base import MANAGED_LABEL
from fettle.api.report import Termination, frame
from fettle.api.task import TASK
from fettle.cluster.client import Client
from fettle.cluster.kinds import NODE, POD, Object, ResourceKind
from fettle.cluster.owner import terminating
from fettle.controller.context import utc_now
from fettle.errors import ClusterError, ConflictError

STAGE = "fettle.dev/stage"

Play = Callable[[Object], Object | None]
"""What becomes of a Job's pod: its container's terminated state, or None to let it run."""


@dataclass
class FakeNode:
    """Runs the pods of one namespace. `play` says how each ends; by default they answer as all goes well."""

    client: Client
    namespace: str
    name: str
    port: int
    play: Play | None = None
    logs: dict[str, str] = field(default_factory=dict)

    def succeed(self, pod: Object) -> Object:
        """The end of a pod whose task was answered; its log carries the report."""
        line, digest = frame(World().report(TASK.validate_json(_task_of(pod))))
        self.logs[pod["metadata"]["name"]] = f"a line before\n{line}\n"
        said = Termination(outcome="Succeeded", result_sha256=digest).model_dump_json(by_alias=True)
        return {"exitCode": 0, "reason": "Completed", "message": said}

    async def step(self) -> None:
        """One turn of the kubelet: take pods, start and end them, let go of those that are deleted."""
        for pod in (await self.client.list(POD, self.namespace, labels=f"{MANAGED_LABEL}=true")).items:
            with suppress(ClusterError):  # somebody else wrote meanwhile, or it is gone: next time
                await self._one(pod)

    async def _one(self, pod: Object) -> None:
        metadata, status = pod["metadata"], pod.get("status") or {}
        if terminating(pod):
            # As a kubelet does once the containers have ended; the operator's client has no word for it.
            now = {"gracePeriodSeconds": 0}
            await self.client._json("DELETE", POD.path(self.namespace, metadata["name"]), body=now)
        elif STAGE not in metadata["labels"]:
            return  # a serving pod: its test plays it
        elif not pod["spec"].get("nodeName"):
            await self.take(pod)
        elif status.get("phase") not in ("Succeeded", "Failed"):
            ended = (self.play or self.succeed)(pod)
            await self.client.put_status(POD, pod, {**status, **_status(pod, ended)})

    async def take(self, pod: Object) -> None:
        """Bind a pod to this node, as the scheduler does; taints and free amounts are not looked at."""
        name = pod["metadata"]["name"]
        binding = ResourceKind("", "v1", f"pods/{name}/binding", "Binding")
        target = {"apiVersion": "v1", "kind": "Node", "name": self.name}
        await self.client.create(binding, {"metadata": {"namespace": self.namespace, "name": name}, "target": target})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeNode]:
        """Turn after turn, until the end of the block."""

        async def turn() -> None:
            while True:
                with suppress(ClusterError):
                    await self.step()
                await asyncio.sleep(0.1)

        task = asyncio.create_task(turn())
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def log(self, request: web.Request) -> web.Response:
        """What the API server asks a kubelet for."""
        return web.Response(text=self.logs.get(request.match_info["pod"], ""))


def _task_of(pod: Object) -> str:
    (container,) = pod["spec"]["containers"]
    text = str(next(one["value"] for one in container["env"] if one["name"] == "FETTLE_TASK"))
    return zlib.decompress(base64.b64decode(text.removeprefix("zlib:"))).decode() if text.startswith("zlib:") else text


def _status(pod: Object, ended: Object | None) -> Object:
    (container,) = pod["spec"]["containers"]
    now = utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {"running": {"startedAt": now}} if ended is None else {"terminated": {"finishedAt": now, **ended}}
    phase = "Running" if ended is None else "Failed" if ended["exitCode"] else "Succeeded"
    image = {"image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
    return {"phase": phase, "containerStatuses": [{"name": container["name"], "state": state, **image}]}


def _render(node: FakeNode) -> Object:
    taint = {"key": "fettle.dev/test", "value": node.name, "effect": "NoSchedule"}
    labels = {"fettle.dev/test-node": node.name, "kubernetes.io/hostname": node.name}
    return {
        "apiVersion": NODE.api_version,
        "kind": NODE.kind,
        "metadata": {"name": node.name, "labels": labels},
        "spec": {"taints": [taint]},
    }


def _node_status(node: FakeNode, address: str) -> Object:
    now = utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now, "lastTransitionTime": now}
    amounts = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "256Gi", "pods": "100"}
    return {
        "addresses": [{"type": "InternalIP", "address": address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": node.port}},
        "capacity": amounts,
        "allocatable": amounts,
        "conditions": [ready],
    }


async def _say_ready(client: Client, node: FakeNode, address: str) -> None:
    """Write the node's status; its controllers write to it too."""
    for _ in range(50):
        made = await client.get(NODE, None, node.name)
        assert made is not None
        with suppress(ConflictError):
            await client.put_status(NODE, made, {**made.get("status", {}), **_node_status(node, address)})
            return
    raise AssertionError("the node kept changing")


def _address(client: Client) -> str:
    """This machine's address as the API server sees it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((urlsplit(client.configuration.host).hostname, 9))
        address: str = probe.getsockname()[0]
        return address


def _tls(address: str) -> ssl.SSLContext:
    """A certificate of its own: the API server of the tests checks no kubelet's."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(utc_now() - timedelta(days=1))
    builder = builder.not_valid_after(utc_now() + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    with tempfile.NamedTemporaryFile() as file:
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        Path(file.name).write_bytes(private + certificate.public_bytes(pem))
        context.load_cert_chain(file.name)
    return context


@asynccontextmanager
async def no_other_node() -> AsyncIterator[None]:
    """While no fake node comes or goes, in whichever process: the scheduler counts nodes in what it says of pods that wait."""
    async with _nodes(fcntl.LOCK_EX):
        yield


@asynccontextmanager
async def _nodes(lock: int) -> AsyncIterator[None]:
    with (Path(tempfile.gettempdir()) / "fettle-tests-nodes.lock").open("w") as file:
        await asyncio.to_thread(fcntl.flock, file, lock)
        yield


@asynccontextmanager
async def fake_node(client: Client, namespace: str) -> AsyncIterator[FakeNode]:
    """A node for the pods of `namespace`; tainted, so that nobody else's land there. Deleted afterwards."""
    async with _nodes(fcntl.LOCK_SH), _fake_node(client, namespace) as node:
        yield node


@asynccontextmanager
async def _fake_node(client: Client, namespace: str) -> AsyncIterator[FakeNode]:
    address = _address(client)
    with socket.socket() as listener:
        listener.bind((address, 0))
        node = FakeNode(client, namespace, f"fake-{uuid.uuid4().hex[:8]}", listener.getsockname()[1])
        app = web.Application()
        app.add_routes([web.get("/containerLogs/{namespace}/{pod}/{container}", node.log)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=_tls(address)).start()
        await client.create(NODE, _render(node))
        try:
            await _say_ready(client, node, address)
            yield node
        finally:
            await client.delete(NODE, None, node.name)
            await runner.cleanup()
