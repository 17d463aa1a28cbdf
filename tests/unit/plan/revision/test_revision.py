"""What makes a new revision, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from fettle.api.conditions import Condition, ConditionStatus
from fettle.api.modeldeployment import ModelDeploymentSpec
from fettle.api.optimizedmodel_status import OptimizedModelStatus
from fettle.api.reasons import Reason
from fettle.plan.rollout.revision import ModelRevision, NotReady, wanted_revision

SHA = "ab" * 32
SPEC: dict[str, Any] = {
    "model": {"ref": {"name": "digits", "target": "cpu"}},
    "server": {"threads": 2, "env": [{"name": "A", "value": "1"}]},
    "template": {"labels": {"team": "vision"}},
}
READY = Condition(type="Ready", status=ConditionStatus.TRUE, reason="Published")


def published(**changes: Any) -> OptimizedModelStatus:
    row = {
        "target": "cpu",
        "candidate": "int8",
        "runtime": "openvino",
        "uri": f"pvc://fettle-store/artifacts/{SHA}",
        "sha256": SHA,
        "bytes": 10,
        **changes,
    }
    return OptimizedModelStatus.model_validate({"artifacts": [row]})


def revision(spec: dict[str, Any], model: OptimizedModelStatus | None = None) -> str:
    found = wanted_revision(ModelDeploymentSpec.model_validate(spec), model or published())
    assert isinstance(found, ModelRevision)
    return found.revision


def test_the_hash_is_stable_across_versions() -> None:
    assert revision(SPEC) == "fb43981f90"


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 7},
        {"paused": True},
        {"rollout": {"steps": [{"weight": 100}], "analysis": {"minRequests": 7}}},
        {"server": {**SPEC["server"], "resources": {}}},
        {"template": {**SPEC["template"], "nodeSelector": {}}},
    ],
)
def test_it_stays_when_pods_stay_the_same(change: dict[str, Any]) -> None:
    assert revision({**SPEC, **change}) == revision(SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"server": {"threads": 1}},
        {"server": {**SPEC["server"], "image": "other"}},
        {"server": {**SPEC["server"], "env": [{"name": "A", "value": "2"}]}},
        {"server": {**SPEC["server"], "resources": {"limits": {"cpu": "1"}}}},
        {"template": {"labels": {"team": "speech"}}},
    ],
)
def test_it_changes_with_what_a_pod_runs(change: dict[str, Any]) -> None:
    assert revision({**SPEC, **change}) != revision(SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "cd" * 32, "uri": "pvc://fettle-store/artifacts/" + "cd" * 32},
        {"placement": {"nodeSelector": {"cpu": "new"}}},
    ],
)
def test_it_changes_with_the_artifact_and_its_place(change: dict[str, Any]) -> None:
    assert revision(SPEC, published(**change)) != revision(SPEC)


def test_two_optimized_models_that_publish_one_artifact_are_one_revision() -> None:
    other = {**SPEC, "model": {"ref": {"name": "digits-again", "target": "cpu"}}}
    assert revision(other) == revision(SPEC)


def test_figures_of_the_artifact_are_no_part_of_it() -> None:
    assert revision(SPEC, published(speedup=2.0, candidate="int8-again")) == revision(SPEC)


def test_a_fixed_artifact_needs_no_optimized_model() -> None:
    fixed = {"uri": f"pvc://fettle-store/artifacts/{SHA}", "sha256": SHA, "runtime": "openvino"}
    found = wanted_revision(ModelDeploymentSpec.model_validate({**SPEC, "model": fixed}), None)
    assert isinstance(found, ModelRevision)
    assert found.revision == revision(SPEC)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (None, "OptimizedModel digits not found"),
        (OptimizedModelStatus(), "published nothing for target cpu yet"),
        (
            OptimizedModelStatus.model_validate(
                {"conditions": [{"type": "Ready", "status": "False", "reason": "Optimizing", "message": "1 of 4"}]}
            ),
            "(Optimizing: 1 of 4)",
        ),
        (published(target="gpu"), "published nothing for target cpu"),
        (
            published(target="gpu").model_copy(update={"conditions": (READY,)}),
            "published nothing for target cpu, only for gpu: correct spec.model.ref.target",
        ),
    ],
)
def test_what_is_not_published_is_not_ready(model: OptimizedModelStatus | None, says: str) -> None:
    found = wanted_revision(ModelDeploymentSpec.model_validate(SPEC), model)
    assert isinstance(found, NotReady)
    assert found.reason is Reason.MODEL_NOT_READY
    assert says in found.message


def test_the_secret_that_opens_the_store_is_part_of_what_a_pod_runs() -> None:
    model = published(uri=f"s3://artifacts/{SHA}", secretName="minio")
    found = wanted_revision(ModelDeploymentSpec.model_validate(SPEC), model)
    assert isinstance(found, ModelRevision) and found.artifact.secret_name == "minio"
    assert found.revision != revision(SPEC, published(uri=f"s3://artifacts/{SHA}", secretName="renamed"))
    fixed = {"uri": f"s3://b/artifacts/{SHA}", "sha256": SHA, "runtime": "openvino", "secretName": "minio"}
    found = wanted_revision(ModelDeploymentSpec.model_validate({"model": fixed}), None)
    assert isinstance(found, ModelRevision) and found.artifact.secret_name == "minio"
