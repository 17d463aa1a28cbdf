"""An operator whose process ends after a given write, and the players that bring its objects to an end on a real API server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.cluster.rollout_bench import NOWHERE, Bench
from tests.unit.plan.optimize.world import World

from fettle.api.reasons import Reason
from fettle.api.report import Termination, frame
from fettle.api.task import TASK
from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.events import EventRecorder
from fettle.cluster.jobs import CONTAINER
from fettle.cluster.kinds import CLAIM, JOB, OPTIMIZED_MODEL, POD, WATCHED, Object, ResourceKind
from fettle.cluster.owner import terminating
from fettle.cluster.sync import list_kind
from fettle.controller import modeldeployment
from fettle.controller.context import Context
from fettle.controller.optimizedmodel import OptimizedModels
from fettle.errors import ClusterError, ConflictError
from fettle.plan.commands import Command
from fettle.settings import Settings

NAMESPACE = ResourceKind("", "v1", "namespaces", "Namespace")
OF_A_ROLLOUT = tuple(kind for kind in WATCHED if kind not in (JOB, CLAIM))
OF_A_RUN = (OPTIMIZED_MODEL, JOB, POD, CLAIM)


class Killed(Exception):
    """The operator's process ended."""


class MortalClient(Client):
    """The operator's way to the API server. After `kill_after` of its writes (`sent`) the process ends; then, `lives` - 1 times, after two more.

    A container's log is what `logs` holds: no kubelet runs these pods.
    """

    kill_after: int | None = None
    lives: int = 1
    sent = 0
    logs: Mapping[str, str] = {}

    async def _write(self, *arguments: Any, **options: Any) -> Any:
        self._live()
        return await super()._write(*arguments, **options)

    async def delete(self, *arguments: Any, **options: Any) -> None:
        self._live()
        await super().delete(*arguments, **options)

    async def log(self, namespace: str, pod: str, container: str) -> str:
        return self.logs[pod]

    def _live(self) -> None:
        if self.kill_after is not None and self.sent >= self.kill_after:
            self.lives -= 1
            self.kill_after = self.sent + 2 if self.lives else None
            raise Killed
        self.sent += 1


class MortalBench(Bench):
    """A ModelDeployment whose operator may be killed: the next pass is that of a new process."""

    async def reconcile(self) -> float | None:
        try:
            return await super().reconcile()
        except Killed:
            return 0.0


@dataclass
class TwoLeaders(Bench):
    """Two operators act at once and neither asks for the Lease: both looked before either wrote."""

    second: Client | None = None

    async def reconcile(self) -> float | None:
        assert self.second is not None
        contexts = [await self.freshly_started(client) for client in (self.client, self.second)]
        passes = (modeldeployment.reconcile(context, self.namespace, "digits") for context in contexts)
        for ended in await asyncio.gather(*passes, return_exceptions=True):
            if isinstance(ended, BaseException) and not isinstance(ended, ConflictError):
                raise ended
        return 0.0


