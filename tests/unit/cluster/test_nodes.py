"""What a Node says of its GPUs, and an operator that may not read nodes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api_server import serving, status

from fettle.cluster.kinds import NODE
from fettle.cluster.nodes import offer, offers
from fettle.errors import ClusterError
from fettle.plan.run.state import MAJOR, MEMORY, MINOR, PRODUCT, NodeOffer, Taint

LABELS = {MAJOR: "8", MINOR: "9", PRODUCT: "NVIDIA-L4", MEMORY: "23034"}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({}, NodeOffer("n")),
        ({"status": {"allocatable": {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "4"}}}, NodeOffer("n", {"nvidia.com/gpu": 4})),
        ({"status": {"allocatable": {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "7"}}}, NodeOffer("n", {"nvidia.com/mig-1g.10gb": 7})),
        ({"spec": {"unschedulable": True}}, NodeOffer("n", schedulable=False)),
        ({"spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": "k", "value": "v", "effect": "NoExecute"}]}},
         NodeOffer("n", taints=(Taint("nvidia.com/gpu"), Taint("k", "v", "NoExecute")))),
    ],
    ids=["a node of CPUs", "whole GPUs", "parts of GPUs, and none whole", "cordoned", "tainted"],
)  # fmt: skip
def test_a_node_offers_what_its_object_says(node: dict[str, Any], expected: NodeOffer) -> None:
    assert offer({"metadata": {"name": "n"}, **node}) == expected


def test_labels_of_feature_discovery_tell_what_the_gpus_are() -> None:
    told = offer({"metadata": {"name": "n", "labels": LABELS}, "status": {"allocatable": {"nvidia.com/gpu": 1}}})
    assert (told.architecture, told.product, told.memory()) == ("sm89", "NVIDIA-L4", (MEMORY, 23034))
    assert told.offer == "nvidia.com/gpu: 1 (NVIDIA-L4, sm89)"
    bare = offer({"metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": 1}}})
    assert (bare.architecture, bare.memory()) == (None, (MEMORY, 0))


@pytest.mark.parametrize(
    ("labels", "architecture", "memory"),
    [
        ({MAJOR: "12", MINOR: "0", MEMORY: "97887"}, "sm120", 97887),
        ({MAJOR: "8", MINOR: "", MEMORY: ""}, None, 0),
        ({MAJOR: "eight", MINOR: "9", MEMORY: "24GiB"}, None, 0),
        ({MAJOR: "1000", MINOR: "9", MEMORY: "99999999999999"}, None, 0),
        ({MAJOR: "8", MINOR: "90", MEMORY: "-1"}, None, 0),
    ],
    ids=["two digits", "empty", "words", "too long", "no compute capability"],
)
def test_odd_labels_are_as_good_as_none(labels: dict[str, str], architecture: str | None, memory: int) -> None:
    told = offer({"metadata": {"name": "n", "labels": labels}})
    assert (told.architecture, told.memory()) == (architecture, (MEMORY, memory))


def test_the_memory_of_a_part_of_a_gpu_is_the_parts() -> None:
    part = "nvidia.com/mig-1g.10gb"
    told = offer({"metadata": {"name": "n", "labels": {MEMORY: "81920", f"{part}.memory": "9728"}}})
    assert told.memory([part]) == (f"{part}.memory", 9728)
    assert told.memory(["nvidia.com/gpu.shared"]) == (MEMORY, 81920)


async def test_nodes_that_may_not_be_read_are_unknown_and_other_failures_are_failures() -> None:
    async with serving() as (server, client):
        server.store(NODE.path(None, "n"), {"metadata": {"labels": LABELS}})
        found = await offers(client)
        assert found is not None
        assert [node.name for node in found] == ["n"]
        server.refuse = lambda method, path: status(403, "Forbidden")
        assert await offers(client) is None
        server.refuse = lambda method, path: status(500, "InternalError")
        with pytest.raises(ClusterError):
            await offers(client)
