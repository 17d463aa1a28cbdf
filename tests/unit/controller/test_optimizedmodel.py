"""The OptimizedModel reconciler against a stand-in API server: whole runs, restarts anywhere, faults."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from tests.api_server import serving, status
from tests.unit.controller.cluster_world import MODEL_PATH, SPEC, ClusterWorld
from tests.unit.plan.optimize.world import World, digest

from fettle.api.progress import TrainingStatus, progress_line
from fettle.api.reasons import Reason
from fettle.api.task import StoredData
from fettle.cluster.kinds import CLAIM, JOB, POD, SERVICE, Object
from fettle.cluster.owner import owned_by
from fettle.cluster.progress import PROGRESS_SECONDS
from fettle.errors import ClusterError, ConflictError

STAGES = ["Preparing", "Optimizing", "Measuring", "Publishing", "Published"]


@pytest.fixture
async def world() -> AsyncIterator[ClusterWorld]:
    async with serving() as (server, client):
        yield ClusterWorld(server, client)


async def test_a_run_goes_from_nothing_to_published(world: ClusterWorld) -> None:
    world.submit()
    await world.settle()
    assert (world.ready()["status"], world.ready()["reason"]) == ("True", "Published")
    assert [artifact["target"] for artifact in world.model()["status"]["artifacts"]] == ["cpu"]
    assert world.events() == STAGES
    stages = [job["metadata"]["labels"]["fettle.dev/stage"] for job in world.kind("Job")]
    assert sorted(set(stages)) == ["build", "measure", "prepare", "publish"]
    assert world.server.objects[CLAIM.path("team", "fettle-store")]["metadata"].get("ownerReferences") is None


async def test_once_published_nothing_is_written_and_no_log_is_read(world: ClusterWorld) -> None:
    world.submit()
    await world.settle()
    world.restart()
    world.server.requests.clear()
    assert await world.look() is None
    assert world.server.writes() == []
    assert not [path for _, path in world.server.requests if path.endswith("/log")]


async def test_a_look_that_finds_nothing_new_writes_nothing(world: ClusterWorld) -> None:
    world.submit()
    await world.look()
    world.server.requests.clear()
    await world.look()
    assert world.server.writes() == []


async def undisturbed(**spec: Any) -> tuple[Object, list[str], int]:
    async with serving() as (server, client):
        world = ClusterWorld(server, client)
        world.submit(**spec)
        await world.settle()
        return outcome(world), world.events(), len(server.writes())


def outcome(world: ClusterWorld) -> Object:
    """What must be the same, whatever happened on the way: status without its times, and the Jobs."""
    stored = dict(world.model()["status"])
    stored.pop("startedAt")
    stored["conditions"] = [{**one, "lastTransitionTime": ""} for one in stored["conditions"]]
    return {"status": stored, "jobs": [job["metadata"]["name"].split("-")[1] for job in world.kind("Job")]}


async def settle_killed_after(world: ClusterWorld, fatal: int) -> None:
    """Settle with an operator that dies after the server's write number `fatal`, and then with a new one."""
    server = world.server
    # The request in hand is counted already: number `fatal` still gets through, then the process is dead.
    server.refuse = lambda method, path: status(500, "InternalError") if len(server.writes()) > fatal else None
    with contextlib.suppress(ClusterError):
        await world.settle()
    server.refuse = lambda method, path: None
    world.restart()
    await world.settle()


async def test_killed_after_any_of_its_writes_the_operator_ends_the_same() -> None:
    wanted, events, writes = await undisturbed()
    for fatal in range(1, writes + 1):
        async with serving() as (server, client):
            world = ClusterWorld(server, client)
            world.submit()
            await settle_killed_after(world, fatal)
            assert outcome(world) == wanted, f"killed after write {fatal}"
            assert set(world.events()) == set(events) or len(world.events()) == len(events) - 1


async def retried(world: ClusterWorld, stage: str) -> None:
    """A run whose Jobs of one stage failed; the cause is gone, and a retry ordered."""
    world.broken = stage
    world.submit()
    await world.settle()
    world.broken = ""
    world.order_retry("one")


@pytest.mark.parametrize("stage", ["prepare", "build", "measure"])
async def test_killed_after_any_write_of_a_retry_the_operator_ends_the_same(stage: str) -> None:
    async with serving() as (server, client):
        world = ClusterWorld(server, client)
        await retried(world, stage)
        before = len(server.writes())
        await world.settle()
        wanted, writes = outcome(world), len(server.writes())
    assert wanted["status"]["retries"] == 1
    for fatal in range(before + 1, writes + 1):
        async with serving() as (server, client):
            world = ClusterWorld(server, client)
            await retried(world, stage)
            await settle_killed_after(world, fatal)
            assert outcome(world) == wanted, f"killed after write {fatal} of {before + 1}..{writes}"
            assert world.ready()["reason"] == "Published"