@dataclass
class RunBench:
    """An OptimizedModel, its Jobs' pods played by the test: each succeeds with the answer that its task asks for, or fails
    where the source is `missing`."""

    client: MortalClient  # the operator's
    user: Client  # of everybody else
    namespace: str
    world: World = field(default_factory=World)
    operator: OptimizedModels = field(default_factory=OptimizedModels)
    missing: bool = False

    async def apply(self) -> None:
        """Create the OptimizedModel and the claim of its files."""
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
        await self.user.create(CLAIM, self._object(CLAIM, "models", claim))
        spec = self.world.spec.to_json()
        spec["targets"][0]["nodeSelector"] = NOWHERE
        spec["jobs"] = {"resources": {"requests": {"cpu": "900"}}}
        await self.user.create(OPTIMIZED_MODEL, self._object(OPTIMIZED_MODEL, "digits", spec))

    def _object(self, kind: ResourceKind, name: str, spec: Object) -> Object:
        metadata = {"namespace": self.namespace, "name": name}
        return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}

    async def reconcile(self) -> None:
        """A pass; after a kill, that of a new process with an empty memory."""
        cache = Cache()
        self.client.on_write, self.client.on_delete = cache.put, cache.drop
        settings = Settings(watch_namespaces=(self.namespace,), optimizer_image="localhost/none:1", store_size="1Mi")
        await asyncio.gather(*(list_kind(self.client, cache, kind, settings) for kind in OF_A_RUN))
        context = Context(settings, self.client, cache, EventRecorder(self.client))
        try:
            await self.operator.reconcile(context, self.namespace, "digits")
        except Killed:
            self.operator = OptimizedModels()
        except ConflictError:
            return

    async def play_pods(self) -> None:
        """Each pod that waits has done its work."""
        for pod in (await self.user.list(POD, self.namespace)).items:
            if terminating(pod) or pod["metadata"]["name"] in self.client.logs:
                continue
            environment = {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}
            line, digest = frame(self.world.report(TASK.validate_json(environment["FETTLE_TASK"])))
            ended = not_found() if self.missing else succeeded(digest)
            try:
                await self.user.put_status(POD, pod, {**pod["status"], **ended})
            except ClusterError:
                continue  # the scheduler wrote meanwhile: next time
            self.client.logs = {**self.client.logs, pod["metadata"]["name"]: line}

    async def retry(self) -> None:
        """The source was brought, and the run is to be tried again."""
        self.missing = False
        await self.user.annotate(
            OPTIMIZED_MODEL, self.namespace, "digits", annotations={Command.RETRY.annotation: "there"}
        )

    async def to_the_end(self, reason: str = "Published") -> None:
        """Until the run of the OptimizedModel ended with `reason`, and some passes more."""
        async with asyncio.timeout(400):
            while not await self._ended(reason):
                await self.play_pods()
                await self.reconcile()
                await asyncio.sleep(0.1)
        for _ in range(3):
            await self.reconcile()

    async def _ended(self, reason: str) -> bool:
        obj = await self.user.get(OPTIMIZED_MODEL, self.namespace, "digits") or {}
        conditions = (obj.get("status") or {}).get("conditions") or ()
        return any(one["type"] == "Ready" and one["reason"] == reason for one in conditions)

    async def outcome(self) -> Any:
        """Everything that may not depend on when the operator was killed."""
        obj = await self.user.get(OPTIMIZED_MODEL, self.namespace, "digits") or {}
        jobs = (await self.user.list(JOB, self.namespace)).items
        return {
            "status": anonymous(without_times(obj["status"]), self.namespace),
            "jobs": sorted(job["metadata"]["labels"]["fettle.dev/stage"] for job in jobs),
            "claims": sorted(one["metadata"]["name"] for one in (await self.user.list(CLAIM, self.namespace)).items),
        }


def succeeded(digest: str) -> Object:
    """Status of a pod whose container ended well and left a report with that digest."""
    return _ended("Succeeded", 0, Termination(outcome="Succeeded", result_sha256=digest))


def not_found() -> Object:
    """Status of a pod whose container found no source."""
    said = Termination(outcome="Failed", reason=Reason.SOURCE_NOT_FOUND, message="there is no such file")
    return _ended("Failed", 1, said)


def _ended(phase: str, code: int, said: Termination) -> Object:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    message = said.model_dump_json(by_alias=True, exclude_none=True)
    ended = {"exitCode": code, "reason": "Ended", "startedAt": now, "finishedAt": now, "message": message}
    container = {"name": CONTAINER, "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    return {
        "phase": phase,
        "startTime": now,
        "containerStatuses": [{**container, "state": {"terminated": ended}}],
    }


def anonymous(value: Any, namespace: str) -> Any:
    """`value` as it would be in any namespace, and of an object with any UID."""
    text = json.dumps(value).replace(namespace, "NAMESPACE")
    return json.loads(re.sub(r"-samples-[0-9a-f]{6}", "-samples", text))


def without_times(value: Any) -> Any:
    """A status without its moments, and without what says how long something took."""
    if isinstance(value, dict):
        return {
            key: without_times(one)
            for key, one in value.items()
            if not key.endswith(("Time", "At")) and key not in ("entered", "left", "windowStart")
        }
    return [without_times(one) for one in value] if isinstance(value, list) else value


async def outcome_of(bench: Bench) -> Any:
    """What a ModelDeployment came to: objects, ledger, conditions; revisions by the letter of their artifact."""
    status, deployments = await bench.status(), await bench.deployments()
    found = {
        "deployments": {
            letter: (one["spec"]["replicas"], one["spec"]["template"]) for letter, one in deployments.items()
        },
        "stable": await bench.stable(),
        "ledger": await bench.ledger(),
        "serving": await bench.serving(),
        "conditions": {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]},
        "revisions": [(row["artifact"][-1], row.get("reason")) for row in status["revisions"]],
        "failed": status.get("failedRevision"),
        "counts": (status["replicas"], status["readyReplicas"], status.get("canary")),
    }
    return anonymous(found, bench.namespace)


async def new_namespace(client: Client, name: str) -> str:
    """A namespace at the restricted Pod Security level."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": name, "labels": labels}
    await client.create(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    return name
