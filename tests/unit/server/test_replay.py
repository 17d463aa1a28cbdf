"""A canary process compares itself with a stable one: real artifacts, real HTTP."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.unit.server.serving import VALUES, Server
from tools.ports import free_port

from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import AgreementMode, Metric
from fettle.server.replay import Trouble, check
from fettle.server.samples import SamplesHead, unpack
from fettle.store.comparison import Comparison, Outcome, compare

RULE = Comparison(mode=AgreementMode.TOP_ONE, margin=3)
SURE, UNSURE = [0, 1, 2, 9], [1, 2, 3, 4]  # the look-up model answers what it is asked: margins 7 and 1
TOKEN = "a-secret-of-this-test"


def serve(root: Path, revision: str, stable: Server | str | None = None, **more: Any) -> Server:
    token = root / "token"
    root.mkdir(exist_ok=True)
    token.write_text(TOKEN)
    address = f"127.0.0.1:{stable.management}" if isinstance(stable, Server) else stable or ""
    settings = {"revision": revision, "samples_token": token, "stable": address}
    return Server(root, **{**settings, **more})


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = serve(tmp_path_factory.mktemp("stable"), "stable", rule=RULE)
    yield started
    started.stop()


@pytest.fixture(scope="module", autouse=True)
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A canary that reaches no pod of the stable revision. It says so after ten seconds, so it waits while the other tests run."""
    started = serve(tmp_path_factory.mktemp("lonely"), "canary", stable=f"127.0.0.1:{free_port()}")
    yield started
    started.stop()


def ask(server: Server, row: list[int], count: int) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row}
    for _ in range(count):
        assert httpx.post(f"{server.url}/infer", json={"inputs": [tensor]}).status_code == 200
        time.sleep(0.035)  # samples are taken so many times a second


def told(server: Server) -> tuple[Counter[str], dict[str, Any]]:
    window = httpx.get(f"{server.admin}/fettle/window?since=0").json()
    return sum((Counter(second["outcomes"]) for second in window["windows"]), Counter()), window.get("agreement")


def wait_for(server: Server, outcomes: int) -> Counter[str]:
    for _ in range(600):
        counted, _ = told(server)
        if counted.total() >= outcomes:
            break
        time.sleep(0.1)
    return counted


def drain(stable: Server) -> bytes:
    """Take what is in the ring."""
    headers = {"Authorization": f"Bearer {TOKEN}", "fettle-revision": "test"}
    return httpx.post(f"{stable.admin}/fettle/samples", headers=headers).content


def test_a_wrong_canary_disagrees_wherever_stable_was_sure(tmp_path: Path, stable: Server) -> None:
    canary = serve(tmp_path, "canary", stable, values=VALUES[::-1].copy())
    try:
        ask(stable, SURE, 6)
        ask(stable, UNSURE, 4)
        assert wait_for(canary, 10) == {"disagreed": 6, "unsure": 4}
        assert told(canary)[1] == {"stable": "stable"}
        metrics = httpx.get(f"{canary.admin}/metrics").text
        assert 'fettle_server_compared_items_total{model="lookup",outcome="disagreed",revision="canary"} 6.0' in metrics
        assert "fettle_server_replay_seconds_total" in metrics
    finally:
        canary.stop()


def test_a_canary_that_differs_only_where_stable_is_unsure_agrees(tmp_path: Path, stable: Server) -> None:
    values = VALUES.copy()
    values[[3, 4]] = values[[4, 3]]
    canary = serve(tmp_path, "canary", stable, values=values)
    try:
        ask(stable, SURE, 5)
        ask(stable, UNSURE, 5)
        assert wait_for(canary, 10) == {"agreed": 5, "unsure": 5}
    finally:
        canary.stop()


def test_an_item_that_only_the_canary_fails_on_is_a_disagreement(tmp_path: Path, stable: Server) -> None:
    canary = serve(tmp_path, "canary", stable, values=VALUES[:9].copy())
    try:
        ask(stable, SURE, 3)
        assert wait_for(canary, 3) == {"disagreed": 3}
        requests = httpx.get(f"{canary.admin}/fettle/window?since=0").json()["windows"]
        assert sum(second["errors"] for second in requests) == 0  # no user was given that answer
    finally:
        canary.stop()


