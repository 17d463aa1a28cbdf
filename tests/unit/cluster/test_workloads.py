"""What Deployments and pods say about a revision."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fettle.api.reasons import Reason
from fettle.api.signature import Signature, Tensor
from fettle.cluster import ledger, serving, workloads
from fettle.cluster.kinds import Object
from fettle.cluster.waiting import quiet_in
from fettle.plan.rollout.state import MarkEntered, MarkLeft, OpenEntry, PodFault

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = {"fettle.dev/revision": "r1", "fettle.dev/traffic": "on"}


def deployment(wanted: int, **status: Any) -> Object:
    return {
        "metadata": {"labels": LABELS, "annotations": {"fettle.dev/artifact": "pvc://s/artifacts/a"}},
        "spec": {"replicas": wanted},
        "status": status,
    }


def pod(name: str = "p", *, ready: bool = False, gone: bool = False, phase: str = "Running", **status: Any) -> Object:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}, *status.pop("conditions", [])]
    metadata = {"name": name, "labels": LABELS, **({"deletionTimestamp": "now"} if gone else {})}
    return {"metadata": metadata, "status": {"phase": phase, "conditions": conditions, **status}}


def taken_out(one: Object, label: str | None = "off") -> Object:
    """The pod after `kubectl label pod X fettle.dev/traffic=off --overwrite`; None: after the label was taken away."""
    labels = {key: value for key, value in LABELS.items() if key != "fettle.dev/traffic"}
    one["metadata"]["labels"] = labels if label is None else {**labels, "fettle.dev/traffic": label}
    return one


def container(name: str = "server", restarts: int = 0, **states: Any) -> Object:
    return {"name": name, "restartCount": restarts, **states}


def ended(message: str = "", code: int = 1, reason: str = "Error", at: str = "2026-01-01T00:00:00Z") -> Object:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}}


def test_pods_on_their_way_out_serve_no_more() -> None:
    found = workloads.observe(
        deployment(2, replicas=2, availableReplicas=2), [pod("a", ready=True), pod("b", ready=True, gone=True)]
    )
    assert (found.ready, found.available, found.leaving, found.artifact) == (1, 1, 1, "pvc://s/artifacts/a")


def test_a_pod_too_large_for_every_node_says_what_it_requests_and_which_field_sets_that() -> None:
    full = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu."}
    one = pod(conditions=[full])
    one["spec"] = {"containers": [{"name": "server", "resources": {"requests": {"cpu": 1, "memory": "1Gi"}}}]}
    fault = workloads.observe(deployment(1), [one]).fault
    told = "each pod requests cpu 1, memory 1Gi: request less in spec.server.resources, or add a node"
    assert fault is not None and told in fault.message


def test_an_evicted_pod_is_none() -> None:
    found = workloads.observe(deployment(1), [pod(phase="Failed", reason="Evicted")])
    assert (found.pods, found.ready, found.fault) == (0, 0, None)


@pytest.mark.parametrize("label", ["off", "", None])
def test_a_pod_that_a_person_took_out_is_ready_and_gets_no_traffic(label: str | None) -> None:
    pods = [pod("a", ready=True), pod("b", ready=True), taken_out(pod("c", ready=True), label)]
    assert [workloads.is_ready(one) for one in pods] == [True, True, False]
    found = workloads.observe(deployment(3, replicas=3, availableReplicas=3), pods)  # the Deployment knows no label
    assert (found.replicas, found.pods, found.ready, found.available, found.out) == (3, 3, 2, 2, 1)


def test_a_pod_that_was_taken_out_stays_its_deployments_so_that_nobody_puts_another_in_its_place() -> None:
    owner = {"metadata": {"namespace": "n", "name": "digits", "uid": "u"}}
    selector = serving.deployment(owner, "r1", "pvc://s/a", {}, 3)["spec"]["selector"]["matchLabels"]
    assert selector == {"fettle.dev/modeldeployment": "digits", "fettle.dev/revision": "r1"}


def test_of_pods_that_just_became_ready_none_is_available_for_one_that_is_out() -> None:
    pods = [pod("a", ready=True), pod("b", ready=True), taken_out(pod("c", ready=True))]
    found = workloads.observe(deployment(3, replicas=3, availableReplicas=2), pods)
    assert (found.ready, found.available) == (2, 1)
    only = workloads.observe(deployment(1, replicas=1, availableReplicas=1), [taken_out(pod(ready=True))])
    assert (only.ready, only.available, only.out) == (0, 0, 1)


def test_what_a_pod_does_that_a_person_looks_at_is_no_fault_of_its_revision() -> None:
    looked_at = taken_out(pod(containerStatuses=[container(restarts=3, lastState=ended("ArtifactTampered: x"))]))
    looked_at["metadata"]["uid"] = "u"
    told = {"u": PodFault(Reason.STORE_NOT_SHARED, "Multi-Attach error")}
    assert workloads.observe(deployment(1), [looked_at], told).fault is None
    assert workloads.crashes([looked_at]) == ()


@pytest.mark.parametrize(
    ("name", "broken", "reason", "final"),
    [
        (
            "no node",
            pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]),
            Reason.UNSCHEDULABLE,
            False,
        ),
        (
            "bad image",
            pod(containerStatuses=[container(state={"waiting": {"reason": "ImagePullBackOff"}})]),
            Reason.IMAGE_PULL_FAILED,
            False,
        ),
        (
            "a tampered artifact, seen once",
            pod(initContainerStatuses=[container("fetch", state=ended("ArtifactTampered: blob differs"))]),
            Reason.ARTIFACT_TAMPERED,
            False,
        ),
        (
            "a tampered artifact, seen three times",
            pod(initContainerStatuses=[container("fetch", 2, lastState=ended("ArtifactTampered: blob differs"))]),
            Reason.ARTIFACT_TAMPERED,
            True,
        ),
        (
            "this node's CPU will not do, another's may",
            pod(initContainerStatuses=[container("fetch", 9, lastState=ended("NodeIncompatible: no AVX512"))]),
            Reason.NODE_INCOMPATIBLE,
            False,
        ),
        (
            "clients of the stable revision could not use it",
            pod(initContainerStatuses=[container("fetch", state=ended("SignatureIncompatible: input x is new"))]),
            Reason.SIGNATURE_INCOMPATIBLE,
            True,
        ),
        (
            "it may not check tokens, until somebody grants that",
            pod(containerStatuses=[container("server", 9, lastState=ended("Forbidden: server.auth.tokenReview: no"))]),
            Reason.FORBIDDEN,
            False,
        ),
        (
            "out of memory",
            pod(containerStatuses=[container(lastState=ended(code=137, reason="OOMKilled"))]),
            Reason.OUT_OF_MEMORY,
            False,
        ),
        (
            "an end without words",
            pod(containerStatuses=[container(lastState=ended("Traceback ..."))]),
            Reason.MODEL_LOAD_FAILED,
            False,
        ),
        (
            "its node was started again three times",
            pod(containerStatuses=[container("server", 3, lastState=ended(code=255, reason="Unknown"))]),
            None,
            False,
        ),
        (
            "the remains of a fetch",
            pod(initContainerStatuses=[container("fetch", 3, state=ended(code=137, reason="ContainerStatusUnknown"))]),
            None,
            False,
        ),
        (
            "only starting",
            pod(containerStatuses=[container(state={"waiting": {"reason": "PodInitializing"}})]),
            None,
            False,
        ),
    ],
)
def test_why_a_pod_is_not_ready(name: str, broken: Object, reason: Reason | None, final: bool) -> None:
    fault = workloads.observe(deployment(1), [broken]).fault
    assert (fault.reason if fault else None, fault.final if fault else False) == (reason, final), name


def test_a_quota_that_lets_no_pod_in_is_told() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "forbidden: exceeded quota: small"}
    fault = workloads.observe(deployment(1, conditions=[failure]), []).fault
    assert fault is not None and fault.reason is Reason.QUOTA_EXCEEDED


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        (ended(code=139), True),
        (ended(code=137, reason="OOMKilled"), False),  # no limit of its own: its node's memory
        (ended(code=137, reason="ContainerStatusUnknown"), False),  # its node came back
        (ended(code=255, reason="Unknown"), False),  # so did the runtime
        (ended(code=0, reason="Completed"), False),
        (ended(code=137), True),  # the liveness probe's kill: it hung
    ],
)
def test_which_ends_of_a_container_are_crashes(state: Object, counts: bool) -> None:
    found = workloads.crashes([pod(containerStatuses=[container(restarts=1, lastState=state)])])
    assert bool(found) is counts
    assert all(crash.at == NOW for crash in found)


OOM = ended(code=137, reason="OOMKilled")


def limited(one: Object, where: str = "containers") -> Object:
    """The pod with a memory limit: its server's, or that of the pod as a whole."""
    limits = {"resources": {"limits": {"memory": "1Gi"}}}
    return {**one, "spec": limits if where == "pod" else {where: [{"name": "server", **limits}]}}


