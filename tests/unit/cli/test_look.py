"""`status`, `history` and `why`: what a person is shown, and what a program gets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.unit.cli.api_server import ApiServer, api_server
from tests.unit.cli.test_kubectl import run
from tests.unit.plan.optimize.world import World

from fettle.api.modeldeployment import RolloutStep
from fettle.api.modeldeployment_status import AnalysisWindow, CanaryStatus, MetricRecord, Verdict
from fettle.cli.commands.history import duration
from fettle.cli.views.rollout import steps
from fettle.cli.views.sparkline import sparkline
from fettle.cluster import ledger

BASE = "/apis/fettle.dev/v1alpha1/namespaces/default"
NOW = datetime(2026, 1, 2, 0, 10, tzinfo=UTC)


def window(minute: int, rate: float, weight: int = 10) -> AnalysisWindow:
    verdict = Verdict.GOOD if rate >= 0.99 else Verdict.BAD
    found = MetricRecord(metric="successRate", verdict=verdict, value=rate, bound=0.99, samples=200)
    return AnalysisWindow(
        start=f"2026-01-02T00:0{minute}:00Z",
        end=f"2026-01-02T00:0{minute}:10Z",
        weight=weight,
        requests=200,
        verdict=verdict,
        metrics=(found,),
    )


def on_trial() -> dict[str, Any]:
    """Revision b is on its second step; a serves; c failed before."""
    windows = [window(4, 1.0), window(5, 0.995), window(6, 0.9)]
    status = {
        "observedGeneration": 1,
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Serving", "message": "2 stable pods and 1 canary pod ready"},
            {"type": "Progressing", "status": "True", "reason": "CanaryRunning", "message": "canary bbbb: step 2 of 3"},
        ],
        "stable": {"revision": "aaaa", "artifact": "pvc://s/artifacts/1", "replicas": 2, "ready": 2},
        "canary": {
            "revision": "bbbb",
            "artifact": "pvc://s/artifacts/2",
            "replicas": 1,
            "ready": 1,
            "weight": 10,
            "actualWeight": 33,
            "step": 1,
            "stepStartedAt": "2026-01-02T00:09:30Z",
            "analysis": {
                "windowStart": "2026-01-02T00:06:10Z",
                "requests": 80,
                "failures": 2,
                "verdict": "Bad",
                "message": "success rate 0.9 < 0.99",
                "windows": [one.to_json() for one in windows],
            },
        },
        "revisions": [
            {"revision": "cccc", "artifact": "x", "entered": "2026-01-01T00:00:00Z", "left": "2026-01-01T00:05:00Z", "reason": "AnalysisFailed"},
            {"revision": "aaaa", "artifact": "x", "entered": "2026-01-01T00:10:00Z"},
        ],
        "desiredRevision": "bbbb",
    }  # fmt: skip
    spec = {
        "model": {"ref": {"name": "digits", "target": "cpu"}},
        "rollout": {"steps": [{"weight": 10}, {"pause": {"seconds": 60}}, {"weight": 100}]},
    }
    return {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "digits", "namespace": "default", "uid": "u-1", "generation": 1},
        "spec": spec,
        "status": status,
    }


def line(serial: int, revision: str, created: str, **notes: str) -> dict[str, Any]:
    annotations = {f"fettle.dev/{key}": value for key, value in notes.items()}
    labels = {"fettle.dev/modeldeployment": "digits", "fettle.dev/revision": revision}
    metadata = {"name": f"digits-{revision}-{serial}", "creationTimestamp": created, "labels": labels}
    data = {"artifact": f"pvc://s/artifacts/{revision * 16}"}
    return {"metadata": {**metadata, "annotations": annotations}, "revision": serial, "data": data}


def lines() -> list[dict[str, Any]]:
    failed = json.dumps([window(2, 0.5).to_json()])
    return [
        line(1, "cccc", "2026-01-01T00:00:00Z", entered="2026-01-01T00:00:05Z", left="2026-01-01T00:05:05Z",
             reason="AnalysisFailed", message="success rate 0.5 < 0.99", analysis=failed),
        line(2, "aaaa", "2026-01-01T00:10:00Z", entered="2026-01-01T00:10:05Z"),
        line(3, "bbbb", "2026-01-02T00:01:00Z", entered="2026-01-02T00:01:05Z"),
    ]  # fmt: skip


def event(at: str, reason: str, message: str, kind: str = "Normal") -> dict[str, Any]:
    about = {"metadata": {"name": "e"}, "involvedObject": {}}
    return {**about, "type": kind, "reason": reason, "message": message, "lastTimestamp": at}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A ModelDeployment in the middle of a rollout."""
    with api_server() as found:
        found.objects[f"{BASE}/modeldeployments/digits"] = on_trial()
        found.objects["/apis/apps/v1/namespaces/default/controllerrevisions"] = {"items": lines()}
        found.objects["/api/v1/namespaces/default/pods"] = {"items": []}
        found.objects["/api/v1/namespaces/default/events"] = {
            "items": [
                event("2026-01-02T00:01:10Z", "CanaryRunning", "canary bbbb reached weight 10"),
                event(
                    "2026-01-02T00:01:00Z",
                    "CanaryRunning",
                    "revision bbbb (artifact pvc://x) is the new canary; revision aaaa stays stable",
                ),
                event(
                    "2026-01-02T00:07:00Z", "CommandRefused", "retry refused: revision bbbb has not failed", "Warning"
                ),
                event("2026-01-01T00:02:00Z", "Serving", "long ago"),
            ]
        }
        yield found