def test_pods_of_the_stable_revision_take_nothing_from_each_other(tmp_path: Path, stable: Server) -> None:
    drain(stable)
    fellow = serve(tmp_path, "stable", stable)
    try:
        ask(stable, SURE, 3)
        time.sleep(1.5)
        assert told(fellow) == (Counter(), {"stable": "stable"})
        assert len(unpack(drain(stable))[1]) == 3
    finally:
        fellow.stop()


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {}, 401),
        ("POST", {"Authorization": "Bearer guess"}, 401),
        ("POST", {"Authorization": TOKEN}, 401),
        ("GET", {"Authorization": f"Bearer {TOKEN}"}, 405),
        ("POST", {"Authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
def test_samples_go_to_who_shows_the_secret(stable: Server, method: str, headers: dict[str, str], status: int) -> None:
    answer = httpx.request(method, f"{stable.admin}/fettle/samples", headers=headers)
    assert answer.status_code == status
    assert TOKEN not in answer.text


def test_a_pod_without_samples_or_without_a_secret_hands_out_none_and_serves(tmp_path: Path) -> None:
    off = serve(tmp_path / "off", "stable", rule=RULE, samples=0)
    bare = serve(tmp_path / "bare", "stable", rule=RULE, samples_token="/nowhere/token")
    try:
        assert httpx.post(f"{off.admin}/fettle/samples").status_code == 404
        assert httpx.post(f"{bare.admin}/fettle/samples").status_code == 503
        assert told(off)[1] is None
        ask(off, SURE, 1)
        ask(bare, SURE, 1)
    finally:
        off.stop()
        bare.stop()


def test_a_stable_revision_that_a_tasks_metric_certified_is_not_called_different(tmp_path: Path) -> None:
    detector = serve(tmp_path / "stable", "stable", rule=RULE.model_copy(update={"judged_by": Metric.DETECTION}))
    canary = serve(tmp_path / "canary", "canary", stable=detector)
    try:
        problem = None
        for _ in range(600):
            ask(detector, SURE, 1)
            problem = told(canary)[1].get("problem")
            if problem is not None:
                break
            time.sleep(0.1)
        assert problem is not None and problem["reason"] == "AnalysisInconclusive"
        assert "analysis.agreement does not apply" in problem["message"] and "Detection" in problem["message"]
        assert told(canary)[0].total() == 0  # nothing is compared, so nothing is rolled back
    finally:
        canary.stop()
        detector.stop()


def signature(**changes: Any) -> Signature:
    outputs = (Tensor(name="y", dtype="FP32", shape=(-1, 10), batch_axis=0).model_copy(update=changes),)
    return Signature(inputs=(Tensor(name="x", dtype="FP32", shape=(-1, 4), batch_axis=0),), outputs=outputs)


@pytest.mark.parametrize(
    ("sentence", "head", "own", "says"),
    [
        ("another number of classes", {}, signature(shape=(-1, 11)), "stable has y FP32 [-1, 10], this revision FP32"),
        ("another name", {}, signature(name="z"), "this revision no such tensor"),
        ("another type", {}, signature(dtype="INT64"), "this revision INT64"),
        ("no batches", {}, signature(batch_axis=None), "stable has y"),
        ("an older artifact", {"comparisons": {}}, signature(), "no rule for comparing answers"),
        (
            "a detector",
            {"comparisons": {"y": RULE.model_copy(update={"judged_by": Metric.DETECTION})}},
            signature(),
            "analysis.agreement does not apply to a model that was certified by metric Detection",
        ),
    ],
)
def test_revisions_of_different_forms_are_not_compared(
    sentence: str, head: dict[str, Any], own: Signature, says: str
) -> None:
    theirs = SamplesHead(**{"revision": "a", "signature": signature(), "comparisons": {"y": RULE}, **head})
    with pytest.raises(Trouble, match=says.replace("[", r"\[")) as found:
        check(theirs, own)
    assert found.value.reason == "AnalysisInconclusive", sentence


def test_an_output_that_no_rule_names_may_differ() -> None:
    theirs = SamplesHead(revision="a", signature=signature(), comparisons={"y": RULE})
    more = Signature(
        inputs=signature().inputs,
        outputs=(*signature().outputs, Tensor(name="extra", dtype="FP32", shape=(-1, 3), batch_axis=0)),
    )
    check(theirs, more)
    assert np.isfinite(RULE.margin)


def test_what_a_tasks_metric_judges_is_not_compared_beside_what_is() -> None:
    rules = {"kind": RULE, "boxes": Comparison(mode=AgreementMode.ELEMENTWISE, judged_by=Metric.DETECTION)}
    check(SamplesHead(revision="a", signature=signature(name="kind"), comparisons=rules), signature(name="kind"))
    sure, other = np.array([0.0, 9.0], np.float32), np.array([9.0, 0.0], np.float32)
    boxes, moved = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    stable = {"kind": sure, "boxes": boxes}
    assert compare(rules, stable, {"kind": sure, "boxes": moved}) is Outcome.AGREED
    assert compare(rules, stable, {"kind": other, "boxes": boxes}) is Outcome.DISAGREED


def test_a_stable_revision_that_nobody_reaches_is_told_as_such(lonely: Server) -> None:
    for _ in range(600):
        problem = told(lonely)[1].get("problem")
        if problem is not None:
            break
        time.sleep(0.1)
    assert problem["reason"] == "AnalysisUnreachable"
    assert "stable pod 127.0.0.1" in problem["message"]
    ask(lonely, SURE, 1)
