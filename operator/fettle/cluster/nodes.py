"""What nodes offer to pods that want a GPU: read once, before the first Job of a run that asks for one."""

from __future__ import annotations

import logging

from fettle.api.pods import NVIDIA
from fettle.api.reasons import Reason
from fettle.cluster.client import Client
from fettle.cluster.kinds import NODE, Object
from fettle.cluster.quantity import quantity
from fettle.errors import ClusterError
from fettle.plan.run.state import NodeOffer, Taint

logger = logging.getLogger(__name__)


async def offers(client: Client) -> tuple[NodeOffer, ...] | None:
    """All nodes; None where the operator may not read them, as with Roles in single namespaces. Raises ClusterError."""
    try:
        nodes = await client.list(NODE)
    except ClusterError as error:
        if error.reason != Reason.FORBIDDEN:
            raise
        logger.info("nodes may not be read: whether one has the GPU is left to the scheduler")
        return None
    return tuple(offer(node) for node in nodes.items)


def offer(node: Object) -> NodeOffer:
    """What a Node says of its GPUs."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    amounts = {name: quantity(amount) for name, amount in (status.get("allocatable") or {}).items()}
    return NodeOffer(
        name=node["metadata"]["name"],
        resources={name: int(amount) for name, amount in amounts.items() if name.startswith(NVIDIA) and amount},
        labels=node["metadata"].get("labels") or {},
        taints=tuple(
            Taint(str(taint.get("key", "")), str(taint.get("value") or ""), str(taint.get("effect", "")))
            for taint in spec.get("taints") or ()
        ),
        schedulable=not spec.get("unschedulable"),
    )
