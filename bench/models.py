"""Takes other people's models through `fettle optimize` to the end, and holds what is published against `bench/claims.py`.

    python -m bench.models [NAME…] [--work FOLDER] [--limit SECONDS] [--again]

For each case of `bench/model_catalog.py`: its model (out of a wheel of PyPI, or made), its data, the default plan, the end state, the claims of the
published artifact in 5 fresh processes. What is done stays in FOLDER and is not done again, so a run may be stopped at any time; `--limit`
starts nothing new after that many seconds. Prints a table and writes bench/results/models.json. Needs espeak-ng and a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench import claims
from bench.model_catalog import CASES, READY, Case
from bench.optimizing import fettle_optimize, optimized_model, ready, span
from bench.wheels import unpack
from rich.console import Console
from rich.table import Table

from fettle.runtimes import cpu

RESULTS = Path(__file__).parent / "results" / "models.json"
DEADLINE_SECONDS = 1800


def bring(case: Case, work: Path) -> Path:
    """The case's model file, alone in a folder with what belongs to it."""
    wheels = unpack(case.wheels, work) if case.wheels else work
    if case.write is None:
        return wheels / case.path
    folder = work / case.name / "model"
    folder.mkdir(parents=True, exist_ok=True)
    return case.write(wheels, folder)


def specification(case: Case, source: str, items: str) -> dict[str, Any]:
    """The case's `spec`, with its model at `source` and its data, where it has some, at `items`."""
    spec: dict[str, Any] = {
        "source": {"uri": source, "inputs": list(case.inputs)},
        "targets": [
            {"name": "cpu", "threads": case.threads, **({"runtimes": list(case.runtimes)} if case.runtimes else {})}
        ],
        "search": {"deadlineSeconds": DEADLINE_SECONDS},
    }
    if case.items is not None:
        spec["data"] = {"evaluation": {"uri": items, "metric": case.metric, **case.judged}}
        spec["constraints"] = {"accuracy": {"maxDrop": case.max_drop}}
    return spec


def write_items(case: Case, work: Path) -> None:
    """The case's data, where it has some, as `items.npz` in its folder."""
    folder = work / case.name
    folder.mkdir(parents=True, exist_ok=True)
    if case.items is not None:
        np.savez(folder / "items.npz", **case.items(case.count, work))  # type: ignore[arg-type]


def manifest(case: Case, work: Path) -> Path:
    """The case's OptimizedModel as a file, its data beside it."""
    folder = work / case.name
    write_items(case, work)
    path = folder / "optimizedmodel.yaml"
    made = optimized_model(case.name, specification(case, str(bring(case, work)), "items.npz"))
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    return path


def optimize(case: Case, work: Path) -> dict[str, Any]:
    """Run the case to its end; its row of the table."""
    path, store = manifest(case, work), work / case.name / "store"
    began, log = time.monotonic(), work / case.name / "progress.log"
    done = fettle_optimize(path, store, log, "--measure-seconds", str(case.seconds))
    row = head(case, time.monotonic() - began)
    if not done.status:
        return row | {"reason": f"exit status {done.exit_status}", "message": done.last, "asExpected": False}
    row |= ended(case, done.status) | {"exitStatus": done.exit_status}
    row["asExpected"] &= (done.exit_status == 0) == (case.expected == READY)
    return row | claim(case, done.status, store)


def head(case: Case, seconds: float) -> dict[str, Any]:
    """What each row of the table begins with."""
    machine = f"{cpu.detect().label}, {os.cpu_count()} cores"
    return {"model": case.name, "kind": case.kind, "cpu": machine, "seconds": round(seconds)}


def ended(case: Case, status: dict[str, Any]) -> dict[str, Any]:
    """How a run ended, of what its status says."""
    told = ready(status)
    row: dict[str, Any] = {"reason": told["reason"], "message": told.get("message", "")}
    row["asExpected"] = told["reason"] == case.expected
    row["candidates"] = {one["name"]: one.get("reason") or one["state"] for one in status.get("candidates", ())}
    for baseline in status.get("baselines", ())[:1]:
        row["baselineMilliseconds"] = baseline["measurements"][0]["latencyMilliseconds"].get("p50")
    return row


