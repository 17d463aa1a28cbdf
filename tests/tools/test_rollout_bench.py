"""What the rollout bench makes of a run: its table, its summary, its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench import rollout
from bench.rollout import LEAST_REQUESTS, Played, missed, report, rest, rows
from bench.rollout_scenarios import SCENARIOS

BEGIN, SECONDS = 1000.0, 400


def history(rate: int, failed_at: int | None = None) -> list[dict[str, Any]]:
    """The load's lines, one a second, half of the requests over each kind of connection."""
    lines = []
    for second in range(1, SECONDS + 1):
        failed = int(failed_at is not None and second >= failed_at)
        one = {"sent": rate * second // 2, "failed": failed, "worst": 7.0}
        connections = {"keep-alive": one, "new": {**one, "failed": 0}}
        lines.append({"time": BEGIN + second - 0.5, "sent": rate * second, "connections": connections})
    return lines


def run(rate: int, outcome: str = "Promoted", failed_at: int | None = None) -> int:
    """Exit status of a run whose scenarios took all of its time."""
    played = [Played(SCENARIOS[0], outcome, BEGIN, BEGIN + SECONDS)]
    lines = history(rate, failed_at)
    totals = {**lines[-1], "transportKinds": {}, "status": {}, "samples": []}
    return report(rows([*played, rest(played)], lines), totals, played, write=True)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rollout, "RESULTS", tmp_path / "results" / "rollout.json")
    return tmp_path / "results" / "rollout.json"


def test_a_run_that_kept_everything_ends_well_and_says_what_it_did(
    capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    assert run(300) == 0
    said = capsys.readouterr()
    assert "120000 requests, 0 failed; scenarios took 400 s, 300 requests/s" in said.out
    assert said.err == ""
    assert sum(row["requests"] for row in json.loads(results.read_text())) == 120_000


@pytest.mark.parametrize(
    ("what", "how", "said"),
    [
        (
            "too slow",
            {"rate": 298},
            "298.0 requests/s while the scenarios were played, where at least 300 are asked for",
        ),
        ("too few", {"rate": 200}, "80000 requests, where at least 100000 are asked for"),
        ("a request failed", {"rate": 300, "failed_at": 7}, "1 of 120000 requests failed"),
        ("another end", {"rate": 300, "outcome": "RolledBack"}, "ended otherwise than expected: good canary"),
    ],
)
def test_what_a_run_did_not_keep_is_said_and_is_its_exit_status(
    capsys: pytest.CaptureFixture[str], what: str, how: dict[str, Any], said: str
) -> None:
    assert run(**how) == 1, what
    assert said in capsys.readouterr().err


def test_a_run_of_a_few_scenarios_may_send_fewer_requests_but_no_slower() -> None:
    assert missed(9_000, 0, 310.0, [], whole=False) == []
    assert missed(LEAST_REQUESTS - 1, 0, 310.0, [], whole=True) != []
    assert len(missed(9_000, 2, 120.0, [], whole=False)) == 2