async def test_a_retry_of_what_is_published_makes_one_job_that_looks_at_it_once(world: ClusterWorld) -> None:
    world.submit()
    await world.settle()
    before = {job["metadata"]["name"] for job in world.kind("Job")}
    world.order_retry("one")
    await world.settle()
    (looked,) = [job for job in world.kind("Job") if job["metadata"]["name"] not in before]
    assert looked["metadata"]["labels"]["fettle.dev/stage"] == "publish"
    assert world.events() == [*STAGES, "CommandAccepted"]
    assert (world.ready()["reason"], world.model()["status"]["lastHandledRetry"]) == ("Published", "one")
    world.server.requests.clear()
    world.restart()
    await world.look()
    assert world.server.writes() == []


async def test_an_answer_that_was_lost_with_its_pod_is_asked_for_again(world: ClusterWorld) -> None:
    world.lose_logs = 1
    world.submit()
    await world.settle()
    assert world.ready()["reason"] == "Published"
    attempts = [job["metadata"]["labels"]["fettle.dev/attempt"] for job in world.kind("Job")]
    assert attempts.count("1") == 1


async def test_a_job_removed_after_its_time_is_not_run_again(world: ClusterWorld) -> None:
    world.submit()
    await world.look()
    world.work()
    await world.look()
    (prepare,) = [job for job in world.kind("Job") if job["metadata"]["labels"]["fettle.dev/stage"] == "prepare"]
    del world.server.objects[JOB.path("team", prepare["metadata"]["name"])]
    await world.settle()
    assert "prepare" not in [job["metadata"]["labels"]["fettle.dev/stage"] for job in world.kind("Job")]


async def test_a_changed_spec_stops_what_is_not_wanted_any_more(world: ClusterWorld) -> None:
    world.submit()
    await world.look()
    (before,) = world.kind("Job")
    world.submit(source={"uri": "pvc://models/other.onnx"})
    await world.look()
    (after,) = world.kind("Job")
    assert before["metadata"]["name"] != after["metadata"]["name"]


async def test_a_decision_on_an_old_copy_creates_nothing(world: ClusterWorld) -> None:
    world.submit()
    await world.sync()
    world.submit(source={"uri": "pvc://models/other.onnx"})
    with pytest.raises(ConflictError):
        await world.reconciler.reconcile(world.context, "team", "digits")
    assert world.kind("Job") == []
    await world.reconciler.reconcile(world.context, "team", "digits")
    assert len(world.kind("Job")) == 1


async def test_an_object_that_is_gone_meanwhile_gets_no_job(world: ClusterWorld) -> None:
    world.submit()
    await world.sync()
    del world.server.objects[MODEL_PATH]
    with pytest.raises(ConflictError):
        await world.reconciler.reconcile(world.context, "team", "digits")
    assert await world.reconciler.reconcile(world.context, "team", "digits") is None
    assert world.server.writes() == []


async def test_a_spec_that_does_not_parse_is_said_once_and_nothing_else_is_touched(world: ClusterWorld) -> None:
    world.submit()
    await world.settle()
    published = world.model()["status"]["artifacts"]
    world.submit(targets="nonsense")
    await world.look()
    assert (world.ready()["status"], world.ready()["reason"]) == ("False", "InvalidSpec")
    assert "targets" in world.ready()["message"]
    assert world.model()["status"]["artifacts"] == published
    world.server.requests.clear()
    assert await world.look() is None
    assert world.server.writes() == []
    world.submit()
    await world.settle()
    assert world.ready()["reason"] == "Published"


async def test_a_status_that_cannot_be_read_does_not_keep_a_spec_that_cannot_be_read_from_being_told(
    world: ClusterWorld,
) -> None:
    world.submit()
    await world.settle()
    model = world.model()
    odd = {**model["status"], "conditions": [{"type": "Ready", "status": "Maybe"}]}
    world.server.store(MODEL_PATH, {**model, "spec": {**model["spec"], "targets": "nonsense"}, "status": odd})
    await world.look()
    assert (world.ready()["status"], world.ready()["reason"]) == ("False", "InvalidSpec")
    assert world.model()["status"]["artifacts"] == model["status"]["artifacts"]
    world.server.requests.clear()
    assert await world.look() is None
    assert world.server.writes() == []


