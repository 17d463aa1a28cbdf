"""A target with a GPU on the stand-in API server: nodes are listed once, and what they lack ends the run before its first Job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.api_server import serving, status
from tests.unit.controller.cluster_world import ClusterWorld

from fettle.cluster.kinds import NODE
from fettle.settings import Settings

L4 = {"nvidia.com/gpu.compute.major": "8", "nvidia.com/gpu.compute.minor": "9", "nvidia.com/gpu.product": "NVIDIA-L4"}
TARGET = {"name": "gpu", "device": {"kind": "nvidia"}}


@pytest.fixture
async def world() -> AsyncIterator[ClusterWorld]:
    async with serving() as (server, client):
        made = ClusterWorld(server, client)
        made.server.store(NODE.path(None, "cpu"), {"metadata": {}, "status": {"allocatable": {"cpu": "8"}}})
        yield made


def add_gpu(world: ClusterWorld, **labels: Any) -> None:
    node = {"metadata": {"labels": {**L4, **labels}}, "status": {"allocatable": {"nvidia.com/gpu": "1"}}}
    world.server.store(NODE.path(None, "l4"), node)


def listed(world: ClusterWorld) -> int:
    return world.server.requests.count(("GET", NODE.path()))


async def test_a_gpu_that_no_node_offers_ends_the_run_at_the_first_look(
    world: ClusterWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.submit(targets=[TARGET])
    assert await world.look() is None, "nothing more happens by itself"
    assert (world.ready()["status"], world.ready()["reason"]) == ("False", "Unschedulable")
    assert "no node offers nvidia.com/gpu: 1; of 1 node, none has a GPU" in world.ready()["message"]
    assert world.kind("Job") == []
    assert world.events() == ["Unschedulable"]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(line.startswith("OptimizedModel team/digits: Unschedulable: ") for line in told), told
    caplog.clear()
    await world.look()
    assert not caplog.records, "the log tells a transition once"


async def test_a_retry_after_a_node_was_added_goes_all_the_way_and_lists_nodes_once(world: ClusterWorld) -> None:
    world.submit(targets=[TARGET])
    await world.look()
    add_gpu(world)
    world.order_retry("again")
    world.server.requests.clear()
    await world.settle()
    assert world.ready()["reason"] == "Published"
    assert listed(world) == 1
    (artifact,) = world.model()["status"]["artifacts"]
    assert artifact["placement"]["limits"] == {"nvidia.com/gpu": 1}
    assert artifact["placement"]["nodeSelector"] == {key: L4[key] for key in L4 if "compute" in key}
    images = {job["spec"]["template"]["spec"]["containers"][0]["image"] for job in world.kind("Job")}
    assert Settings().optimizer_gpu_image in images


async def test_an_operator_that_may_not_read_nodes_leaves_it_to_the_scheduler(world: ClusterWorld) -> None:
    world.server.refuse = lambda method, path: status(403, "Forbidden") if path == NODE.path() else None
    world.submit(targets=[TARGET])
    await world.look()
    assert world.ready()["reason"] == "Preparing"


async def test_where_nodes_are_made_on_demand_nobody_looks_at_those_there_are(world: ClusterWorld) -> None:
    object.__setattr__(world.context, "settings", Settings(gpu_preflight=False))
    world.submit(targets=[TARGET])
    await world.look()
    assert (world.ready()["reason"], listed(world)) == ("Preparing", 0)


async def test_a_run_without_gpus_lists_no_nodes(world: ClusterWorld) -> None:
    world.submit()
    await world.settle()
    assert listed(world) == 0
