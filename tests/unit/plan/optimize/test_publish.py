"""A run whose winners go to a registry as well."""

from __future__ import annotations

from typing import Any

from tests.unit.plan.optimize.world import World, failure, make_spec

from fettle.api.reasons import Reason
from fettle.api.report import PublishReport
from fettle.api.task import PrepareTask, PublishTask, decode_task, encode_task, task_hash
from fettle.plan.run.state import TaskState
from fettle.plan.run.tasks import prepare_task

REPOSITORY = {"uri": "oci://registry.example/models/digits", "secretName": "registry"}
ADDRESS = f"{REPOSITORY['uri']}@sha256:{'4' * 64}"


def pushed(request: Any) -> PublishReport | None:
    task = request.task
    if not isinstance(task, PublishTask) or task.publish is None:
        return None
    return PublishReport(report_uri="pvc://fettle-store/reports/1.html", registry={"cpu": ADDRESS})


def test_the_status_says_where_in_the_registry_the_winner_is() -> None:
    world = World(make_spec(publish=REPOSITORY), answer=pushed)
    world.settle()
    (artifact,) = world.status.artifacts
    assert artifact.registry_uri == ADDRESS


def test_a_repository_that_is_added_later_repeats_no_build() -> None:
    world = World(make_spec(), answer=pushed)
    world.settle()
    assert world.status.artifacts[0].registry_uri is None
    before = len(world.started)
    world.spec, world.generation = make_spec(publish=REPOSITORY), world.generation + 1
    world.settle()
    assert not {"prepare", "build"} & {request.stage for request in world.started[before:]}
    assert world.status.artifacts[0].registry_uri == ADDRESS


def test_preparing_asks_the_registry_and_its_answer_does_not_depend_on_it() -> None:
    asked, other = (prepare_task(made, "pvc://fettle-store") for made in (make_spec(publish=REPOSITORY), make_spec()))
    assert asked.publish is not None and asked.publish.uri == REPOSITORY["uri"]
    assert decode_task(encode_task(asked)) == asked
    assert task_hash(asked) == task_hash(other)


def test_a_run_whose_registry_refused_is_prepared_where_the_repository_is_corrected() -> None:
    def refused(request: Any) -> PublishReport | TaskState | None:
        task = request.task
        wrong = isinstance(task, PrepareTask) and task.publish is not None and task.publish.secret_name is None
        return failure(Reason.FORBIDDEN, "were refused") if wrong else pushed(request)

    world = World(make_spec(publish={"uri": REPOSITORY["uri"]}), answer=refused)
    world.settle()
    assert (world.ready.status, world.ready.reason) == ("False", Reason.FORBIDDEN)
    assert {request.stage for request in world.started} == {"prepare"}
    world.spec, world.generation = make_spec(publish=REPOSITORY), world.generation + 1
    world.settle()
    assert world.status.artifacts[0].registry_uri == ADDRESS
