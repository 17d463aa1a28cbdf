"""Before the first Job of a run with GPUs: what nodes offer, and what is said where none will do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.plan.optimize.world import World, make_spec

from fettle.api.reasons import Reason
from fettle.api.vocabulary import CandidateState
from fettle.plan.run.decide import decide
from fettle.plan.run.preflight import wants_nodes
from fettle.plan.run.state import MAJOR, MEMORY, MINOR, PRODUCT, NodeOffer, RunDecision, Taint

GPU, MIG = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"


def labels(architecture: str, product: str, mebibytes: int) -> dict[str, str]:
    return {MAJOR: architecture[2:-1], MINOR: architecture[-1], PRODUCT: product, MEMORY: str(mebibytes)}


def node(name: str, architecture: str = "sm89", resource: str = GPU, **fields: Any) -> NodeOffer:
    product = {"sm70": "Tesla-V100", "sm75": "Tesla-T4", "sm86": "NVIDIA-A10", "sm89": "NVIDIA-L4"}[architecture]
    told = labels(architecture, product, 15360 if architecture == "sm75" else 23034)
    return NodeOffer(**{"name": name, "resources": {resource: 1}, "labels": told, **fields})


CPU = NodeOffer("cpu-a")
SLICE = node("a", resource=MIG, labels=labels("sm89", "NVIDIA-L4", 81920) | {f"{MIG}.memory": "9728"})
T4, L4, A10 = node("t4", "sm75"), node("l4"), node("a10", "sm86")


class GpuWorld(World):
    """A world whose decisions see these nodes."""

    nodes: tuple[NodeOffer, ...] | None = ()

    def look(self) -> RunDecision:
        self.asked = wants_nodes(self.snapshot)
        return super().look()

    @property
    def snapshot(self) -> Any:
        return replace(super().snapshot, nodes=self.nodes)


def world(*nodes: NodeOffer, **target: Any) -> GpuWorld:
    made = GpuWorld(spec=make_spec(targets=[{"name": "gpu", "device": {"kind": "nvidia"}, **target}]))
    made.nodes = nodes
    return made


def device(**fields: Any) -> dict[str, Any]:
    return {"device": {"kind": "nvidia", **fields}}


MISFITS: list[tuple[str, tuple[NodeOffer, ...], dict[str, Any], str]] = [
    ("a cluster without GPUs", (CPU, NodeOffer("cpu-b")), {}, "no node offers nvidia.com/gpu: 1; of 2 nodes, none has a GPU"),
    ("another architecture", (CPU, T4), device(architecture="sm89"),
     "no node offers nvidia.com/gpu: 1 of sm89; of 2 nodes, t4 is sm75 (Tesla-T4)"),
    ("an architecture without kernels", (node("v100", "sm70"),), {}, "v100 is sm70 (Tesla-V100), which is older than sm75"),
    ("too little memory", (T4,), device(memory="16Gi"), "t4 has 15360 MiB of GPU memory (Tesla-T4)"),
    ("parts with too little memory of a GPU with enough", (SLICE,),
     {**device(memory="16Gi"), "resources": {"limits": {MIG: 1}}}, "a has 9728 MiB of GPU memory"),
    ("a whole GPU where parts are offered", (node("a", resource=MIG),), {}, "a offers nvidia.com/mig-1g.10gb: 1 (NVIDIA-L4, sm89)"),
    ("parts where whole GPUs are offered", (L4,), {"resources": {"limits": {MIG: 1}}}, "l4 offers nvidia.com/gpu: 1 (NVIDIA-L4, sm89)"),
    ("more than a node has", (L4,), {"resources": {"limits": {GPU: 4}}}, "no node offers nvidia.com/gpu: 4; of 1 node, l4 offers"),
    ("a label that no such node has", (L4,), {"nodeSelector": {"pool": "gold"}}, "l4 lacks the label pool=gold"),
    ("a taint", (node("a", taints=(Taint("dedicated", "team"),)),), {}, "a has the taint dedicated=team:NoSchedule"),
    ("a node that takes no pods", (node("a", schedulable=False),), {}, "a is cordoned"),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "nodes", "target", "told"), MISFITS, ids=[line[0] for line in MISFITS])
def test_a_gpu_that_no_node_offers_ends_the_run_before_its_first_job(
    sentence: str, nodes: tuple[NodeOffer, ...], target: dict[str, Any], told: str
) -> None:
    made = world(*nodes, **target)
    decision = made.look()
    assert (decision.finished, decision.requests) == (True, ())
    assert (made.ready.status, made.ready.reason) == ("False", Reason.UNSCHEDULABLE)
    assert told in made.ready.message
    assert "add such a node" in made.ready.message
    assert made.events == [("Warning", Reason.UNSCHEDULABLE)]


FITS: list[tuple[str, tuple[NodeOffer, ...], dict[str, Any], str | None]] = [
    ("all nodes agree", (CPU, L4, node("l4-b")), {}, "sm89"),
    ("the spec says which", (T4, L4), device(architecture="sm75"), "sm75"),
    ("memory tells them apart", (T4, A10), device(memory="16Gi"), "sm86"),
    ("they do not agree", (T4, L4), {}, None),
    ("a taint named after the resource", (node("a", taints=(Taint(GPU, "present"),)),), {}, "sm89"),
    ("a taint that is tolerated", (node("a", taints=(Taint("dedicated", "team"),)),),
     {"tolerations": [{"key": "dedicated", "operator": "Exists"}]}, "sm89"),
    ("a RuntimeClass may tolerate", (node("a", taints=(Taint("dedicated", "team"),)),), {"runtimeClassName": "nvidia"}, "sm89"),
    ("a node that restarts", (node("a", taints=(Taint("node.kubernetes.io/not-ready"), Taint("node.kubernetes.io/not-ready", "", "NoExecute"))),),
     {}, "sm89"),
    ("a taint that only prefers", (node("a", taints=(Taint("busy", "", "PreferNoSchedule"),)),), {}, "sm89"),
    ("a part of a GPU", (node("a", resource=MIG),), {"resources": {"limits": {MIG: 1}}}, "sm89"),
    ("a part of a GPU among the requests", (node("a", resource=MIG),), {"resources": {"requests": {MIG: 1}}}, "sm89"),
    ("a node that several pods share in turns", (node("a", resource="nvidia.com/gpu.shared"),),
     {"resources": {"limits": {"nvidia.com/gpu.shared": 1}}}, "sm89"),
    ("labels that are no compute capability", (node("a", labels={MAJOR: "1000", MINOR: "0"}),), {}, None),
    ("no labels", (NodeOffer("bare", {GPU: 1}),), device(architecture="sm86"), "sm86"),
    ("no labels and nothing said", (NodeOffer("bare", {GPU: 1}),), {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "nodes", "target", "architecture"), FITS, ids=[line[0] for line in FITS])
def test_the_architecture_is_what_the_spec_says_or_all_suitable_nodes(
    sentence: str, nodes: tuple[NodeOffer, ...], target: dict[str, Any], architecture: str | None
) -> None:
    made = world(*nodes, **target)
    decision = made.look()
    assert [task.stage for task in decision.requests] == ["prepare"]
    assert made.status.devices is not None
    assert [found.architecture for found in made.status.devices] == [architecture]


def test_pods_are_kept_where_the_gpus_have_the_memory_that_was_asked_for() -> None:
    small, large = (node(f"{size}", labels=labels("sm89", "NVIDIA", size)) for size in (15360, 46068))
    architecture = {MAJOR: "8", MINOR: "9"}
    table: list[tuple[tuple[NodeOffer, ...], dict[str, Any], dict[str, str]]] = [
        ((small, large), device(memory="16Gi"), {**architecture, MEMORY: "46068"}),
        ((small, large), device(memory="8Gi"), architecture),
        ((small, large), {}, architecture),
    ]
    for nodes, target, selector in table:
        made = world(*nodes, **target)
        made.look()
        assert made.status.devices is not None
        assert [found.node_selector for found in made.status.devices] == [selector]


def test_a_run_keeps_to_the_gpus_that_it_found() -> None:
    made = world(L4)
    made.look()
    made.nodes = (T4,)
    made.settle()
    assert not made.asked
    assert made.status.devices is not None
    assert [found.architecture for found in made.status.devices] == ["sm89"]
    assert {row.state for row in made.rows("gpu").values()} <= set(CandidateState) - {CandidateState.FAILED}


def test_a_retry_looks_at_the_nodes_again() -> None:
    made = world(CPU)
    made.look()
    made.nodes, made.retry = (CPU, L4), "again"
    decision = made.look()
    assert made.asked
    assert [task.stage for task in decision.requests] == ["prepare"]


def test_what_is_published_is_placed_where_it_runs() -> None:
    made = world(L4, tolerations=[{"key": "dedicated", "operator": "Exists"}])
    made.speeds = {"float16-tensorrt-rtx": (3.0, 0.0)}
    made.settle()
    (artifact,) = made.status.artifacts
    assert (artifact.candidate, artifact.placement.architecture) == ("float16-tensorrt-rtx", "sm89")
    assert artifact.placement.node_selector == {MAJOR: "8", MINOR: "9"}
    assert artifact.placement.limits == {GPU: 1}
    assert [each.key for each in artifact.placement.tolerations] == ["dedicated"]


def test_engines_of_nvidias_general_library_are_built_on_the_targets_nodes() -> None:
    made = world(L4, runtimes=["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
    made.settle()
    there = {
        task.label.split()[1].split("-sm89")[0]: task.target is not None
        for task in made.started
        if task.stage == "build"
    }
    assert there["float16-tensorrt-float16"]
    assert not there["float16-tensorrt-rtx-float16"]
    assert not there["int8-onnxruntime-cuda"]


def test_nodes_that_may_not_be_read_refuse_nothing() -> None:
    made = world(**device(architecture="sm89"))
    made.nodes = None
    assert [task.stage for task in made.look().requests] == ["prepare"]


def test_a_target_of_cpus_asks_for_no_nodes() -> None:
    assert not wants_nodes(World().snapshot)
    assert decide(World().snapshot).status.devices is None