def claim(case: Case, status: dict[str, Any], store: Path) -> dict[str, Any]:
    """The winner, and what it claims against what is found; nothing where nothing is published."""
    for artifact in status.get("artifacts", ())[:1]:
        winner = next(one for one in status["candidates"] if one["state"] == "Selected")
        row = {"winner": winner["name"], "exact": winner.get("exact"), "drop": winner.get("accuracyDrop")}
        return row | {"claim": asdict(claims.check(store, artifact["sha256"], case.processes))}
    return {}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The results for a person."""
    made = Table(box=None, pad_edge=False)
    for name in ("MODEL", "KIND", "MS", "END", "WINNER", "SPEEDUP CLAIMED", "FOUND", "DROP", "CLAIM"):
        made.add_column(name, overflow="fold")
    for row in rows:
        claim, drop = row.get("claim"), row.get("drop")
        verdict = {True: "holds", False: "BROKEN", None: ""}[claim["holds"] if claim else None]
        lost = "none" if row.get("exact") else span(drop, "3f")
        end = row["reason"] if row["asExpected"] else f"{row['reason']} (NOT AS EXPECTED)"
        milliseconds = f"{row['baselineMilliseconds']:.2f}" if row.get("baselineMilliseconds") else ""
        found = f"{claim['found']:.2f}" if claim else ""
        made.add_row(
            row["model"], row["kind"], milliseconds, end, row.get("winner", ""), span(claim), found, lost, verdict
        )
    return made


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The speed-ups of the models that other people made and that were published: their geometric mean and their median."""
    others = [row["claim"]["value"] for row in rows if row.get("claim") and CASES[row["model"]].wheels]
    if not others:
        return "no model from a wheel was published"
    mean, median = statistics.geometric_mean(others), statistics.median(others)
    return f"{len(others)} models from wheels: speed-up {mean:.2f} (geometric mean), {median:.2f} (median)"


def keep(rows: Sequence[dict[str, Any]], results: Path = RESULTS) -> None:
    """Write `rows` into the results, in the place of earlier ones of the same models on the same class of CPU."""
    results.parent.mkdir(exist_ok=True)
    before = json.loads(results.read_text()) if results.exists() else []
    found = {(row["cpu"], row["model"]): row for row in (*before, *rows)}
    names = list(CASES)
    ordered = sorted(found.values(), key=lambda row: (row["cpu"], names.index(row["model"])))
    results.write_text(json.dumps(ordered, indent=2) + "\n")


def main() -> None:
    """Parse the command line; exit status 1 when an end state or a claim is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases; all of them when none is given")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "fettle-models", help="folder for what is done"
    )
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no other model is begun")
    parser.add_argument("--again", action="store_true", help="do what is done again, from an empty store")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(CASES))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    began, rows = time.monotonic(), []
    for case in (CASES[name] for name in options.names or CASES):
        kept = options.work / case.name / "result.json"
        if options.again and kept.parent.exists():
            shutil.rmtree(kept.parent)
        if not kept.exists():
            if time.monotonic() - began > options.limit:
                continue
            row = optimize(case, options.work)
            kept.write_text(json.dumps(row))
        rows.append(json.loads(kept.read_text()))
        print(json.dumps(rows[-1]), file=sys.stderr)
    keep(rows)
    Console(width=200).print(table(rows))
    Console(width=200).print(summary(rows))
    judge(rows)


def judge(rows: Sequence[dict[str, Any]]) -> None:
    """Exit status 1 when an end state or a claim is not what it should be."""
    broken = [row["model"] for row in rows if not row["asExpected"] or not row.get("claim", {"holds": True})["holds"]]
    sys.exit(f"not as they should be: {', '.join(broken)}" if broken else 0)


if __name__ == "__main__":
    main()
