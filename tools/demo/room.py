"""Pods that wait for a node in vain, told in seconds with the scheduler's words instead of by a time that runs out.

A pod that waits until Jobs have ended is no fault: what they hold comes free. What stays, such as somebody's serving pods, does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from tools.demo.kube import DemoError, Kube

Object = Mapping[str, Any]
Amounts = Mapping[str, Decimal]
PASSING_LABEL = "fettle-tests/passing"  # of namespaces whose pods all go when their tests end
PATIENCE_SECONDS = 20.0  # for room: a pod that was deleted goes
SETTLING_SECONDS = 60.0  # for anything else: a claim is bound, a node gets ready
EVERY_SECONDS = 5.0
_TOLD = 6  # of the pods that hold the room


class Room:
    """Looks every few seconds at the pods of one namespace that no node takes."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._next = 0.0
        self._since: dict[str, float] = {}  # by uid, when a pod was first seen to wait

    def check(self) -> None:
        """Raises DemoError once a pod waits in vain."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        pending = self._list(
            self._kube.core.list_namespaced_pod, self._kube.namespace, field_selector="status.phase=Pending"
        )
        waiting = {pod["metadata"]["uid"]: pod for pod in pending if refusal(pod)}
        self._since = {uid: self._since.get(uid, now) for uid in waiting}
        long = [pod for uid, pod in waiting.items() if now - self._since[uid] >= patience(pod)]
        if not long:
            return
        core = self._kube.core
        nodes, pods = self._list(core.list_node), self._list(core.list_pod_for_all_namespaces)
        passing = {one["metadata"]["name"] for one in self._list(core.list_namespace, label_selector=PASSING_LABEL)}
        for pod in long:
            if why := in_vain(pod, nodes, pods, passing - {self._kube.namespace}):
                raise DemoError(why)

    def _list(self, call: Any, *arguments: str, **options: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(call(*arguments, _preload_content=False, **options).data)["items"]
        return items


def refusal(pod: Object) -> str:
    """Why the scheduler finds no node for a pod, in its words; empty when it has not said so."""
    for each in (pod.get("status") or {}).get("conditions") or ():
        if each["type"] == "PodScheduled" and each["status"] == "False" and each.get("reason") == "Unschedulable":
            return str(each.get("message") or "Unschedulable")
    return ""


def lacks_room(pod: Object) -> bool:
    """Whether what a pod asks for is held by others, or is more than any node has."""
    return "Insufficient" in refusal(pod)


def patience(pod: Object) -> float:
    """Seconds that a refused pod is left waiting before it is looked at closely."""
    return PATIENCE_SECONDS if lacks_room(pod) else SETTLING_SECONDS


def in_vain(pod: Object, nodes: Sequence[Object], pods: Sequence[Object], passing: Collection[str]) -> str:
    """Why a pod that the scheduler refuses cannot be placed later either, in one line; empty when waiting may help.

    `passing`: namespaces whose pods end, whatever they are.
    """
    why, wanted = refusal(pod), requests(pod)
    names = f"pod {_name(pod)} cannot be scheduled: {why}"
    if not lacks_room(pod):
        return names
    stays = [one for one in pods if _stays(one) and one["metadata"]["namespace"] not in passing]
    told = []
    for node in nodes:
        here = [one for one in stays if one["spec"].get("nodeName") == node["metadata"]["name"]]
        allocatable = {name: parse_quantity(amount) for name, amount in node["status"]["allocatable"].items()}
        held = _sum(requests(one) for one in here)
        short = [
            name
            for name, amount in wanted.items()
            if allocatable.get(name, Decimal(0)) - held.get(name, Decimal(0)) < amount
        ]
        if not short:
            return ""
        told += [_held(node, name, wanted[name], allocatable.get(name, Decimal(0)), here) for name in short]
    return "; ".join([names, *told])


def requests(pod: Object) -> Amounts:
    """What a pod asks for, by resource: its containers together, or its largest init container where that is more."""

    def of(container: Object) -> Amounts:
        amounts = (container.get("resources") or {}).get("requests") or {}
        return {name: parse_quantity(amount) for name, amount in amounts.items()}

    together = _sum(of(container) for container in pod["spec"]["containers"])
    for container in pod["spec"].get("initContainers") or ():
        for name, amount in of(container).items():
            together[name] = max(together.get(name, amount), amount)
    return together


def _sum(amounts: Iterable[Amounts]) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for one in amounts:
        for name, amount in one.items():
            total[name] = total.get(name, Decimal(0)) + amount
    return total


def _stays(pod: Object) -> bool:
    """Whether a pod keeps its room until somebody takes it away; one of a Job ends."""
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return (
        not ended
        and pod["spec"].get("restartPolicy", "Always") == "Always"
        and not pod["metadata"].get("deletionTimestamp")
    )


def _held(node: Object, name: str, wanted: Decimal, allocatable: Decimal, here: Sequence[Object]) -> str:
    """'node0 has 2 of cpu, 1 is asked for, 1.2 is held by what stays: demo/a 0.6, demo/b 0.6'."""
    holders = sorted(((requests(one).get(name, Decimal(0)), _name(one)) for one in here), reverse=True)
    text = ", ".join(f"{who} {amount:f}" for amount, who in holders[:_TOLD] if amount)
    held = sum((amount for amount, _ in holders), Decimal(0))
    where = node["metadata"]["name"]
    return f"{where} has {allocatable:f} of {name}, {wanted:f} is requested, {held:f} is used by other pods: {text or 'none'}"


def _name(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