@pytest.mark.parametrize(
    ("code", "reason", "message", "told"),
    [
        (403, "Forbidden", "exceeded quota: q", Reason.QUOTA_EXCEEDED),
        (403, "Forbidden", "denied by policy", Reason.FORBIDDEN),
    ],
)
async def test_a_refused_job_is_told_and_tried_again(
    world: ClusterWorld, code: int, reason: str, message: str, told: Reason
) -> None:
    world.server.refuse = lambda method, path: (
        status(code, reason, message) if method == "POST" and path.endswith("/jobs") else None
    )
    world.submit()
    assert await world.look() == 0.0
    wait = await world.look()
    assert wait is not None and wait > 0
    assert world.ready()["reason"] == "Preparing" and f"{told}: " in world.ready()["message"]
    world.server.refuse = lambda method, path: None
    await world.settle()
    assert world.ready()["reason"] == "Published"


async def test_a_job_the_api_server_calls_invalid_ends_the_run(world: ClusterWorld) -> None:
    world.server.refuse = lambda method, path: (
        status(422, "Invalid", "spec.template: bad quantity") if method == "POST" and path.endswith("/jobs") else None
    )
    world.submit()
    for _ in range(3):
        await world.look()
    assert world.ready()["reason"] == "InvalidSpec" and "bad quantity" in world.ready()["message"]
    world.server.requests.clear()
    await world.look()
    assert world.server.writes() == []


async def test_a_missing_claim_is_named_and_waited_for(world: ClusterWorld) -> None:
    del world.server.objects[CLAIM.path("team", "models")]
    world.submit()
    await world.look()
    await world.look()
    assert "SourceNotFound" in world.ready()["message"] and "models" in world.ready()["message"]
    assert world.kind("Job") == []
    world.server.store(CLAIM.path("team", "models"), {"metadata": {}, "spec": {}})
    await world.settle()
    assert world.ready()["reason"] == "Published"


@pytest.mark.parametrize("field", ["evaluation", "calibration"])
async def test_a_missing_claim_of_the_data_is_named_as_such_and_waited_for(world: ClusterWorld, field: str) -> None:
    data = {"evaluation": {"uri": "pvc://models/evaluation.npz"}, field: {"uri": "pvc://absent/items.npz"}}
    world.submit(data=data)
    await world.look()
    wait = await world.look()
    assert wait is not None and 0 < wait <= 10, "it is looked for again though no event tells of a claim"
    assert (world.ready()["status"], world.ready()["reason"]) == ("False", "Preparing")
    assert f"DataNotFound: spec.data.{field}.uri is on PersistentVolumeClaim absent" in world.ready()["message"]
    assert world.kind("Job") == []
    world.server.store(CLAIM.path("team", "absent"), {"metadata": {}, "spec": {}})
    await world.settle()
    assert world.ready()["reason"] == "Published"


async def test_a_claim_that_never_comes_ends_the_run_at_its_deadline_and_is_still_named(world: ClusterWorld) -> None:
    world.submit(data={"evaluation": {"uri": "pvc://absent/items.npz"}}, search={"deadlineSeconds": 600})
    await world.look()
    world.now += timedelta(seconds=600)
    await world.settle()
    assert world.ready()["reason"] == "DeadlineExceeded"
    assert "DataNotFound" in world.ready()["message"] and "absent" in world.ready()["message"]
    world.server.store(CLAIM.path("team", "absent"), {"metadata": {}, "spec": {}})
    world.order_retry("one")
    await world.settle()
    assert world.ready()["reason"] == "Published"


async def test_a_clock_set_back_does_not_hold_up_a_job_that_was_refused(world: ClusterWorld) -> None:
    del world.server.objects[CLAIM.path("team", "models")]
    world.submit()
    await world.look()
    world.server.store(CLAIM.path("team", "models"), {"metadata": {}, "spec": {}})
    world.now -= timedelta(hours=1)
    await world.look()
    assert len(world.kind("Job")) == 1


async def test_the_default_store_is_created_but_never_another(world: ClusterWorld) -> None:
    world.submit(store={"uri": "pvc://mine"})
    await world.look()
    await world.look()
    assert "StoreNotFound" in world.ready()["message"]
    assert world.kind("PersistentVolumeClaim") == []


async def test_a_status_written_meanwhile_is_a_conflict_not_a_loss(world: ClusterWorld) -> None:
    world.submit()
    await world.sync()
    world.server.store(MODEL_PATH, {**world.model(), "metadata": {**world.model()["metadata"], "labels": {"a": "b"}}})
    with pytest.raises(ConflictError):
        await world.reconciler.reconcile(world.context, "team", "digits")
    await world.settle()
    assert world.model()["metadata"]["labels"] == {"a": "b"}