def test_status_draws_the_steps_the_weights_and_the_windows(server: ApiServer, tmp_path: Path) -> None:
    result = run(server, tmp_path, "status", "digits")
    assert result.exit_code == 0, result.output
    for words in (
        "modeldeployment/digits",
        "True     Serving: 2 stable pods and 1 canary pod ready",
        "aaaa  2/2 ready",
        "33 % of the ready pods, step reached: 10 %",
        "✓ 10 %",
        "▶ 60 s",
        "· 100 %",
        "Bad (80 requests, 2 failed, in the window until 2026-01-02T00:06:10Z): success rate 0.9 < 0.99",
        "successRate  ██▁  0.9, bound 0.99, 200 samples",
    ):
        assert words in result.output, result.output


def test_status_shows_pods_by_revision(server: ApiServer, tmp_path: Path) -> None:
    def pod(revision: str, ready: str, **metadata: Any) -> dict[str, Any]:
        conditions = [{"type": "Ready", "status": ready}]
        labels = {"fettle.dev/revision": revision}
        return {"metadata": {"name": "p", "labels": labels, **metadata}, "status": {"conditions": conditions}}

    gone = {"deletionTimestamp": "2026-01-02T00:00:00Z"}
    pods = [pod("aaaa", "True"), pod("aaaa", "False"), pod("bbbb", "True"), pod("bbbb", "True", **gone)]
    server.objects["/api/v1/namespaces/default/pods"] = {"items": pods}
    result = run(server, tmp_path, "status", "digits")
    assert "aaaa  ●○ 2/2 ready" in result.output
    assert "bbbb  ●◌ 1/1 ready" in result.output


def test_status_of_both_kinds_shows_stages_and_candidates(server: ApiServer, tmp_path: Path) -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    model = {"metadata": {"name": "digits"}, "spec": world.spec.to_json(), "status": world.status.to_json()}
    server.objects[f"{BASE}/optimizedmodels/digits"] = model
    result = run(server, tmp_path, "status", "digits")
    assert result.exit_code == 0, result.output
    assert "✓ prepare  ✓ optimize  ✓ measure  ✓ publish" in result.output
    assert "int8-onnxruntime-in-openvino" in result.output
    assert "cpu: int8-openvino in openvino" in result.output


