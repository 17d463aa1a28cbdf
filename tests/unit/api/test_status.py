"""What the status of an object holds, as `kubectl describe` shows it."""

from __future__ import annotations

import pytest
from tests.unit.plan.choose.figures import row

from fettle.api.executed import Executed
from fettle.api.modeldeployment_status import ModelDeploymentStatus
from fettle.api.optimizedmodel_status import ArtifactStatus, OptimizedModelStatus, Placement
from fettle.api.vocabulary import CandidateState, RuntimeName


def test_counts_of_zero_are_left_out_and_read_back() -> None:
    counts = Executed(int8=15, total=15)
    assert counts.to_json() == {"int8": 15, "total": 15}
    assert Executed.model_validate(counts.to_json()) == counts


@pytest.mark.parametrize(
    ("count", "word"), [(999, "0.999kB"), (83_312, "83.3kB"), (1_234_567, "1.23MB"), (2_480_000_000, "2,480MB")]
)
def test_kubectl_shows_sizes_in_units_of_a_thousand(count: int, word: str) -> None:
    artifact = ArtifactStatus(
        target="cpu", candidate="a", runtime=RuntimeName.OPENVINO, uri="pvc://s/a", sha256="a" * 64, bytes=count
    )
    summary = OptimizedModelStatus(artifacts=(artifact,)).summary
    assert summary is not None
    assert summary.size == word


def test_what_is_empty_is_left_out_of_a_status_and_read_back() -> None:
    artifact = ArtifactStatus(
        target="cpu", candidate="int8", runtime=RuntimeName.OPENVINO, uri="pvc://store/a", sha256="a" * 64, bytes=1
    )
    status = OptimizedModelStatus(
        candidates=(row("int8", state=CandidateState.REJECTED),),
        artifacts=(artifact, artifact.model_copy(update={"placement": Placement(node_selector={"zone": "a"})})),
    )
    document = status.to_json()
    assert "measurements" not in document["candidates"][0]
    assert "placement" not in document["artifacts"][0]
    assert document["artifacts"][1]["placement"] == {"nodeSelector": {"zone": "a"}}
    assert OptimizedModelStatus.model_validate(document) == status
    assert "commands" not in ModelDeploymentStatus().to_json()
