"""What the operator and a server say to each other: neither imports the other, so both ends are held together here."""

from __future__ import annotations

import pytest
from tests.unit.cluster.test_serving import EVERYTHING, OWNER, SETTINGS, revision

from fettle.api.signature import Signature, Tensor
from fettle.api.window import BUCKET_BASE, BUCKET_RATIO, written
from fettle.cluster import figures, serving, workloads
from fettle.server.fetch import told
from fettle.server.settings import ServerSettings
from fettle.server.windows import Outcome, Windows

PREFIX = "FETTLE_SERVER_"


@pytest.mark.parametrize("wanted", [revision(), EVERYTHING], ids=["the least", "everything"])
@pytest.mark.parametrize("container", ["initContainers", "containers"])
def test_a_server_knows_every_setting_that_its_pod_is_told(
    container: str, wanted: serving.ModelRevision, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = serving.pod_template(OWNER, wanted, SETTINGS)["spec"][container][0]["env"]
    told = {one["name"]: one["value"] for one in environment if one["name"].startswith(PREFIX)}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert {name.removeprefix(PREFIX).lower() for name in told} <= set(ServerSettings.model_fields)
    assert (ServerSettings().revision, ServerSettings().model) == (wanted.revision, OWNER["metadata"]["name"])


def test_the_operator_reads_every_figure_that_a_server_tells_of_a_second() -> None:
    now = [1000.0]
    counting = Windows(clock=lambda: now[0], ticks=lambda: now[0])
    for milliseconds in (1.0, 2.0, 500.0):
        counting.record(milliseconds, error=False)
    counting.record(9.0, error=True)
    for outcome in Outcome:
        counting.compare(outcome)
    now[0] += 1
    head, seconds = counting.since(0)
    answer = figures.parse(written(head, seconds))
    assert (answer.head.start, answer.head.kept, answer.head.now) == (1000, 1000, 1001)
    assert (answer.head.bucket_base, answer.head.bucket_ratio) == (BUCKET_BASE, BUCKET_RATIO)
    ((second,),) = answer.pieces()
    assert (second.second, second.requests, second.errors) == (1000, 4, 1)
    assert second.outcomes.to_json() == {outcome.value: 1 for outcome in Outcome}
    assert len(second.latencies()) == 3


def test_what_a_server_tells_of_its_artifact_is_what_the_next_revisions_server_compares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = Tensor(name='ü "$(HOME)" $$', dtype="FP32", shape=(-1, 4), batch_axis=0)
    signature = Signature(inputs=(odd, Tensor(name="n", dtype="INT64", shape=())), outputs=(odd,))
    ended = {"name": "fetch", "state": {"terminated": {"exitCode": 0, "message": told(signature)}}}
    read = workloads.signature_of([{"metadata": {}, "status": {"initContainerStatuses": [ended]}}])
    spec = serving.pod_template(OWNER, EVERYTHING, SETTINGS, read)["spec"]
    (value,) = (one["value"] for one in spec["initContainers"][0]["env"] if one["name"] == f"{PREFIX}REPLACES")
    assert "$" not in value, "Kubernetes would expand it"
    assert f"{PREFIX}REPLACES" not in {one["name"] for one in spec["containers"][0]["env"]}
    monkeypatch.setenv(f"{PREFIX}REPLACES", value)
    assert ServerSettings().replaces == signature
