"""An OptimizedModel on the stand-in API server, with a kubelet that answers tasks as the plan's own tests do."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.api_server import ApiServer
from tests.unit.plan.optimize.world import START, World

from fettle.api.reasons import Reason
from fettle.api.report import Termination, frame
from fettle.api.task import TASK, AnyTask
from fettle.cluster.cache import Cache
from fettle.cluster.client import Client
from fettle.cluster.events import EventRecorder
from fettle.cluster.kinds import CLAIM, EVENT, JOB, OPTIMIZED_MODEL, POD, Object
from fettle.cluster.sync import list_all
from fettle.controller.context import Context
from fettle.controller.optimizedmodel import OptimizedModels
from fettle.settings import Settings

SPEC = {
    "source": {"uri": "pvc://models/digits.onnx"},
    "data": {"evaluation": {"uri": "pvc://models/evaluation.npz"}},
    "targets": [{"name": "cpu", "threads": 2}],
    "constraints": {"accuracy": {"maxDrop": 0.02}},
}
MODEL_PATH = OPTIMIZED_MODEL.path("team", "digits")


def task_of(job: Object) -> AnyTask:
    """The task a Job was told."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    text = next(one["value"] for one in container["env"] if one["name"] == "FETTLE_TASK")
    if text.startswith("zlib:"):
        text = zlib.decompress(base64.b64decode(text.removeprefix("zlib:"))).decode()
    return TASK.validate_json(text)


@dataclass
class ClusterWorld:
    """One object, its operator (`restart` makes a new one) and its kubelet (`work`)."""

    server: ApiServer
    client: Client
    answers: World = field(default_factory=World)
    now: datetime = START
    lose_logs: int = 0  # so many pods are gone before their log is read
    broken: str = ""  # the stage whose Jobs fail for good

    def __post_init__(self) -> None:
        for claim in ("models",):
            self.server.store(CLAIM.path("team", claim), {"metadata": {}, "spec": {}})
        self.restart()

    def submit(self, **spec: Any) -> None:
        """Create the object, or change its spec."""
        before = self.server.objects.get(MODEL_PATH, {"metadata": {}})
        self.server.store(MODEL_PATH, {**before, "spec": {**SPEC, **spec}})

    def order_retry(self, token: str) -> None:
        """Annotate the object."""
        before = self.model()
        metadata = {**before["metadata"], "annotations": {"fettle.dev/retry": token}}
        self.server.store(MODEL_PATH, {**before, "metadata": metadata})

    def restart(self) -> None:
        """A new operator process: nothing of the old one's memory."""
        self.cache = Cache()
        self.client.on_write = self.cache.put
        self.client.on_delete = self.cache.drop
        recorder = EventRecorder(self.client, lambda: self.now)
        self.context = Context(Settings(), self.client, self.cache, recorder, lambda: self.now)
        self.reconciler = OptimizedModels()

    async def sync(self) -> None:
        """What the watches would bring."""
        await list_all(self.client, self.cache, self.context.settings, lambda kind, obj: None)

    async def look(self) -> float | None:
        """One pass of the operator on what is there now. Raises ClusterError."""
        await self.sync()
        return await self.reconciler.reconcile(self.context, "team", "digits")

    def work(self) -> None:
        """Every Job that has not ended ends, its pod and its log beside it."""
        for path, job in list(self.server.objects.items()):
            if job.get("kind") != JOB.kind or job.get("status"):
                continue
            line, digest = frame(self.answers.report(task_of(job)))
            name = f"{job['metadata']['name']}-pod"
            failed = job["metadata"]["labels"]["fettle.dev/stage"] == self.broken
            said = Termination(outcome="Succeeded", result_sha256=digest)
            if failed:
                said = Termination(outcome="Failed", reason=Reason.OUT_OF_MEMORY, message="it broke")
            ended = {"terminated": {"exitCode": int(failed), "message": said.model_dump_json(by_alias=True)}}
            labels = {"batch.kubernetes.io/controller-uid": job["metadata"]["uid"], "fettle.dev/managed": "true"}
            if self.lose_logs > 0:
                self.lose_logs -= 1
            else:
                self.server.logs[name] = f"some line\n{line}\n"
            pod = {
                "metadata": {"labels": labels},
                "status": {"containerStatuses": [{"name": "optimizer", "state": ended}]},
            }
            self.server.store(POD.path("team", name), pod)
            at = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
            done = {"type": "Failed" if failed else "Complete", "status": "True", "lastTransitionTime": at}
            self.server.store(path, {**job, "status": {"conditions": [done]}})

    async def settle(self, passes: int = 40) -> None:
        """Look and work until the operator has nothing more to do; time passes where it asks for it."""
        for _ in range(passes):
            wait = await self.look()
            if wait is None:
                return
            self.work()
            self.now += timedelta(seconds=min(wait, 60.0))
        raise AssertionError(f"not settled: {self.ready()}")

    def model(self) -> Object:
        """The object as it is stored."""
        return self.server.objects[MODEL_PATH]

    def ready(self) -> Object:
        """Its Ready condition."""
        conditions = self.model().get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == "Ready"), {})

    def kind(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return [obj for _, obj in sorted(self.server.objects.items()) if obj.get("kind") == kind]

    def events(self) -> list[str]:
        """Reasons of the Events, in the order of their making."""
        events = sorted(self.kind(EVENT.kind), key=lambda one: int(one["metadata"]["resourceVersion"]))
        return [event["reason"] for event in events]
