"""The check before the first Job of a run: whether a node has the GPU that a target needs, and which architecture it is.

A target is refused only if none of its pods could run on any node. What a scheduler, a RuntimeClass or an admission plugin may still
provide is not checked: a RuntimeClass adds tolerations of its own, and pods with a resource tolerate a taint that is named after it. Taints by
which Kubernetes marks a node that is not well at the moment do not count either: it takes them off when that is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fettle.api import architectures
from fettle.api.optimizedmodel import DeviceSpec, OptimizedModelSpec, TargetSpec
from fettle.api.optimizedmodel_status import DeviceStatus
from fettle.api.pods import Toleration
from fettle.api.reasons import Reason
from fettle.api.text import clip, counted
from fettle.api.vocabulary import DeviceKind
from fettle.plan.run import retry
from fettle.plan.run.devices import device_kind, gpu_resources
from fettle.plan.run.planned import Finding
from fettle.plan.run.state import MAJOR, MINOR, NodeOffer, RetryOrder, RunSnapshot, Taint
from fettle.plan.run.status import is_settled

SHOWN = 4  # maximum number of nodes in a message
# https://kubernetes.io/docs/reference/labels-annotations-taints: of a node that restarts, has no network yet, or is short of something.
PASSING = frozenset(
    f"node.kubernetes.io/{state}"
    for state in ("not-ready", "unreachable", "network-unavailable", "memory-pressure", "disk-pressure", "pid-pressure")
)


@dataclass(frozen=True)
class Located:
    """The spec with the architectures that were found, their status, and why the run cannot start, if it cannot."""

    spec: OptimizedModelSpec
    devices: tuple[DeviceStatus, ...] | None = None
    fault: Finding | None = None


def wants_nodes(snapshot: RunSnapshot) -> bool:
    """Whether a decision needs the list of nodes: the run is in progress, has targets with GPUs, and has not found them yet."""
    if all(device_kind(target) is DeviceKind.CPU for target in snapshot.spec.targets):
        return False
    order = retry.read(snapshot)
    return not (is_settled(snapshot.status, snapshot.generation) and not order.acts) and _unknown(snapshot, order)


def _unknown(snapshot: RunSnapshot, order: RetryOrder) -> bool:
    """Whether this run has not found its GPUs yet. A retried run looks again."""
    return snapshot.status.devices is None or not snapshot.goes_on or order.acts


def locate(snapshot: RunSnapshot, order: RetryOrder) -> Located:
    """Find the GPUs of all targets: those that an earlier decision of this run found, or among the nodes."""
    spec = snapshot.spec
    targets = [target for target in spec.targets if device_kind(target) is DeviceKind.NVIDIA]
    if not targets:
        return Located(spec)
    devices = snapshot.status.devices
    if devices is None or _unknown(snapshot, order):
        located = [_device(target, snapshot.nodes) for target in targets]
        faults = [each for each in located if isinstance(each, Finding)]
        if faults:
            return Located(spec, fault=replace(faults[0], message=" | ".join(fault.message for fault in faults)))
        devices = tuple(each for each in located if isinstance(each, DeviceStatus))
    devices_by_target = {device.target: device for device in devices}
    targets = [_located(target, devices_by_target.get(target.name)) for target in spec.targets]
    return Located(spec.model_copy(update={"targets": tuple(targets)}), devices)


def _located(target: TargetSpec, found: DeviceStatus | None) -> TargetSpec:
    """The target with its GPU's architecture, and with the node labels that select it."""
    if found is None:
        return target
    asked = target.device or DeviceSpec(kind=DeviceKind.NVIDIA)
    device = asked.model_copy(update={"architecture": asked.architecture or found.architecture})
    selector = {**(found.node_selector or {}), **target.node_selector}
    return target.model_copy(update={"device": device, "node_selector": selector})


