"""What the demo reads in the status of a rollout, and what it asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tools.cluster.target import Target
from tools.demo.install import DIGITS
from tools.demo.kube import DemoError
from tools.demo.place import Bucket, Claims
from tools.demo.scenes import next_steps, require_differences, told_of_requests
from tools.demo.watch import Rollout, has_failed, told_of_answers


def status(**analysis: Any) -> dict[str, Any]:
    return {"status": {"canary": {"revision": "b", "analysis": analysis}}}


def test_of_all_windows_of_a_rollout_the_most_is_kept() -> None:
    answers = (0, 0)
    looks = [
        {},
        {"status": {}},
        {"status": {"canary": {"revision": "b"}}},
        status(compared=27, agreed=27, unsure=4),
        status(compared=75, agreed=75, unsure=14),
        status(compared=2, agreed=2),  # the next window
        {"status": {"stable": {"revision": "b"}}},  # promoted
    ]
    for look in looks:
        answers = told_of_answers(look, *answers)
    assert answers == (75, 14)


@pytest.mark.parametrize(
    ("compared", "unsure", "says"), [(0, 0, "none of its answers was compared"), (80, 0, "sure of all of them")]
)
def test_a_better_model_that_was_not_compared_where_it_differs_ends_the_demo(
    compared: int, unsure: int, says: str
) -> None:
    with pytest.raises(DemoError, match=says):
        require_differences(Rollout("b", "Promoted", "", 60, 0, compared, unsure))


def test_one_that_differs_only_where_stable_is_unsure_goes_on() -> None:
    require_differences(Rollout("b", "Promoted", "", 60, 0, 80, 14))


@pytest.mark.parametrize(
    ("reason", "ready", "generation", "failed"),
    [
        ("JobFailed", "False", 1, True),
        ("Measuring", "False", 1, False),
        ("Published", "True", 1, False),
        ("JobFailed", "False", 2, False),  # of a spec that is no more
    ],
)
def test_a_model_that_an_interrupted_demo_left_failed_is_known(
    reason: str, ready: str, generation: int, failed: bool
) -> None:
    conditions = [{"type": "Ready", "status": ready, "reason": reason}]
    found = {"metadata": {"generation": generation}, "status": {"observedGeneration": 1, "conditions": conditions}}
    assert has_failed(found) is failed
    assert not has_failed(None)


@pytest.mark.parametrize(("named", "stop"), [(None, "make cluster-down"), ("/home/you/kubeconfig", "make demo-clean")])
def test_the_end_says_how_to_look_around_and_how_to_stop(
    monkeypatch: pytest.MonkeyPatch, named: str | None, stop: str
) -> None:
    monkeypatch.delenv("FETTLE_KUBECONFIG", raising=False)
    if named is not None:
        monkeypatch.setenv("FETTLE_KUBECONFIG", named)
    look, why, end = next_steps(Target(kubeconfig=Path("kubeconfig"), registry=None))
    assert "export KUBECONFIG=kubeconfig; kubectl -n fettle-demo" in look
    assert ".venv/bin/activate; kubectl fettle why digits -n fettle-demo" in why
    assert end.startswith(f"stop: {stop}")


@pytest.mark.parametrize(
    ("own", "others", "says"),
    [
        (53, 0, "100 requests sent; 53 errors, all from the deliberately failing canary, no others"),
        (53, 2, "100 requests sent; 53 errors from the deliberately failing canary, 2 others"),
        (0, 0, "100 requests sent, none failed"),
    ],
)
def test_the_summary_tells_the_failing_canarys_errors_from_others(own: int, others: int, says: str) -> None:
    assert told_of_requests(100, own, others) == says


def test_in_a_bucket_the_demos_models_have_every_address_there_with_its_secret() -> None:
    manifest = (DIGITS / "optimizedmodel.yaml").read_text()
    (before,), (after,) = Claims().objects(manifest), Bucket("s3://demo", Path("keys")).objects(manifest)
    assert before["spec"]["source"] == {"uri": "pvc://models/digits/first/model.onnx"}
    spec, secret = after["spec"], {"secretName": "demo-bucket"}
    assert spec["source"] == {"uri": "s3://demo/digits/first/model.onnx", **secret}
    assert spec["store"] == {"uri": "s3://demo/store", **secret}
    assert spec["data"]["evaluation"] == before["spec"]["data"]["evaluation"] | {
        "uri": "s3://demo/digits/evaluation.npz",
        **secret,
    }
    assert "pvc://" not in str(after)


def test_what_serves_a_model_has_no_address_of_its_own() -> None:
    manifest = (DIGITS / "modeldeployment.yaml").read_text()
    assert Bucket("s3://demo", Path("keys")).objects(manifest) == Claims().objects(manifest)
