"""Takes a model of each source format from its file to a served artifact:

    python -m bench.formats [TOOLCHAIN…] [--work FOLDER] [--limit SECONDS] [--again]

Each model, which others trained, is optimized in the environment that has its framework; the environments are made where they are not there
(`tools/toolchains`). What Fettle converted is held against the framework's own answers, and what is published is served and asked for the answers
that its manifest promises (`bench/format_cases.py`). What is done stays in FOLDER and is not done again, so a run may be stopped at any time;
`--limit` starts nothing new after that many seconds. Writes each row to bench/results/formats.json as it ends, and prints a table. The times are
those of a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.format_case import WHEELS, Case
from bench.format_cases import CASES, OWN
from bench.optimizing import span
from bench.peers.environments import ROOT
from bench.wheels import unpack
from rich.console import Console
from rich.table import Table
from tools.cluster.shell import Progress
from tools.toolchains import environment
from tools.toolchains.toolchain import toolchains

from fettle.runtimes import cpu

RESULTS = Path(__file__).parent / "results" / "formats.json"
KEYS = ("format", "package", "cpu", "originalMilliseconds", "winner", "speedup", "drop", "outputsEqual", "served")
_LAST = 300  # characters of what a case said that failed


def interpreter(name: str) -> str:
    """Python of the environment that has a toolchain."""
    if name == OWN:
        return sys.executable
    (toolchain,) = toolchains((name,))
    return str(environment.make(toolchain, Progress(name)))


def rows(name: str, work: Path, until: float) -> Iterator[dict[str, Any]]:
    """The rows of a toolchain's cases as they end. A case that was done is not done again, and none begins after `until`."""
    python = ""
    for number, case in enumerate(CASES[name]):
        kept = work / f"{name}-{number}" / "row.json"
        if kept.exists():
            yield json.loads(kept.read_text())
        elif time.monotonic() < until:
            python = python or interpreter(name)
            row = ended(case, [python, "-m", "bench.format_cases", name, str(number), str(work)], work)
            if passed(row):
                kept.write_text(json.dumps(row))
            yield row


def ended(case: Case, command: Sequence[str], work: Path) -> dict[str, Any]:
    """The row of a case that is run by `command`; where it fails, with the end of what it said."""
    if wheels := WHEELS.get(case.package):
        unpack(wheels, work)
    told = {**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=told, cwd=ROOT)
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    said = " ".join(done.stderr.split())[-_LAST:]
    head = {"format": case.format, "package": case.package, "cpu": cpu.detect().label}
    return head | {"served": False, "reason": f"exit status {done.returncode}: {said}"}


def passed(row: dict[str, Any]) -> bool:
    """Whether the model came to a served artifact, and what was converted answers as its framework does."""
    return bool(row["served"]) and row.get("outputsEqual") is not False


def keep(row: dict[str, Any]) -> None:
    """Write the row into the results, in the place of an earlier one of the same model."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    found = {(one["format"], one["package"]): one for one in before}
    found[row["format"], row["package"]] = {key: row.get(key) for key in KEYS}
    order = [(case.format, case.package) for cases in CASES.values() for case in cases]
    RESULTS.write_text(json.dumps([found[place] for place in order if place in found], indent=2) + "\n")


def table(results: Sequence[dict[str, Any]]) -> Table:
    """The results for a person."""
    made = Table(box=None, pad_edge=False)
    for name in ("FORMAT", "PACKAGE", "MS", "WINNER", "SPEEDUP", "DROP", "OUTPUTS EQUAL", "SERVED"):
        made.add_column(name, overflow="fold")
    for row in results:
        milliseconds = row.get("originalMilliseconds")
        made.add_row(
            row["format"],
            row["package"],
            f"{milliseconds:.3f}" if milliseconds is not None else "",
            row.get("winner") or str(row["reason"]),
            span(row.get("speedup")),
            span(row.get("drop"), "3f"),
            {True: "yes", False: "no", None: "nothing converted"}[row.get("outputsEqual")],
            "yes" if row["served"] else "no",
        )
    return made


def main() -> None:
    """Exit status 1 where a model does not come to a served artifact, or its outputs are not those of its framework."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "toolchains", nargs="*", metavar="TOOLCHAIN", help=f"of {', '.join(CASES)}; all where none is given"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "fettle-formats", help="folder for what is done"
    )
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no other model is begun")
    parser.add_argument("--again", action="store_true", help="do what is done again, from an empty store")
    options = parser.parse_args()
    if unknown := sorted(set(options.toolchains) - set(CASES)):
        parser.error(f"no such toolchain: {', '.join(unknown)}; there are {', '.join(CASES)}")
    until, results = time.monotonic() + options.limit, []
    for name in options.toolchains or CASES:
        if options.again:
            for folder in options.work.glob(f"{name}-*"):
                shutil.rmtree(folder)
        for row in rows(name, options.work, until):
            keep(row)
            results.append(row)
            print(json.dumps(row), file=sys.stderr)
    Console(width=180).print(table(results))
    failed = [f"{row['format']} ({row['package']})" for row in results if not passed(row)]
    sys.exit(f"not served as promised, or not equal: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
