"""A ModelDeployment on a real API server, its pods played by the test: they become ready when told, and answer windows on loopback addresses.

The controllers of Kubernetes (Deployments, ReplicaSets, garbage) are real; no node takes the pods.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from aiohttp import web

from fettle.api.compatibility import differences
from fettle.api.signature import Signature
from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.events import EventRecorder
from fettle.cluster.kinds import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    MODEL_DEPLOYMENT,
    POD,
    SERVICE,
    WATCHED,
    Object,
    ResourceKind,
)
from fettle.cluster.owner import terminating
from fettle.cluster.serving import MANAGEMENT_PORT, STABLE_ANNOTATION
from fettle.cluster.sync import list_kind
from fettle.cluster.workloads import is_ready, revision_of
from fettle.controller import modeldeployment
from fettle.controller.context import Context, utc_now
from fettle.errors import ClusterError, ConflictError
from fettle.settings import Settings

NOWHERE = {"fettle.dev/test": "no-node-has-this"}
# A network of loopback for each process that tests side by side.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
ADDRESSES = (f"127.{77 + _WORKER}.{one}.{two}" for one in itertools.count() for two in range(1, 250))


def sha(letter: str) -> str:
    return letter * 64


def model_deployment(namespace: str, artifact: str = "a", **spec: Any) -> Object:
    """A ModelDeployment that serves the artifact of one letter."""
    uri = f"pvc://fettle-store/artifacts/{sha(artifact)}"
    return {
        "apiVersion": MODEL_DEPLOYMENT.api_version,
        "kind": MODEL_DEPLOYMENT.kind,
        "metadata": {"namespace": namespace, "name": "digits"},
        "spec": {
            "model": {"uri": uri, "sha256": sha(artifact), "runtime": "onnxruntime"},
            "replicas": 2,
            "template": {"nodeSelector": NOWHERE},
            "rollout": {
                "steps": [{"weight": 50}, {"weight": 100}],
                "analysis": {"intervalSeconds": 2, "minRequests": 30, "successRate": {"min": 0.99}},
            },
            **spec,
        },
    }


@dataclass
class Bench:
    """Plays kubelet, clients and clock, and calls the reconciler."""

    client: Client  # the operator's
    namespace: str
    settings: Settings = field(default_factory=Settings)
    offset: timedelta = timedelta()
    errors: dict[str, float] = field(default_factory=dict)  # artifact letter -> share of failed requests
    unready: set[str] = field(default_factory=set)  # artifact letters whose pods never get ready
    signatures: dict[str, Signature] = field(default_factory=dict)  # by artifact letter, as its pods tell
    runners: list[web.AppRunner] = field(default_factory=list)
    kinds: tuple[ResourceKind, ...] = WATCHED  # that the operator lists
    user: Client | None = None  # of everybody else; the operator's where none is given

    @property
    def others(self) -> Client:
        """Who plays users and the kubelet, and looks."""
        return self.user or self.client

    def now(self) -> datetime:
        """The operator's clock."""
        return utc_now() + self.offset

    # ------------------------------------------------------------------------------------------------- what users do

    async def apply(self, artifact: str = "a", **spec: Any) -> None:
        """Apply the ModelDeployment as a user would."""
        await self.others.apply(MODEL_DEPLOYMENT, model_deployment(self.namespace, artifact, **spec))

    async def order(self, command: str, value: str) -> None:
        """Annotate a command."""
        notes: dict[str, str | None] = {f"fettle.dev/{command}": value}
        await self.others.annotate(MODEL_DEPLOYMENT, self.namespace, "digits", annotations=notes)

    # ------------------------------------------------------------------------------------------- what the operator does

    async def freshly_started(self, client: Client) -> Context:
        """What an operator knows that has just listed everything."""
        cache = Cache()
        client.on_write, client.on_delete = cache.put, cache.drop
        settings = self.settings.model_copy(update={"watch_namespaces": (self.namespace,)})
        await asyncio.gather(*(list_kind(client, cache, kind, settings) for kind in self.kinds))
        return Context(settings, client, cache, EventRecorder(client, self.now), self.now)

    async def reconcile(self) -> float | None:
        """One pass of a freshly started operator."""
        context = await self.freshly_started(self.client)
        try:
            return await modeldeployment.reconcile(context, self.namespace, "digits")
        except ConflictError:
            return 0.0

    async def until(self, condition: Callable[[], Awaitable[Any]], seconds: float = 90) -> Any:
        """Pass after pass, the pods doing what they do, until `condition` holds; returns what it said."""
        async with asyncio.timeout(seconds):
            while True:
                await self.play_pods()
                await self.reconcile()
                found = await condition()
                if found:
                    return found
                await asyncio.sleep(0.1)
                self.offset += timedelta(seconds=0.5)  # so that windows of seconds pass quickly

    async def settle(self, passes: int = 5) -> None:
        """A few passes more."""
        for _ in range(passes):
            await self.play_pods()
            await self.reconcile()
            await asyncio.sleep(0.2)

    # ------------------------------------------------------------------------------------------------- what pods do

    async def play_pods(self) -> None:
        """Pods that wait become ready, as the kubelet would tell."""
        for pod in await self.pods():
            if is_ready(pod) or self.artifact_of(pod) in self.unready:
                continue
            if (refusal := self._refusal(pod)) is not None:
                told = {"conditions": _holding("PodScheduled"), "initContainerStatuses": [_fetched(pod, refusal, 1)]}
                await self._put_status(pod, {"phase": "Pending", **told})
                continue
            address = (pod.get("status") or {}).get("podIP") or await self._listen(pod)
            ready = _holding("PodScheduled", "Initialized", "ContainersReady", "Ready")
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready}
            if (signature := self.signatures.get(self.artifact_of(pod))) is not None:
                status["initContainerStatuses"] = [_fetched(pod, signature.canonical().decode(), 0)]
            await self._put_status(pod, status)

    async def _put_status(self, pod: Object, status: Object) -> None:
        with suppress(ClusterError):  # the scheduler wrote meanwhile, or it is gone: next time
            await self.others.put_status(POD, pod, {**pod["status"], **status})

    def _refusal(self, pod: Object) -> str | None:
        """The termination message of its init container, if clients of the stable revision could not use its artifact."""
        told = {one["name"]: one.get("value") for one in pod["spec"]["initContainers"][0]["env"]}
        signature = self.signatures.get(self.artifact_of(pod))
        if signature is None or (before := told.get("FETTLE_SERVER_REPLACES")) is None:
            return None
        found = differences(Signature.model_validate_json(before), signature)
        return f"SignatureIncompatible: {'; '.join(found)}" if found else None

    async def _listen(self, pod: Object) -> str:
        address = next(ADDRESSES)
        app = web.Application()
        app.add_routes([web.get("/fettle/window", self._windows(self.artifact_of(pod)))])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, address, MANAGEMENT_PORT).start()
        self.runners.append(runner)
        return address

    def _windows(self, artifact: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            now = self.now().timestamp()
            failed = round(50 * self.errors.get(artifact, 0.0))
            windows = [
                {"second": second, "requests": 50, "errors": failed, "buckets": {"40": 50}}
                for second in range(max(int(float(request.query["since"])), int(now) - 100), int(now))
            ]
            said = {"start": now - 100, "now": now, "windows": windows, "bucketBase": 0.05, "bucketRatio": 1.05}
            return web.json_response(said)

        return answer

    async def close(self) -> None:
        """Stop listening."""
        for runner in self.runners:
            await runner.cleanup()

    # --------------------------------------------------------------------------------------------------- what one reads

    @staticmethod
    def artifact_of(pod: Object) -> str:
        """Letter of the artifact a pod serves."""
        for variable in pod["spec"]["containers"][0]["env"]:
            if variable["name"] == "FETTLE_SERVER_SHA256":
                return str(variable["value"][0])
        raise AssertionError("the pod is told no digest")

    async def pods(self) -> list[Object]:
        """Pods that are not on their way out."""
        return [pod for pod in (await self.others.list(POD, self.namespace)).items if not terminating(pod)]

    async def serving(self) -> dict[str, int]:
        """Ready pods by artifact letter."""
        found: dict[str, int] = {}
        for pod in await self.pods():
            letter = self.artifact_of(pod)
            found[letter] = found.get(letter, 0) + is_ready(pod)
        return {letter: count for letter, count in found.items() if count}

    async def status(self) -> Object:
        """Status of the ModelDeployment."""
        obj = await self.others.get(MODEL_DEPLOYMENT, self.namespace, "digits")
        return dict((obj or {}).get("status") or {})

    async def condition(self, kind: str) -> tuple[str, str]:
        """(status, reason) of a condition."""
        conditions = (await self.status()).get("conditions") or ()
        return next(((one["status"], one["reason"]) for one in conditions if one["type"] == kind), ("", ""))

    async def deployments(self) -> dict[str, Object]:
        """Deployments by artifact letter."""
        listing = await self.others.list(DEPLOYMENT, self.namespace)
        return {one["metadata"]["annotations"]["fettle.dev/artifact"][-1]: one for one in listing.items}

    async def ledger(self) -> list[tuple[str, str | None]]:
        """(artifact letter, reason it left) of every line, oldest first."""
        lines = (await self.others.list(CONTROLLER_REVISION, self.namespace)).items
        ordered = sorted(lines, key=lambda line: int(line["revision"]))
        return [
            (line["data"]["artifact"][-1], (line["metadata"].get("annotations") or {}).get("fettle.dev/reason"))
            for line in ordered
        ]

    async def stable(self) -> str | None:
        """Artifact letter of the revision that the Service's annotation names."""
        service = await self.others.get(SERVICE, self.namespace, "digits")
        named = ((service or {"metadata": {}})["metadata"].get("annotations") or {}).get(STABLE_ANNOTATION)
        letters = {revision_of(one): letter for letter, one in (await self.deployments()).items()}
        return letters.get(named)

    async def reasons(self) -> set[str]:
        """Reasons of all Events."""
        return {event["reason"] for event in (await self.others.list(EVENT, self.namespace)).items}

    async def is_ready(self) -> bool:
        """Whether the ModelDeployment is Ready."""
        return (await self.condition("Ready"))[0] == "True"


def _holding(*kinds: str) -> list[Object]:
    """Conditions that are True."""
    return [{"type": kind, "status": "True", "lastTransitionTime": _time(utc_now())} for kind in kinds]


def _fetched(pod: Object, message: str, code: int) -> Object:
    """The status of an init container that ended."""
    now = _time(utc_now())
    ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
    state = {"terminated": {**ended, "startedAt": now, "finishedAt": now}}
    image = pod["spec"]["initContainers"][0]["image"]
    return {"name": "fetch", "image": image, "imageID": "", "ready": not code, "restartCount": 0, "state": state}


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
