"""What the optimize bench makes of its runs: which items are held out, which rows stay, what is said of them."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import optimize_rows as rows
from bench.model_catalog import Case
from bench.optimize import rows_key, rows_of
from bench.optimize_cases import CASES
from bench.optimize_rows import Row
from bench.optimize_tools import TOOLS, code
from bench.peers import environments
from bench.side_by_side import gathered
from rich.console import Console

from fettle.store.arrays import Arrays

FETTLE = Row("a", "fettle", "cpu", "today", "Text", 0.1, 64, speedup=2.0, speedups=(1.9, 2.0, 2.1), promise_held=True)
PEER = replace(FETTLE, tool="peer", speedup=2.5, speedups=(2.4, 2.5, 2.6))
MODELS, NAMES = ["a", "b"], ["fettle", "peer"]


def items(count: int, copies: int = 1) -> dict[str, Any]:
    random = np.random.default_rng(5)
    values = random.normal(size=(count, 3)).astype(np.float32)
    return {"x": np.concatenate([values] * copies), "n": np.concatenate([np.arange(count)] * copies)}


def held(part: Arrays) -> set[int]:
    return set(part["n"].tolist())


def test_every_item_is_in_one_part() -> None:
    split = rows.split(items(60))
    parts = [held(part) for part in (split.held_out, split.calibration, split.evaluation)]
    assert [len(part) for part in parts] == [20, 15, 25]
    assert set.union(*parts) == set(range(60))


def test_copies_of_a_held_out_item_are_nowhere_else() -> None:
    split = rows.split(items(30, copies=3))
    assert len(split.held_out["n"]) == 10
    assert not held(split.held_out) & (held(split.calibration) | held(split.evaluation))


def test_an_item_is_held_out_for_what_it_holds_not_for_where_it_lies() -> None:
    given = items(60)
    turned = {name: array[::-1] for name, array in given.items()}
    assert held(rows.split(given).held_out) == held(rows.split(turned).held_out)


def test_inputs_of_an_item_stay_together() -> None:
    given = items(60)
    part = rows.split(given).evaluation
    np.testing.assert_array_equal(part["x"], given["x"][part["n"]])


@pytest.mark.parametrize(
    ("drop", "kept"), [(0.0, True), (0.1, True), (0.11, False), (-0.2, True), (None, False), (math.nan, False)]
)
def test_a_promise_is_held_where_at_most_what_was_allowed_is_lost(drop: float | None, kept: bool) -> None:
    assert rows.keeps(drop, 0.1) is kept


def test_rows_of_other_models_and_tools_stay() -> None:
    before = [FETTLE, PEER, replace(FETTLE, model="b")]
    now = [replace(PEER, speedup=3.0)]
    found = rows.merged(before, now, MODELS, NAMES)
    assert [(row.model, row.tool, row.speedup) for row in found] == [
        ("a", "fettle", 2.0), ("a", "peer", 3.0), ("b", "fettle", 2.0),
    ]  # fmt: skip


def test_rows_of_a_tool_that_is_no_more_go() -> None:
    assert rows.merged([FETTLE, PEER], [], MODELS, ["fettle"]) == [FETTLE]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results" / "optimize.json"
    written = [
        replace(FETTLE, drop=0.01, drop_interval=(0.0, 0.02), wall_seconds=3.5, bytes=7),
        replace(PEER, error="no"),
    ]
    rows.write(path, written)
    assert rows.read(path) == written
    assert {"model", "tool", "cpu", "speedup", "drop", "metric", "bytes", "wallSeconds", "promiseHeld", "error"} <= set(
        json.loads(path.read_text())[0]
    )
    assert rows.read(tmp_path / "absent.json") == []


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        (PEER, True),
        (replace(PEER, promise_held=False), False),
        (replace(PEER, promise_held=None, speedup=None, speedups=()), False),
        (replace(PEER, speedups=(1.8, 2.5, 2.6)), False),  # not in every process
        (replace(PEER, date="yesterday", speedups=(1.8, 2.5, 2.6)), True),  # not in the same run: by the medians
    ],
)
def test_a_peer_is_faster_where_it_held_the_promise_and_was_faster_in_every_process(peer: Row, found: bool) -> None:
    assert rows.faster(peer, FETTLE) is found


def test_the_summary_counts_a_model_without_an_artifact_as_not_faster() -> None:
    failed = replace(FETTLE, model="b", speedup=None, speedups=(), promise_held=None, error="NoCandidate")
    said = rows.summary([FETTLE, PEER, failed, replace(PEER, model="b", speedup=0.5, speedups=(0.5,))])
    assert said == [
        "Fettle on 2 models: geometric mean 1.41, median 1.50",
        "a peer that held its promise was faster on 1 of 2 models: a (peer)",
        "Fettle's promise was broken on 0 of 2 models",
    ]


def test_the_summary_names_a_broken_promise() -> None:
    assert rows.summary([replace(FETTLE, promise_held=False)])[-1] == "Fettle's promise was broken on 1 of 1 models: a"


def test_the_table_shows_the_interval_the_promise_and_the_error() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    broken = replace(PEER, drop=0.2, drop_interval=(0.1, 0.3), promise_held=False)
    console.print(rows.table([FETTLE, broken, replace(PEER, speedup=None, error="no bf16 here")]))
    said = console.export_text()
    assert "2.00 [1.90, 2.10]" in said
    assert "0.200 [0.100, 0.300] of 0.1" in said
    assert "BROKEN" in said
    assert "no bf16 here" in said


def test_speedups_are_paired_within_rounds_and_a_failure_is_one_models_own() -> None:
    run = {"medians": {"original": [2.0, 4.0, 6.0], "fast": [1.0, 2.0, 2.0]}, "failures": {"bad": "INVALID_GRAPH"}}
    found = gathered([run, run], "original")
    assert found.milliseconds == 4000
    assert found.speedups == {"fast": (2.0, 2.0)}
    assert found.failures == {"bad": "INVALID_GRAPH"}


def test_an_original_that_does_not_run_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="INVALID_GRAPH"):
        gathered([{"medians": {}, "failures": {"original": "INVALID_GRAPH"}}], "original")


def test_every_peer_has_its_module_and_its_pinned_requirements() -> None:
    folder = Path(environments.__file__).parent
    for tool in TOOLS[1:]:
        assert (folder / f"{tool.module}.py").exists()
        if tool.environment:
            lines = (environments.REQUIREMENTS / f"{tool.environment}.txt").read_text().splitlines()
            assert all(line.startswith("#") or "==" in line for line in lines)
            assert not any("://" in line or line.startswith("-") for line in lines)


def test_an_environment_that_cannot_be_made_says_why() -> None:
    with pytest.raises(environments.EnvironmentFailure, match="its environment cannot be made: no such release"):
        environments.command(sys.executable, "-c", "raise SystemExit('a warning\\nno such release')")


def test_at_least_twelve_models_with_a_known_metric() -> None:
    assert len(CASES) >= 12
    assert all(case.items is not None for case in CASES.values())


@pytest.mark.parametrize("change", ["items", "job", ""])
def test_what_a_tool_made_of_other_items_or_for_another_bound_is_made_again(change: str) -> None:
    first, job = rows.split(items(60)), {"model": "model.onnx", "max_drop": 0.1}
    other = rows.split(items(66)) if change == "items" else rows.split(items(60))
    same = rows.digest(first, job) == rows.digest(other, job | ({"max_drop": 0.2} if change == "job" else {}))
    assert same is (change == "")


def unreachable(_: Path, folder: Path) -> Path:
    raise RuntimeError("no network")


def test_rows_of_a_model_that_was_measured_are_used_again_and_one_that_failed_is_tried_again(tmp_path: Path) -> None:
    case = Case("a", "kind", write=unreachable, items=lambda count, _: items(count), count=8)
    tools, kept = TOOLS[:1], tmp_path / "a" / "rows.json"
    (failed,) = rows_of(case, tools, tmp_path, 1)
    assert failed.error == "no network"
    assert not kept.exists()
    kept.write_text(json.dumps({"key": rows_key(case, tools, 1), "rows": [FETTLE.to_json()]}))
    assert rows_of(case, tools, tmp_path, 1) == [FETTLE]
    assert rows_of(case, tools, tmp_path, 2)[0].error == "no network"


def test_no_two_tools_are_the_same_code_with_the_same_options() -> None:
    assert len({code(tool) for tool in TOOLS}) == len(TOOLS)


def test_a_page_of_documentation_shows_broken_promises_missing_models_machine_and_days() -> None:
    first = replace(FETTLE, date="2026-11-28T10:00:00+00:00", milliseconds=1.5)
    broken = replace(PEER, date="2026-11-29T10:00:00+00:00", promise_held=False)
    absent = replace(first, model="b", speedup=None, milliseconds=None)
    assert rows.markdown([first, broken, absent]).splitlines() == [
        "cpu; 2026-11-28 to 2026-11-29",
        "",
        "| model | metric | ms | fettle | peer |",
        "|---|---|---|---|---|",
        "| a | Text | 1.50 | 2.00 | (2.50) |",
        "| b | Text |  | – |  |",
    ]
