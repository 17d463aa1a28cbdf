"""A run whose winners go to a registry as well."""

from __future__ import annotations

from typing import Any

from tests.unit.plan.optimize.world import World, make_spec

from fettle.api.report import PublishReport
from fettle.api.task import PublishTask

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