def _device(target: TargetSpec, nodes: Sequence[NodeOffer] | None) -> DeviceStatus | Finding:
    """The GPU of a target: what all suitable nodes have in common. If nodes cannot be read, nothing is refused."""
    asked = target.device.architecture if target.device is not None else None
    if nodes is None:
        return DeviceStatus(target=target.name, architecture=asked)
    misfits = {node.name: _misfit(target, node) for node in nodes}
    fitting = [node for node in nodes if misfits[node.name] is None]
    if not fitting:
        return Finding(Reason.UNSCHEDULABLE, _nothing_fits(target, nodes, misfits))
    selector = _memory(target, fitting)
    labelled = {node.architecture for node in fitting}
    (one,) = labelled if len(labelled) == 1 else (None,)
    architecture = asked or one
    if one is not None and architecture:
        selector |= {MAJOR: architecture[2:-1], MINOR: architecture[-1]}
    return DeviceStatus(
        target=target.name, architecture=architecture, node_selector=selector or None, nodes=len(fitting)
    )


def _memory(target: TargetSpec, fitting: Sequence[NodeOffer]) -> dict[str, str]:
    """The label that keeps pods on nodes with the memory that was asked for, if all suitable nodes have the same one."""
    if target.device is None or not target.device.memory_mebibytes:
        return {}
    (label, size), *others = {node.memory(gpu_resources(target)) for node in fitting}
    return {label: fitting[0].labels[label]} if size and not others else {}


def _misfit(target: TargetSpec, node: NodeOffer) -> str | None:
    """Why no pod of the target can run on a node; None if one can."""
    wanting = [name for name, amount in gpu_resources(target).items() if node.resources.get(name, 0) < _count(amount)]
    if wanting:
        return f"has no {' and no '.join(wanting)}" if not node.resources else f"offers {node.offer}"
    device = target.device or DeviceSpec(kind=DeviceKind.NVIDIA)
    if device.architecture is not None and node.architecture not in (None, device.architecture):
        return f"is {node.architecture} ({node.product})"
    if node.architecture is not None and architectures.older(node.architecture, architectures.OLDEST):
        return f"is {node.architecture} ({node.product}), which is older than {architectures.OLDEST}"
    _, memory = node.memory(gpu_resources(target))
    if 0 < memory < device.memory_mebibytes:
        return f"has {memory} MiB of GPU memory ({node.product})"
    labels = [f"{key}={value}" for key, value in target.node_selector.items() if node.labels.get(key) != value]
    if labels:
        return f"lacks the label {labels[0]}"
    if not node.schedulable:
        return "is cordoned"
    return None if target.runtime_class_name else _taint(target, node)


def _taint(target: TargetSpec, node: NodeOffer) -> str | None:
    """The taint that keeps pods of the target off a node."""
    no_matter = PASSING.union(gpu_resources(target))
    for taint in node.taints:
        if taint.effect == "PreferNoSchedule" or taint.key in no_matter:
            continue
        if not any(_tolerates(each, taint) for each in target.tolerations):
            return f"has the taint {taint.key}={taint.value}:{taint.effect}"
    return None


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Whether the toleration matches the taint, by the rules of the scheduler."""
    if toleration.effect not in (None, "", taint.effect) or (toleration.key or taint.key) != taint.key:
        return False
    return toleration.operator == "Exists" or (bool(toleration.key) and (toleration.value or "") == taint.value)


def _count(amount: int | str) -> int:
    """The number of devices in a quantity."""
    return int(amount) if str(amount).isdigit() else 1


def _nothing_fits(target: TargetSpec, nodes: Sequence[NodeOffer], misfits: Mapping[str, str | None]) -> str:
    requested = ", ".join(f"{name}: {amount}" for name, amount in gpu_resources(target).items())
    device = target.device
    details = [device.architecture or "", device.memory or ""] if device is not None else []
    asked = " of ".join((requested, " with ".join(filter(None, details)))) if any(details) else requested
    with_gpus = [node for node in nodes if node.resources]
    told = "; ".join(f"{node.name} {misfits[node.name]}" for node in with_gpus[:SHOWN])
    more = f"; {len(with_gpus) - SHOWN} more with GPUs" if len(with_gpus) > SHOWN else ""
    offers = told + more if with_gpus else "none has a GPU"
    advice = "add such a node, or change the target's device, resources, nodeSelector or tolerations, and retry"
    return f"target {target.name}: no node offers {asked}; of {counted(len(nodes), 'node')}, {clip(offers, 250)} ({advice})"