@pytest.mark.parametrize("where", ["containers", "pod"])
def test_who_is_killed_at_its_own_memory_limit_crashed(where: str) -> None:
    (crash,) = workloads.crashes([limited(pod(containerStatuses=[container(restarts=1, lastState=OOM)]), where)])
    assert "server.resources.limits.memory" in crash.message


@pytest.mark.parametrize(("where", "final"), [("containers", True), ("nowhere", False)])
def test_out_of_its_own_memory_three_times_is_final_and_out_of_its_nodes_is_not(where: str, final: bool) -> None:
    fault = workloads.observe(
        deployment(1), [limited(pod(containerStatuses=[container(restarts=2, lastState=OOM)]), where)]
    ).fault
    assert fault is not None and (fault.reason, fault.final) == (Reason.OUT_OF_MEMORY, final)


def test_a_server_that_is_down_again_ended_twice() -> None:
    first, second = ended(code=139), ended(code=139, at="2026-01-01T00:01:00Z")
    found = workloads.crashes([pod(containerStatuses=[container(restarts=1, lastState=first, state=second)])])
    assert [crash.at for crash in found] == [NOW, NOW + timedelta(minutes=1)]


def test_an_evicted_or_deleted_pod_did_not_crash() -> None:
    statuses = [container(lastState=ended(code=139))]
    leaving = {"type": "DisruptionTarget", "status": "True"}
    pods = [
        pod(gone=True, containerStatuses=statuses),
        pod(phase="Failed", containerStatuses=statuses),
        pod(conditions=[leaving], containerStatuses=statuses),
    ]
    assert workloads.crashes(pods) == ()