async def test_while_a_training_runs_its_figures_are_in_status(world: ClusterWorld) -> None:
    world.answers = World(prepare={"training": StoredData(sha256=digest("training"), items=800)})
    data = {**SPEC["data"], "training": {"uri": "pvc://models/training.npz"}}
    world.submit(data=data, recipes=[{"name": "lean", "steps": [{"prune": {}}]}])
    await world.look()
    world.work()
    await world.look()
    (job,) = [job for job in world.kind("Job") if job["metadata"]["labels"]["fettle.dev/stage"] == "build"]
    runs = {
        "metadata": {
            "labels": {"fettle.dev/managed": "true"},
            "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}],
        },
        "status": {"phase": "Running"},
    }
    world.server.store(POD.path("team", "trains"), runs)
    come = TrainingStatus(
        epoch=3, epochs=20, loss=0.4, validation_loss=0.5, validation_score=0.9, best_epoch=3, seconds=9
    )
    world.server.logs["trains"] = f"some line\n{progress_line(come)}\n"
    rows: list[Object] = []
    while not rows:
        assert await world.look() == PROGRESS_SECONDS
        rows = [row for row in world.model()["status"]["candidates"] if "training" in row]
    assert {row["name"] for row in rows} == {"lean-onnxruntime", "lean-openvino"}
    assert {(row["state"], row["message"]) for row in rows} == {("Running", come.words)}
    assert rows[0]["training"] == come.to_json()


async def train_together(world: ClusterWorld) -> None:
    """A run whose training, on two nodes, has its Job."""
    world.answers = World(prepare={"training": StoredData(sha256=digest("training"), items=800)})
    data = {**SPEC["data"], "training": {"uri": "pvc://models/training.npz"}}
    world.submit(data=data, recipes=[{"name": "lean", "steps": [{"prune": {}}], "train": {"nodes": 2}}])
    await world.look()
    world.work()
    await world.look()


async def test_pods_that_train_together_get_a_service_to_meet_and_the_first_one_is_heard(world: ClusterWorld) -> None:
    await train_together(world)
    world.restart()  # as if the operator had been killed between the Job and its Service
    await world.look()
    (job,) = [job for job in world.kind("Job") if job["metadata"]["labels"]["fettle.dev/stage"] == "build"]
    (service,) = world.kind("Service")
    assert owned_by(service, job["metadata"]["uid"])
    for rank, epoch in ((1, 9), (0, 3)):
        metadata = {
            "labels": {"fettle.dev/managed": "true"},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(rank)},
            "ownerReferences": [{"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}],
        }
        world.server.store(POD.path("team", f"trains-{rank}"), {"metadata": metadata, "status": {"phase": "Running"}})
        come = TrainingStatus(
            epoch=epoch, epochs=20, validation_loss=0.5, validation_score=0.9, best_epoch=3, seconds=9
        )
        world.server.logs[f"trains-{rank}"] = f"{progress_line(come)}\n"
    rows: list[Object] = []
    while not rows:
        assert await world.look() == PROGRESS_SECONDS
        rows = [row for row in world.model()["status"]["candidates"] if "training" in row]
    assert {row["training"]["epoch"] for row in rows} == {3}
    world.server.requests.clear()
    await world.look()
    assert world.server.writes() == [], "the Service is there"


async def test_a_refused_service_of_a_training_is_told_and_tried_again(world: ClusterWorld) -> None:
    await train_together(world)
    world.server.refuse = lambda method, path: (
        status(403, "Forbidden", "exceeded quota: services") if method == "PATCH" and "/services/" in path else None
    )
    assert await world.look() == 0.0
    wait = await world.look()
    assert wait is not None and wait > 0
    assert f"{Reason.QUOTA_EXCEEDED}: " in world.ready()["message"]
    world.server.refuse = lambda method, path: None
    world.now += timedelta(seconds=wait)
    await world.look()
    assert len(world.kind("Service")) == 1
    await world.look()
    assert Reason.QUOTA_EXCEEDED not in world.ready()["message"]


async def test_a_service_of_an_earlier_job_is_not_taken_for_that_of_the_one_that_runs(world: ClusterWorld) -> None:
    await train_together(world)
    await world.look()
    (service,) = world.kind("Service")
    path = SERVICE.path("team", service["metadata"]["name"])
    (reference,) = service["metadata"]["ownerReferences"]
    earlier = {**service["metadata"], "ownerReferences": [{**reference, "uid": "earlier"}]}
    world.server.store(path, {**service, "metadata": earlier})
    assert await world.look() == 0.0
    wait = await world.look()
    assert wait is not None and f"{Reason.NAME_CONFLICT}: " in world.ready()["message"]
    del world.server.objects[path]  # as the garbage collector does
    world.now += timedelta(seconds=wait)
    await world.look()
    (service,) = world.kind("Service")
    assert owned_by(service, reference["uid"])
