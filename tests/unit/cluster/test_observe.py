"""What a Job's state says about its task: one table of situations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from fettle.api import images
from fettle.api.images import Image
from fettle.api.reasons import Reason
from fettle.api.report import Termination
from fettle.cluster.kinds import Object
from fettle.cluster.observe import explain, observe
from fettle.cluster.waiting import unscheduled
from fettle.plan.run.state import TaskPhase
from fettle.settings import Settings

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PATIENCE = 15
ROOT = Path(__file__).parents[3]


def at(seconds_ago: float) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def job(condition: str | None = None, reason: str = "", *, age: float = 60) -> Object:
    conditions = [{"type": condition, "status": "True", "reason": reason, "lastTransitionTime": at(5)}]
    return {
        "metadata": {
            "name": "j",
            "uid": "job-uid",
            "creationTimestamp": at(age),
            "annotations": {"fettle.dev/task": "hash"},
            "labels": {"fettle.dev/attempt": "1"},
        },
        "status": {"conditions": conditions if condition else []},
    }


def pod(phase: str = "Running", *, state: Object | None = None, age: float = 60, **status: Any) -> Object:
    containers = [{"name": "optimizer", "state": state}] if state is not None else []
    limits = {"limits": {"memory": "1Gi"}}
    return {
        "metadata": {"name": "p", "uid": "pod-uid", "creationTimestamp": at(age)},
        "spec": {"containers": [{"name": "optimizer", "resources": limits}]},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }


def ended(code: int, message: str = "", reason: str = "Error") -> Object:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def said(**fields: Any) -> str:
    return Termination(**fields).model_dump_json(by_alias=True, exclude_none=True)


def waiting(word: str) -> Object:
    return {"waiting": {"reason": word, "message": f"{word} it is"}}


def no_node(seconds: float) -> list[Object]:
    return [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available",
            "lastTransitionTime": at(seconds),
        }
    ]


DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}]
STORE_FULL = said(outcome="Failed", reason=Reason.STORE_FULL, message="no space", retryable=True)
FAILED = job("Failed", "BackoffLimitExceeded")
DELETED = pod("Failed", state=ended(137))
DELETED["metadata"]["deletionTimestamp"] = at(1)

FAILURES = [
    ("the task said why", FAILED, pod("Failed", state=ended(1, STORE_FULL)), Reason.STORE_FULL, "no space", True),
    ("the deadline", job("Failed", "DeadlineExceeded"), None, Reason.DEADLINE_EXCEEDED, "deadline", False),
    ("out of memory", FAILED, pod("Failed", state=ended(137, "", "OOMKilled")), Reason.OUT_OF_MEMORY, "1Gi", False),
    ("drained", FAILED, pod("Failed", state=ended(137), conditions=DISRUPTED), Reason.NODE_LOST, "drained", True),
    ("remains", FAILED, pod("Failed", state=ended(137, "", "ContainerStatusUnknown")), Reason.NODE_LOST, "node", True),
    ("runtime restarted", FAILED, pod("Failed", state=ended(255, "", "Unknown")), Reason.NODE_LOST, "runtime", True),
    ("evicted", FAILED, pod("Failed", reason="Evicted", message="low on disk"), Reason.NODE_LOST, "low on disk", True),
    ("deleted by hand", FAILED, DELETED, Reason.NODE_LOST, "deleted", True),
    ("pod gone", FAILED, None, Reason.NODE_LOST, "gone", True),
    ("crashed", FAILED, pod("Failed", state=ended(139, "Segmentation fault")), Reason.JOB_FAILED, "139: Segm", False),
    ("said nothing", FAILED, pod("Failed", state=ended(1)), Reason.JOB_FAILED, "exit code 1: no message", False),
]


@pytest.mark.parametrize(("name", "one", "its_pod", "reason", "message", "retryable"), FAILURES)
def test_why_a_job_failed(
    name: str, one: Object, its_pod: Object | None, reason: Reason, message: str, retryable: bool
) -> None:
    state = observe(one, [its_pod] if its_pod else [], NOW, PATIENCE).state
    assert (state.phase, state.reason, state.retryable) == (TaskPhase.FAILED, reason, retryable), name
    assert message in state.message
    assert (state.task_hash, state.attempt, state.finished_at) == ("hash", 1, NOW - timedelta(seconds=5))


def test_a_job_did_not_end_in_the_future_however_far_the_clusters_clock_is_ahead() -> None:
    behind = NOW - timedelta(hours=1)
    assert observe(FAILED, [], behind, PATIENCE).state.finished_at == behind


WAITS = [
    ("runs", pod(), None, None),
    ("just created", pod("Pending", age=1), None, None),
    ("no node, not for long yet", pod("Pending", conditions=no_node(3)), None, None),
    ("no node", pod("Pending", conditions=no_node(30)), Reason.UNSCHEDULABLE, None),
    ("image", pod("Pending", state=waiting("ImagePullBackOff")), Reason.IMAGE_PULL_FAILED, None),
    ("image, not for long yet", pod("Pending", state=waiting("ErrImagePull"), age=3), None, None),
    ("configuration, not for long yet", pod("Pending", state=waiting("CreateContainerConfigError"), age=3), None, None),
    (
        "image, its node was found just now",
        pod("Pending", state=waiting("ErrImagePull"), conditions=[{**no_node(3)[0], "status": "True"}]),
        None,
        None,
    ),
    ("container's configuration", pod("Pending", state=waiting("CreateContainerConfigError")), Reason.JOB_FAILED, None),
    ("creating, for long", pod("Pending", state=waiting("ContainerCreating")), None, "pod-uid"),
]


@pytest.mark.parametrize(("name", "its_pod", "reason", "events_of"), WAITS)
def test_what_a_job_waits_for(name: str, its_pod: Object, reason: Reason | None, events_of: str | None) -> None:
    seen = observe(job(), [its_pod], NOW, PATIENCE)
    assert seen.state.phase == TaskPhase.RUNNING
    assert (seen.state.reason, seen.events_of) == (reason, events_of), name


def test_a_pod_that_just_waits_is_looked_at_again_when_patience_ends() -> None:
    seen = observe(job(), [pod("Pending", conditions=no_node(3))], NOW, PATIENCE)
    assert seen.look_seconds == pytest.approx(12.1)


@pytest.mark.parametrize("state", [waiting("ErrImagePull"), waiting("ContainerCreating"), None])
def test_whatever_a_pod_waits_for_is_not_told_before_patience_ends(state: Object | None) -> None:
    young, patient = pod("Pending", state=state, age=59), 60
    seen = observe(job(), [young], NOW, patient)
    assert (seen.state.reason, seen.events_of) == (None, None)
    assert seen.look_seconds == pytest.approx(1.1)


def test_a_clock_that_was_set_back_makes_no_look_late() -> None:
    seen = observe(job(), [pod("Pending", age=-7200)], NOW, PATIENCE)
    assert seen.look_seconds is not None and seen.look_seconds < 60


def test_a_job_whose_pod_does_not_come_is_asked_for_its_events() -> None:
    assert observe(job(age=1), [], NOW, PATIENCE).events_of is None
    assert observe(job(age=60), [], NOW, PATIENCE).events_of == "job-uid"


def test_a_complete_job_names_the_pod_whose_log_has_the_report() -> None:
    message = said(outcome="Succeeded", result_sha256="f" * 64)
    seen = observe(job("Complete"), [pod("Succeeded", state=ended(0, message, "Completed"))], NOW, PATIENCE)
    assert seen.state.phase == TaskPhase.SUCCEEDED
    assert (seen.log_of, seen.result_sha256) == ("p", "f" * 64)


@pytest.mark.parametrize("pods", [[], [pod("Succeeded", state=ended(0, "not json"))]])
def test_a_complete_job_without_a_word_has_lost_its_answer(pods: list[Object]) -> None:
    seen = observe(job("Complete"), pods, NOW, PATIENCE)
    assert (seen.state.phase, seen.state.report, seen.log_of) == (TaskPhase.SUCCEEDED, None, None)


def numbered(rank: int, one: Object) -> Object:
    """A pod of several that train together."""
    annotations = {"batch.kubernetes.io/job-completion-index": str(rank)}
    return {**one, "metadata": {**one["metadata"], "name": f"p-{rank}", "annotations": annotations}}


LOST = said(outcome="Failed", reason=Reason.NODE_LOST, message="another process is gone", retryable=True)
TOGETHER = [
    ("the worker was evicted", pod("Failed", state=ended(1, LOST)), pod("Failed", reason="Evicted"), Reason.NODE_LOST, True),
    ("the worker was too large", pod("Failed", state=ended(1, LOST)), pod("Failed", state=ended(137, "", "OOMKilled")), Reason.OUT_OF_MEMORY, False),
    ("the leader was too large", pod("Failed", state=ended(137, "", "OOMKilled")), pod("Failed", state=ended(1, LOST)), Reason.OUT_OF_MEMORY, False),
    ("the worker lost the leader, which had ended", pod("Succeeded", state=ended(0)), pod("Failed", state=ended(1, LOST)), Reason.NODE_LOST, True),
    ("the leader still runs", pod(), pod("Failed", state=ended(1, STORE_FULL)), Reason.STORE_FULL, True),
    ("the leader found the store full", pod("Failed", state=ended(1, STORE_FULL)), pod("Failed", state=ended(1, LOST)), Reason.STORE_FULL, True),
    ("the leader is ended with the Job", DELETED, pod("Failed", state=ended(1, STORE_FULL)), Reason.STORE_FULL, True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "leader", "worker", "reason", "retryable"), TOGETHER)
def test_of_pods_that_train_together_the_one_that_failed_says_why(
    name: str, leader: Object, worker: Object, reason: Reason, retryable: bool
) -> None:
    for pods in ([numbered(0, leader), numbered(1, worker)], [numbered(1, worker), numbered(0, leader)]):
        state = observe(FAILED, pods, NOW, PATIENCE).state
        assert (state.reason, state.retryable) == (reason, retryable), name


def test_what_took_a_pod_away_is_told_and_not_that_the_others_lost_it() -> None:
    evicted = numbered(1, pod("Failed", reason="Evicted", message="low on disk"))
    state = observe(FAILED, [numbered(0, pod("Failed", state=ended(1, LOST))), evicted], NOW, PATIENCE).state
    assert state.message == "Evicted: low on disk"


def test_of_pods_that_train_together_the_first_has_the_report_and_any_that_waits_is_told() -> None:
    message = said(outcome="Succeeded", result_sha256="f" * 64)
    done = pod("Succeeded", state=ended(0, message, "Completed"))
    seen = observe(job("Complete"), [numbered(1, done), numbered(0, done)], NOW, PATIENCE)
    assert (seen.log_of, seen.result_sha256) == ("p-0", "f" * 64)
    waits = numbered(1, pod("Pending", conditions=no_node(30)))
    assert observe(job(), [numbered(0, pod()), waits], NOW, PATIENCE).state.reason == Reason.UNSCHEDULABLE


def test_a_job_with_fewer_pods_than_it_should_have_is_asked_for_its_events() -> None:
    two = {**job(), "spec": {"completions": 2}}
    assert observe(two, [numbered(0, pod())], NOW, PATIENCE).events_of == "job-uid"
    assert observe(two, [numbered(0, pod()), numbered(1, pod())], NOW, PATIENCE).events_of is None


def event(reason: str, message: str, seconds_ago: float = 1, kind: str = "Warning") -> Object:
    return {"type": kind, "reason": reason, "message": message, "lastTimestamp": at(seconds_ago), "metadata": {}}


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([], None),
        ([event("Pulling", "image", kind="Normal")], None),
        ([event("FailedCreate", 'pods "x" is forbidden: exceeded quota: q')], Reason.QUOTA_EXCEEDED),
        ([event("FailedCreate", "violates PodSecurity")], Reason.FORBIDDEN),
        ([event("FailedCreate", 'pod rejected: RuntimeClass "nvidia" not found')], Reason.UNSCHEDULABLE),
        ([event("FailedAttachVolume", "Multi-Attach error for volume")], Reason.STORE_NOT_SHARED),
        ([event("FailedMount", "timed out")], Reason.STORE_UNREACHABLE),
        (
            [event("FailedMount", 'MountVolume.SetUp failed for volume "tls" : secret "digits-tls" not found')],
            Reason.INVALID_SPEC,
        ),
        ([event("FailedScheduling", "no node", 60), event("FailedMount", "timed out", 1)], Reason.STORE_UNREACHABLE),
        ([event("FailedMount", "timed out", 1), event("BackOff", "whatever", 0)], Reason.STORE_UNREACHABLE),
        ([event("FailedScheduling", "pod has unbound immediate PersistentVolumeClaims", 60)], None),  # it has its node
        ([event("FailedMount", "not yet", 9), event("Pulling", "image", kind="Normal")], None),  # its volumes are there
    ],
)
def test_events_explain_a_job_that_does_not_move(events: list[Object], reason: Reason | None) -> None:
    assert explain(observe(job(), [], NOW, PATIENCE).state, events).reason == reason


@pytest.mark.parametrize(
    ("message", "reason", "todo"),
    [
        ("0/3 nodes are available: 3 Insufficient cpu.", Reason.UNSCHEDULABLE, "nodeSelector"),
        (
            "0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity.",
            Reason.STORE_NOT_SHARED,
            "ReadWriteMany",
        ),
        ("0/2 nodes are available: 2 node(s) had volume node affinity conflict.", Reason.STORE_NOT_SHARED, "Many"),
        ('0/1 nodes are available: persistentvolumeclaim "store" not found.', Reason.STORE_NOT_FOUND, "create"),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
            Reason.STORE_UNREACHABLE,
            "kubectl describe pvc",
        ),
    ],
)
def test_the_schedulers_words_become_a_reason_and_what_to_do(message: str, reason: Reason, todo: str) -> None:
    found, told = unscheduled(message, {}, "spec.server.resources")
    assert (found, message in told, todo in told) == (reason, True, True), told
    assert len(unscheduled("x" * 9000, {}, "spec.server.resources")[1]) <= 512


@pytest.mark.parametrize(
    ("stage", "field"), [("measure", "spec.targets[].resources"), ("prepare", "spec.jobs.resources")]
)
def test_a_pod_too_large_for_every_node_says_what_it_requests_and_which_field_sets_that(stage: str, field: str) -> None:
    full = [{**no_node(30)[0], "message": "0/1 nodes are available: 1 Insufficient cpu."}]
    one = pod("Pending", conditions=full)
    one["metadata"]["labels"] = {"fettle.dev/stage": stage}
    one["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "2", "memory": "1Gi"}}
    said = observe(job(), [one], NOW, PATIENCE).state.message
    assert said.endswith(f"(each pod requests cpu 2, memory 1Gi: request less in {field}, or add a node)"), said


@pytest.mark.parametrize("image", list(Image))
def test_of_an_image_that_nobody_named_the_message_says_how_to_build_it_and_which_value_names_it(image: Image) -> None:
    one = pod("Pending", state=waiting("ErrImagePull"))
    one["status"]["containerStatuses"][0]["image"] = Settings().image(image)
    said = observe(job(), [one], NOW, PATIENCE).state.message
    _, name, _ = images.chart_value(image).split(".")
    values = yaml.safe_load((ROOT / "charts/fettle/values.yaml").read_text())
    assert f"docker/Dockerfile.{image}, push it, and set image.{name}.repository" in said
    assert values["image"][name]["repository"] == Settings().image(image).partition(":")[0]
    assert (ROOT / f"docker/Dockerfile.{image}").exists()


def test_of_an_image_that_somebody_named_the_message_says_to_check_the_name() -> None:
    one = pod("Pending", state=waiting("ErrImagePull"))
    one["status"]["containerStatuses"][0]["image"] = "registry.example.com:5000/fettle/optimizer:0.1.0"
    said = observe(job(), [one], NOW, PATIENCE).state.message
    assert "check the image's name, the registry, and imagePullSecrets" in said