def line(serial: int, revision: str = "r1", **notes: str) -> Object:
    owner = {"metadata": {"namespace": "n", "name": "digits", "uid": "u"}}
    body = ledger.render(owner, OpenEntry(serial, revision, "pvc://s/a", adopt=False), {"spec": {"serial": serial}})
    body["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    body["metadata"]["annotations"] = notes
    return body


def test_the_ledger_reads_what_it_wrote() -> None:
    entered = ledger.notes(MarkEntered("x"), NOW)
    left = ledger.notes(MarkLeft("x", Reason.ANALYSIS_FAILED, "success rate 0.5"), NOW)
    written = {key: value for key, value in {**entered, **left}.items() if value is not None}
    (entry,) = ledger.read([line(3, **written)])
    assert (entry.name, entry.serial, entry.revision, entry.created) == ("digits-r1-3", 3, "r1", NOW)
    assert (entry.entered, entry.left, entry.reason) == (NOW, NOW, Reason.ANALYSIS_FAILED)
    assert entry.message == "success rate 0.5"


def test_a_word_that_is_no_reason_is_no_reason() -> None:
    (entry,) = ledger.read([line(1, **{"fettle.dev/left": "2026-01-01T00:00:00Z", "fettle.dev/reason": "Whatever"})])
    assert entry.left == NOW and entry.reason is None


def test_the_template_is_that_of_the_newest_line() -> None:
    lines = [line(1), line(3), line(2, "other")]
    assert ledger.template_of(lines, "r1") == {"spec": {"serial": 3}}
    assert ledger.template_of(lines, "unknown") is None


def test_what_events_say_of_a_pod_that_does_not_start_is_its_fault() -> None:
    stuck = pod(phase="Pending", containerStatuses=[container(state={"waiting": {"reason": "ContainerCreating"}})])
    stuck["metadata"]["uid"] = "u"
    told = {"u": PodFault(Reason.STORE_NOT_SHARED, "Multi-Attach error")}
    assert workloads.observe(deployment(1), [stuck], told).fault == told["u"]
    assert workloads.observe(deployment(1), [stuck]).fault is None


def test_a_pod_is_asked_for_its_events_once_it_has_a_node_and_does_not_move() -> None:
    def waits(phase: str, node: str | None, age: float, patience: float = 15) -> float | None:
        created = (NOW - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")
        one = {"metadata": {"creationTimestamp": created}, "spec": {"nodeName": node}, "status": {"phase": phase}}
        return quiet_in(one, NOW, patience)

    assert [waits("Running", "a", 99), waits("Pending", None, 99)] == [None, None]
    assert [waits("Pending", "a", 5), waits("Pending", "a", 99)] == [15, 0]
    assert waits("Pending", "a", 5, patience=60) == 55
    assert waits("Pending", "a", -3600) == 20, "the clock was set back"


def test_a_deployment_that_lost_its_labels_is_known_by_its_selector() -> None:
    owner = {"metadata": {"namespace": "n", "name": "digits", "uid": "u"}}
    made = serving.deployment(owner, "r1", "pvc://s/a", {}, 3)
    made["metadata"]["labels"] = {"fettle.dev/revision": "another"}
    assert workloads.revision_of(made) == "r1"


SIGNATURE = Signature(inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),), outputs=())


def fetched(message: str, *, code: int = 0) -> Object:
    """A pod whose init container ended so."""
    return pod(initContainerStatuses=[container("fetch", state=ended(message, code=code, reason="Completed"))])


def test_a_revisions_inputs_and_outputs_are_known_from_any_pod_that_told_them() -> None:
    named = fetched(SIGNATURE.canonical().decode())
    assert workloads.signature_of([pod(), fetched(""), named]) == SIGNATURE


@pytest.mark.parametrize(
    "pods",
    [
        [],
        [pod()],
        [fetched("")],
        [fetched("null")],
        [fetched(SIGNATURE.canonical().decode()[:40])],
        [fetched("ArtifactTampered: blob differs", code=1)],
        [pod(initContainerStatuses=[container("proxy", state=ended(SIGNATURE.canonical().decode(), code=0))])],
    ],
    ids=["no pods", "still fetching", "a server of before", "nothing", "cut off", "it failed", "another container"],
)
def test_what_no_pod_told_is_unknown(pods: list[Object]) -> None:
    assert workloads.signature_of(pods) is None
