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
    assert (told.architecture, told.product, told.memory) == ("sm89", "NVIDIA-L4", 23034)
    assert told.offer == "nvidia.com/gpu: 1 (NVIDIA-L4, sm89)"
    bare = offer({"metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": 1}}})
    assert (bare.architecture, bare.memory) == (None, 0)


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