@pytest.mark.parametrize(("form", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_status_for_programs_is_the_object_itself(server: ApiServer, tmp_path: Path, form: str, load: Any) -> None:
    result = run(server, tmp_path, "status", "digits", "-o", form)
    assert load(result.output)["status"]["canary"]["revision"] == "bbbb"


def test_history_is_the_ledger_newest_first(server: ApiServer, tmp_path: Path) -> None:
    result = run(server, tmp_path, "history", "digits")
    assert result.exit_code == 0, result.output
    rows = result.output.splitlines()[1:]
    assert [row.split()[1] for row in rows] == ["bbbb", "aaaa", "cccc"]
    assert [row.split()[3] for row in rows] == ["canary", "stable", "left"]
    assert "5m AnalysisFailed success rate 0.5 < 0.99" in " ".join(rows[2].split())


def test_history_without_the_right_to_see_the_ledger_comes_from_status(server: ApiServer, tmp_path: Path) -> None:
    server.refuse["/apis/apps/v1/namespaces/default/controllerrevisions"] = (403, "no")
    found = json.loads(run(server, tmp_path, "history", "digits", "-o", "json").output)
    assert [one["revision"] for one in found] == ["cccc", "aaaa"]


def test_why_tells_the_chain_of_the_last_rollout_in_order(server: ApiServer, tmp_path: Path) -> None:
    result = run(server, tmp_path, "why", "digits")
    assert result.exit_code == 0, result.output
    said = [
        "revision aaaa is serving; CanaryRunning: canary bbbb: step 2 of 3",
        "Created revision bbbb was created for",
        "got its first traffic",
        "reached weight 10",
        "Analysis Good window at weight 10: successRate 1 >= 0.99 (200 samples)",
        "Analysis Bad window at weight 10: successRate 0.9 < 0.99 (200 samples)",
        "retry refused: revision bbbb has not failed",
    ]
    text = " ".join(result.output.split())
    places = [text.index(words) for words in said]
    assert places == sorted(places)
    assert "long ago" not in result.output
    assert "is the new canary" not in result.output  # the ledger says so already


def test_why_all_goes_back_to_the_beginning_with_what_the_ledger_kept(server: ApiServer, tmp_path: Path) -> None:
    decisions = json.loads(run(server, tmp_path, "why", "digits", "--all", "-o", "json").output)
    chain = decisions["modeldeployment"]["decisions"]
    (kept,) = [one for one in chain if one["revision"] == "cccc" and one["reason"] == "Analysis"]
    assert kept["metrics"] == [{"metric": "successRate", "verdict": "Bad", "value": 0.5, "bound": 0.99, "samples": 200}]
    assert any(one["reason"] == "AnalysisFailed" for one in chain)
    assert all(re.fullmatch(r"2026-01-0\dT[\d:]{8}Z", one["at"]) for one in chain), "the events' moments too"


def test_why_hides_no_metric_that_is_pending_and_no_window_that_is_open(server: ApiServer, tmp_path: Path) -> None:
    found = on_trial()
    seen = found["status"]["canary"]["analysis"]
    pending = {"metric": "p99Milliseconds", "verdict": "Pending", "value": 12.5, "bound": 20, "samples": 200}
    seen["windows"][-1]["metrics"].append(pending)
    seen |= {"verdict": "Pending", "message": "40 of 50 requests"}
    server.objects[f"{BASE}/modeldeployments/digits"] = found
    text = " ".join(run(server, tmp_path, "why", "digits").output.split())
    assert "successRate 0.9 < 0.99 (200 samples); p99Milliseconds pending: so far 12.5, bound 20 (200 samples)" in text
    assert "2026-01-02T00:06:10Z Analysis Pending open window: 40 of 50 requests" in text
    seen |= {"verdict": "Good", "message": "since then 7 of 50 requests"}
    text = " ".join(run(server, tmp_path, "why", "digits").output.split())
    assert "Analysis Pending open window: 7 of 50 requests" in text


def test_why_of_a_model_says_of_each_candidate_why(server: ApiServer, tmp_path: Path) -> None:
    world = World(speeds={"int8-openvino": (3.0, 0.001)})
    world.settle()
    model = {"metadata": {"name": "other"}, "spec": world.spec.to_json(), "status": world.status.to_json()}
    server.objects[f"{BASE}/optimizedmodels/other"] = model
    result = run(server, tmp_path, "why", "other")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[1].startswith("int8-openvino")
    assert "of all candidates that satisfy every constraint" in result.output
    judged = json.loads(run(server, tmp_path, "why", "other", "-o", "json").output)["optimizedmodel"]["candidates"]
    assert {one["candidate"] for one in judged} == {row.name for row in world.status.candidates}
    assert all(one["reason"] for one in judged if one["state"] != "Selected")


def test_what_the_ledger_cannot_say_any_more_is_no_error() -> None:
    assert ledger.windows_of({"metadata": {"annotations": {"fettle.dev/analysis": "{broken"}}}) == ()


@pytest.mark.parametrize(
    ("values", "bound", "drawn"),
    [([0, 0.5, 1], None, "▁▅█"), ([1, 1], None, "▅▅"), ([1, 1], 0, "██"), ([None, 2], 1, "·█"), ([None], None, "·")],
)
def test_a_sparkline_reaches_from_the_smallest_to_the_largest(values: Any, bound: Any, drawn: str) -> None:
    assert sparkline(values, bound) == drawn


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (45, "45s"), (192, "3m12s"), (18120, "5h2m"), (273600, "3d4h"), (60, "1m")]
)
def test_durations_are_written_as_kubectl_does(seconds: int, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


def test_a_pause_says_how_long_it_still_lasts() -> None:
    wanted = [RolloutStep.model_validate(one) for one in ({"weight": 10}, {"pause": {"seconds": 60}}, {"weight": 100})]
    canary = CanaryStatus(revision="b", artifact="x", step=1, step_started_at="2026-01-02T00:09:30Z")
    assert steps(wanted, canary, NOW).plain == "✓ 10 %  ▶ 60 s (30 s left)  · 100 %  "


def test_the_stable_revision_is_shown_however_many_canaries_failed_after_it() -> None:
    from fettle.cli.access.objects import read_deployment
    from fettle.cli.views.rollout import rollout

    deployment = on_trial()
    stable = deployment["status"]["revisions"][-1]
    failed = [{**deployment["status"]["revisions"][0], "revision": f"f{number}"} for number in range(4)]
    canary = {"revision": "bbbb", "artifact": "x", "entered": "2026-01-02T00:00:00Z"}
    deployment["status"]["revisions"] = [stable, *failed, canary]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rollout(read_deployment(deployment), None, NOW))
    lines = console.export_text().splitlines()
    ledger = [line.split() for line in lines if " entered " in line]
    assert ledger[0] == ["ledger", "bbbb", "entered", "2026-01-02T00:00:00Z", "canary"]
    assert ledger[-1] == ["aaaa", "entered", "2026-01-01T00:10:00Z", "serves"]
    assert len(ledger) == 5


def test_a_narrow_terminal_folds_instead_of_cutting(server: ApiServer, tmp_path: Path) -> None:
    from fettle.cli.access.objects import read_deployment
    from fettle.cli.views.rollout import rollout

    console = Console(width=48, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rollout(read_deployment(on_trial()), None, NOW))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 48
    assert "0.9 < 0.99" in " ".join(text.split())
