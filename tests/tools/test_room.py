"""Which pods wait in vain, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
from tools.demo.room import in_vain, patience, refusal, requests

CPU = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate"


def a_pod(name: str, cpu: str, *, node: str = "node0", namespace: str = "demo", **spec: Any) -> dict[str, Any]:
    containers = [{"name": "main", "resources": {"requests": {"cpu": cpu}}}]
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": name},
        "spec": {"nodeName": node, "restartPolicy": "Always", "containers": containers, **spec},
        "status": {"phase": "Running"},
    }


def waiting(cpu: str = "1", why: str = CPU) -> dict[str, Any]:
    pod = a_pod("measure", cpu, node="", namespace="tests", restartPolicy="Never")
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
    return {**pod, "status": {"phase": "Pending", "conditions": [condition]}}


def nodes(*cpus: str) -> list[dict[str, Any]]:
    return [
        {"metadata": {"name": f"node{index}"}, "status": {"allocatable": {"cpu": cpu, "memory": "8Gi"}}}
        for index, cpu in enumerate(cpus)
    ]


SERVING = [a_pod(f"digits-{index}", "400m") for index in range(3)]


def test_a_pod_that_what_stays_leaves_no_room_for_is_told_with_the_schedulers_words_and_who_holds_it() -> None:
    assert in_vain(waiting(), nodes("2"), SERVING, ()) == (
        f"pod tests/measure cannot be scheduled: {CPU}; node0 has 2 of cpu, 1 is requested, 1.200 is used by other pods: "
        "demo/digits-2 0.400, demo/digits-1 0.400, demo/digits-0 0.400"
    )


@pytest.mark.parametrize(
    ("what", "others"),
    [
        ("a Job's pod ends", [a_pod("job", "1500m", restartPolicy="Never")]),
        ("a pod that was deleted goes", [{**SERVING[0], "metadata": {**SERVING[0]["metadata"], "deletionTimestamp": "now"}}, *SERVING[1:]]),
        ("a pod that ended holds nothing", [{**a_pod("done", "2"), "status": {"phase": "Failed"}}]),
        ("another node is free", [{**pod, "spec": {**pod["spec"], "nodeName": "node9"}} for pod in SERVING]),
        ("other tests go with their namespace", [a_pod("other", "1500m", namespace="passing")]),
    ],
)  # fmt: skip
def test_a_pod_that_only_has_to_wait_is_left_waiting(what: str, others: list[dict[str, Any]]) -> None:
    assert in_vain(waiting(), nodes("2"), others, ("passing",)) == "", what


def test_one_node_with_room_is_enough() -> None:
    assert in_vain(waiting(), nodes("2", "2"), SERVING, ()) == ""


def test_a_pod_that_is_larger_than_every_node_waits_in_vain() -> None:
    told = in_vain(waiting("3"), nodes("2"), [], ())
    assert told.endswith("node0 has 2 of cpu, 3 is requested, 0 is used by other pods: none")


def test_what_no_end_of_a_job_would_mend_is_told_as_it_is() -> None:
    why = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector"
    assert in_vain(waiting(why=why), nodes("2"), [], ()) == f"pod tests/measure cannot be scheduled: {why}"


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (None, ""),
        ([{"type": "PodScheduled", "status": "True"}], ""),
        ([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}], ""),
        (waiting()["status"]["conditions"], CPU),
    ],
)
def test_a_refusal_is_what_the_scheduler_said(conditions: list[dict[str, Any]] | None, said: str) -> None:
    assert refusal({"status": {"conditions": conditions}}) == said


def test_a_pod_asks_for_its_containers_together_or_for_its_largest_init_container() -> None:
    containers = [
        {"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}},
        {"resources": {"requests": {"cpu": "0.2"}}},
        {},
    ]
    first = [{"resources": {"requests": {"cpu": "250m"}}}, {"resources": {"requests": {"cpu": "1", "memory": "1Mi"}}}]
    found = requests({"spec": {"containers": containers, "initContainers": first}})
    assert found == {"cpu": 1, "memory": 2**30}


def test_a_claim_that_is_being_bound_is_given_more_time_than_room_that_is_not_there() -> None:
    unbound = waiting(why="0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found")
    assert patience(waiting()) < patience(unbound)
