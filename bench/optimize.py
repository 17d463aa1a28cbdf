"""Fettle beside its peers' own flows, on real models with a task metric each.

    python -m bench.optimize [--only MODEL …] [--tool TOOL …] [--limit SECONDS] [--again]

For each case of `bench/optimize_cases.py`: a third of its items is held out. Every tool of `bench/optimize_tools.py` gets the others, and makes a
model. Then each model is judged on the held-out items by Fettle's own metric, the original's answers as truth, and timed in turns with all others
in fresh processes. Prints the table and writes bench/results/optimize.json after each model; rows of other models stay. What a tool made, and the
rows of a model, stay in the work folder, so a run may be stopped at any time and goes on where it was. Needs espeak-ng and a quiet machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.held_out import HeldOut
from bench.model_catalog import Case
from bench.models import bring
from bench.optimize_cases import CASES
from bench.optimize_rows import Row, Split, digest, keeps, markdown, merged, read, split, summary, table, write
from bench.optimize_tools import BY_NAME as TOOLS
from bench.optimize_tools import Outcome, Tool, code, run
from bench.peers.environments import ROOT
from bench.side_by_side import PROCESSES, Subject, compare
from rich.console import Console

from fettle.errors import FettleError
from fettle.runtimes import cpu

RESULTS = Path(__file__).parent / "results" / "optimize.json"
WORK = ROOT / ".cache" / "bench-optimize"


def made(tool: Tool, case: Case, held_out: HeldOut, source: Path, items: Split, work: Path) -> Outcome:
    """What the tool made of the case: now, or in an earlier run of the bench."""
    folder = work / case.name / tool.name
    job: dict[str, Any] = {
        "code": code(tool),
        "source": str(source.resolve()),
        "model": str(held_out.onnx.resolve()),
        "threads": case.threads,
        "max_drop": case.max_drop,
        "signature": held_out.signature.to_json(),
        "evaluation": held_out.evaluation.to_json() | {"uri": "evaluation.npz"},  # not where the held-out items lie
    }
    kept, key = folder / "outcome.json", digest(items, job)
    if kept.exists() and (content := json.loads(kept.read_text())).pop("key") == key:
        subject = Subject(**content["subject"]) if content["subject"] else None
        return Outcome(**content | {"subject": subject})
    outcome = run(tool, case, job, items, folder.resolve())
    if outcome.wall_seconds:  # else it was not run, because it has no environment yet
        kept.write_text(json.dumps(asdict(outcome) | {"key": key}))
    return outcome


def judged(row: Row, outcome: Outcome, held_out: HeldOut) -> Row:
    """The row with what the tool made, and what that loses on the held-out items. A model that gives no answers breaks its promise."""
    row = replace(row, wall_seconds=round(outcome.wall_seconds, 1), bytes=outcome.bytes, error=outcome.error)
    if outcome.subject is None:
        return row
    try:
        judgement = held_out.judge(outcome.subject)
    except FettleError as error:
        return replace(row, error=error.message[:300], promise_held=False)
    if judgement.drop is None:
        return replace(row, error=judgement.too_few)
    drop = judgement.drop
    interval = (round(drop.low, 5), round(drop.high, 5))
    return replace(row, drop=round(drop.value, 5), drop_interval=interval, promise_held=keeps(drop.value, row.max_drop))


def timed(
    rows: Sequence[Row], outcomes: Sequence[Outcome], held_out: HeldOut, folder: Path, processes: int
) -> list[Row]:
    """The rows with speed-ups of all models that answer, from one run."""
    able = [
        outcome.subject
        for row, outcome in zip(rows, outcomes, strict=True)
        if outcome.subject is not None and row.error is None
    ]
    times = compare(folder, [held_out.original, *able], held_out.items.feed([0]), processes)
    done = []
    for row in rows:
        row = replace(row, milliseconds=round(times.milliseconds, 4), error=row.error or times.failures.get(row.tool))
        speedups = tuple(round(speedup, 4) for speedup in times.speedups.get(row.tool, ()))
        done.append(replace(row, speedups=speedups, speedup=median(speedups)))
    return done


def rows_key(case: Case, tools: Sequence[Tool], processes: int) -> str:
    """What the rows of a case depend on."""
    given = [case.count, case.metric, case.judged, case.max_drop, case.threads, processes]
    return hashlib.sha256(json.dumps([given, [(tool.name, code(tool)) for tool in tools]]).encode()).hexdigest()


def rows_of(case: Case, tools: Sequence[Tool], work: Path, processes: int) -> list[Row]:
    """The rows of a case: those of an earlier run with the same tools, or from a run now."""
    kept, key = work / case.name / "rows.json", rows_key(case, tools, processes)
    if kept.exists() and (content := json.loads(kept.read_text()))["key"] == key:
        return [Row.of(row) for row in content["rows"]]
    rows = one_case(case, tools, work, processes)
    if all(row.wall_seconds for row in rows):
        kept.write_text(json.dumps({"key": key, "rows": [row.to_json() for row in rows]}))
    return rows


def one_case(case: Case, tools: Sequence[Tool], work: Path, processes: int) -> list[Row]:
    """All tools on one model. Where the original cannot be judged or timed, every row says why."""
    machine = f"{cpu.detect().label}, {os.cpu_count()} cores"
    date = datetime.now(UTC).isoformat(timespec="seconds")
    row = Row(case.name, "", machine, date, case.metric, case.max_drop, 0)
    assert case.items is not None, "a case of this bench has items"
    try:
        source = bring(case, work)
        items = split(case.items(case.count, work))
        held_out = HeldOut(case, source, items, work / case.name / "held-out")
        row = replace(row, metric=held_out.reference.metric.value, items=len(held_out.items))
        if held_out.reference.no_evidence is not None:
            print(f"{case.name}: {held_out.reference.no_evidence}", file=sys.stderr)
        rows, outcomes = [], []
        for tool in tools:
            print(f"{case.name}: {tool.name}", file=sys.stderr)
            outcomes.append(made(tool, case, held_out, source, items, work))
            rows.append(judged(replace(row, tool=tool.name), outcomes[-1], held_out))
        print(f"{case.name}: timing", file=sys.stderr)
        return timed(rows, outcomes, held_out, work / case.name / "timing", processes)
    except (FettleError, RuntimeError, subprocess.CalledProcessError) as error:
        return [replace(row, tool=tool.name, error=" ".join(str(error).split())[:300]) for tool in tools]


def median(speedups: Sequence[float]) -> float | None:
    """The middle of some; None for none."""
    return round(statistics.median(speedups), 4) if speedups else None


def main() -> None:
    """Parse the command line and run the cases, one after the other; the results are written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=CASES, help="cases; all when none is given")
    parser.add_argument("--tool", nargs="+", metavar="TOOL", choices=TOOLS, help="tools; all when none is given")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is done")
    parser.add_argument("--again", action="store_true", help="let tools make their models again")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no other model is begun")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="in which models are timed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that rows are written into")
    parser.add_argument(
        "--markdown", action="store_true", help="run nothing: print the results for a page of documentation"
    )
    options = parser.parse_args()
    if options.markdown:
        print(markdown(read(options.results)))
        return
    logging.disable(logging.INFO)
    tools = [TOOLS[name] for name in options.tool or TOOLS]
    began = time.monotonic()
    for case in (CASES[name] for name in options.only or CASES):
        if time.monotonic() - began > options.limit:
            print(f"{case.name}: not begun, because {options.limit:g} s are over", file=sys.stderr)
            continue
        if options.again:
            (options.work / case.name / "rows.json").unlink(missing_ok=True)
            for tool in tools:
                shutil.rmtree(options.work / case.name / tool.name, ignore_errors=True)
        now = rows_of(case, tools, options.work, options.processes)
        write(options.results, merged(read(options.results), now, [*CASES], [*TOOLS]))
    rows = read(options.results)
    Console(width=200).print(table(rows))
    print(*summary(rows), sep="\n")


if __name__ == "__main__":
    main()
