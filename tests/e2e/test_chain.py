"""OptimizedModel -> Jobs -> artifact -> ModelDeployment -> canary -> rollback, with real pods and live traffic.

One story in order: each test goes on where the one before ended, as a user's day would.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from tools.demo import install, watch
from tools.demo.kube import Kube, condition
from tools.demo.scenes import post, require_same_answers
from tools.demo.traffic import WAYS, Load, bodies, foreign_failures, over_each_protocol

pytestmark = pytest.mark.timeout(900)
MD = "digits"


def manifest(name: str, **spec: object) -> str:
    """An example's manifest, with fields of its spec replaced."""
    document = yaml.safe_load((install.DIGITS / name).read_text())
    document["spec"] |= spec
    return yaml.safe_dump(document)


@pytest.fixture(scope="module")
def others(kube: Kube) -> None:
    """The models of later revisions: optimized while the first one is looked at and served."""
    jobs = {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}}}
    int8 = [{"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}]
    kube.apply(manifest("optimizedmodel-better.yaml", recipes=int8, jobs=jobs))
    kube.apply(manifest("optimizedmodel-failing.yaml", jobs=jobs))
    kube.apply(manifest("optimizedmodel-wrong.yaml", jobs=jobs))


@pytest.fixture(scope="module")
def load(kube: Kube) -> Iterator[Load]:
    """Constant traffic from the first test that asks for it to the end of the story."""
    requests, _ = bodies(install.DIGITS / "evaluation.npz", 20)
    load = Load(kube, MD, "load")
    load.start(requests, rate=25, clients=6, seconds=900)
    yield load


def settled_on(kube: Kube, revision: str) -> bool:
    status = (kube.get("mdep", MD) or {}).get("status") or {}
    return (status.get("stable") or {}).get("revision") == revision and not status.get("canary")


def test_a_model_is_optimized_in_jobs_and_its_best_candidate_is_published(kube: Kube) -> None:
    recipes = [
        {"name": "fp32", "steps": [{"optimizeGraph": {}}]},
        {"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]},
    ]
    kube.apply(manifest("optimizedmodel.yaml", recipes=recipes))
    found = watch.optimized(kube, "digits", 600, print)
    status = found["status"]
    selected = [row for row in status["candidates"] if row["state"] == "Selected"]
    assert len(selected) == 1
    assert selected[0]["speedup"]["low"] > 1
    assert selected[0]["exact"] or selected[0]["accuracyDrop"]["high"] <= 0.02
    assert status["artifacts"][0]["candidate"] == selected[0]["name"]
    assert all(row["state"] != "Pending" for row in status["candidates"])
    assert all(row.get("reason") for row in status["candidates"] if row["state"] != "Selected")
    assert status["report"]["uri"].startswith("pvc://")
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Ready": "True", "SourceResolved": "True", "Converted": "True", "Measured": "True",
        "Reconciling": "False", "Stalled": "False",
    }  # fmt: skip


@pytest.mark.usefixtures("others")
def test_nothing_runs_again_when_nothing_changed(kube: Kube, operator: Kube) -> None:
    jobs = ("get", "jobs", "-l", "fettle.dev/optimizedmodel=digits", "-o", "name")
    before = kube.kubectl(*jobs)
    assert before
    version = (kube.get("om", "digits") or {})["metadata"]["resourceVersion"]
    operator.kubectl("delete", "pods", "-l", "app.kubernetes.io/name=fettle", "--wait=true")
    operator.kubectl("rollout", "status", "deployment/fettle", "--timeout=120s")
    time.sleep(15)
    assert kube.kubectl(*jobs) == before
    assert (kube.get("om", "digits") or {})["metadata"]["resourceVersion"] == version


def test_the_winner_is_served_and_predicts_what_the_labels_say(kube: Kube) -> None:
    kube.apply(manifest("modeldeployment.yaml"))
    watch.serving(kube, MD, 300, print)
    requests, labels = bodies(install.DIGITS / "evaluation.npz", 12, seed=3)
    answers = [post(kube, body)["outputs"][0]["data"] for body in requests]
    right = sum(answer.index(max(answer)) == label for answer, label in zip(answers, labels, strict=True))
    assert right >= 10


def test_bytes_and_grpc_reach_a_pod_through_its_service_and_are_answered_as_json_is(kube: Kube) -> None:
    requests, labels = bodies(install.DIGITS / "evaluation.npz", 12, seed=3)
    told = over_each_protocol(kube, MD, requests)
    assert tuple(row["protocol"] for row in told) == WAYS
    require_same_answers(told)
    through_the_proxy = [post(kube, body)["outputs"][0]["data"] for body in requests]
    np.testing.assert_allclose(told[0]["answers"], through_the_proxy, rtol=1e-4, atol=1e-5)
    text, *others = (row["requestBytes"] for row in told)
    assert max(others) < text
    right = sum(int(np.argmax(answer)) == label for answer, label in zip(told[-1]["answers"], labels, strict=True))
    assert right >= 10


@pytest.mark.usefixtures("others")
def test_a_better_model_is_rolled_out_step_by_step_under_load(kube: Kube, load: Load) -> None:
    watch.optimized(kube, "digits-better", 600, print)
    watch.optimized(kube, "digits-failing", 600, print)
    watch.optimized(kube, "digits-wrong", 600, print)
    kube.patch("mdep", MD, {"spec": {"model": {"ref": {"name": "digits-better"}}}})
    rollout = watch.rolled_out(kube, MD, 400, print)
    assert rollout.outcome == "Promoted"
    revisions = (kube.get("mdep", MD) or {})["status"]["revisions"]
    assert [row.get("reason") for row in revisions] == ["Superseded", None]


def test_a_canary_that_is_fast_never_fails_and_is_wrong_is_rolled_back(kube: Kube, load: Load) -> None:
    before = load.totals()
    kube.patch("mdep", MD, {"spec": {"model": {"ref": {"name": "digits-wrong"}}}})
    rollout = watch.rolled_out(kube, MD, 300, print)
    assert rollout.outcome == "RolledBack"
    assert "agreement 0." in rollout.reason and "items compared" in rollout.reason, rollout.reason
    totals = load.totals()
    assert totals["answered"][rollout.revision] > 0
    assert foreign_failures(totals, set()) == foreign_failures(before, set()), totals


def test_the_operator_killed_in_the_middle_of_a_bad_canary_changes_nothing(
    kube: Kube, operator: Kube, load: Load
) -> None:
    stable = (kube.get("mdep", MD) or {})["status"]["stable"]["revision"]
    kube.patch("mdep", MD, {"spec": {"model": {"ref": {"name": "digits-failing"}}}})
    for _ in watch.polls(120):
        if (((kube.get("mdep", MD) or {}).get("status") or {}).get("canary") or {}).get("actualWeight"):
            break
    operator.kubectl("delete", "pods", "-l", "app.kubernetes.io/name=fettle", "--wait=false")
    rollout = watch.rolled_out(kube, MD, 300, print)
    assert rollout.outcome == "RolledBack"
    assert settled_on(kube, stable)
    assert condition(kube.get("mdep", MD), "Degraded")["reason"] == "AnalysisFailed"
    for _ in watch.polls(90):  # the pod that had made room for the canary comes back; that is no outage
        found = kube.get("mdep", MD) or {}
        assert condition(found, "Ready")["status"] == "True"
        if found["status"]["stable"]["ready"] == 3:
            break
    assert found["status"]["stable"]["ready"] == 3
    totals = load.stop()
    assert foreign_failures(totals, {rollout.revision}) == 0, totals
    assert totals["serverErrors"].get(rollout.revision, 0) > 0
    assert totals["sent"] > 500


def test_the_failed_revision_is_not_tried_again_and_the_way_back_restarts_no_pod(kube: Kube) -> None:
    stable = (kube.get("mdep", MD) or {})["status"]["stable"]["revision"]

    def pods() -> set[str]:
        return set(kube.kubectl("get", "pods", "-l", f"fettle.dev/modeldeployment={MD}", "-o", "name").split())

    for _ in watch.polls(90):  # until the failed canary has drained
        before = pods()
        if len(before) == 3 and all(f"-{stable}-" in pod for pod in before):
            break
    kube.patch("mdep", MD, {"spec": {"model": {"ref": {"name": "digits-better"}}}})
    watch.serving(kube, MD, 60, print)
    assert pods() == before
    assert condition(kube.get("mdep", MD), "Degraded")["status"] == "False"


def test_live_inputs_become_items_of_the_next_optimization(kube: Kube, tmp_path: Path) -> None:
    requests, _ = bodies(install.DIGITS / "evaluation.npz", 24, seed=5)
    for body in requests:
        post(kube, body)
    told = install.fettle(kube, "sample", MD, str(tmp_path / "live.npz"), "--items", "8")
    assert "live.npz: 8 items" in told
    with np.load(tmp_path / "live.npz") as live, np.load(install.DIGITS / "evaluation.npz") as evaluation:
        assert live.files == ["image"]
        items, known = (arrays["image"].reshape(len(arrays["image"]), -1) for arrays in (live, evaluation))
    assert items.dtype == known.dtype
    nearest = np.abs(items[:, None] - known[None]).max(axis=2).min(axis=1)
    assert nearest.max() <= 1e-4, "requests hold four decimals of each value"


def test_deleting_both_objects_leaves_no_pod_and_every_artifact(kube: Kube) -> None:
    artifact = (kube.get("om", "digits") or {})["status"]["artifacts"][0]["sha256"]
    kube.kubectl("delete", "mdep,om", "--all", "--wait=true")
    for _ in watch.polls(90):
        left = kube.kubectl("get", "pods,jobs,deployments", "-l", "fettle.dev/managed=true", "-o", "name")
        if not left:
            break
    assert left == ""
    kube.apply(manifest("modeldeployment.yaml", replicas=1, model={
        "uri": f"pvc://fettle-store/artifacts/{artifact}", "sha256": artifact, "runtime": "onnxruntime",
    }))  # fmt: skip
    watch.serving(kube, MD, 200, print)


def test_pruning_the_store_keeps_what_is_served(kube: Kube) -> None:
    told = install.fettle(kube, "prune", "--older-than", "0", "--image", install.images(kube.target)["server"])
    assert " removed; the manifests and figures of " in told, "the artifacts of the objects that are gone"
    again = install.fettle(kube, "prune", "--older-than", "0", "--image", install.images(kube.target)["server"])
    assert again.startswith("nothing to remove; "), again
    before = (kube.get("mdep", MD) or {})["status"]["stable"]["revision"]
    kube.kubectl("delete", "pods", "-l", f"fettle.dev/modeldeployment={MD}", "--wait=true")
    watch.serving(kube, MD, 200, print)
    assert settled_on(kube, before), "a fresh pod fetched it from the store"
