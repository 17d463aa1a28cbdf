"""Several models of one kind timed in turns, by `bench/claims.py`'s own means: `python -m bench.side_by_side FOLDER` is one process of it.

FOLDER holds `subjects.json`, a list of `Subject`, and `feed.npz`, one run's inputs. The first subject is what the others are compared with.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench.claims import ROUNDS, block, runner

PROCESSES = 5


@dataclass(frozen=True)
class Subject:
    """A model's file and what runs it, with settings as a manifest has them."""

    name: str
    entry: str
    runtime: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Timed:
    """`milliseconds`: the median of the first subject's. `speedups`: by the others' names, one of each process. `failures`: why one has none."""

    milliseconds: float
    speedups: dict[str, tuple[float, ...]]
    failures: dict[str, str]


def one_process(folder: Path) -> dict[str, Any]:
    """Time all subjects in turns, each round in another order; runs in a fresh process."""
    subjects = [Subject(**content) for content in json.loads((folder / "subjects.json").read_text())]
    with np.load(folder / "feed.npz", allow_pickle=False) as stored:
        feed = {name: stored[name] for name in stored.files}
    loaded, failures = {}, {}
    for subject in subjects:
        try:
            loaded[subject.name] = runner(Path(subject.entry), subject.runtime, subject.settings)
            loaded[subject.name](feed)
        except Exception as error:  # noqa: BLE001  the libraries raise what they like; it is this model's failure alone
            loaded.pop(subject.name, None)
            failures[subject.name] = " ".join(str(error).split())[:300]
    # With one thread, time on the processor: what others of this machine take from it is not the model's.
    clock = time.process_time if subjects[0].settings["threads"] == 1 else time.perf_counter
    medians: dict[str, list[float]] = {name: [] for name in loaded}
    for number in range(ROUNDS):
        for name in random.Random(number).sample(list(loaded), len(loaded)):
            medians[name].append(block(loaded[name], feed, clock))
    return {"medians": medians, "failures": failures}


def compare(folder: Path, subjects: Sequence[Subject], feed: dict[str, Any], processes: int = PROCESSES) -> Timed:
    """Time `subjects` in that many fresh processes, one after the other. Raises RuntimeError where the first cannot be run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "subjects.json").write_text(json.dumps([asdict(subject) for subject in subjects]))
    np.savez(folder / "feed.npz", **feed)
    return gathered([_fresh(folder) for _ in range(processes)], subjects[0].name)


def _fresh(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.side_by_side", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"timing ended with {done.returncode}: {done.stderr[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def gathered(runs: Sequence[dict[str, Any]], first: str) -> Timed:
    """What the processes found: the median over rounds of the ratio within each round. Raises RuntimeError where `first` did not run."""
    failures = {name: text for run in runs for name, text in run["failures"].items()}
    if first in failures:
        raise RuntimeError(f"{first} does not run: {failures[first]}")
    others = [name for name in runs[0]["medians"] if name != first and name not in failures]
    speedups = {
        name: tuple(
            statistics.median(a / b for a, b in zip(run["medians"][first], run["medians"][name], strict=True))
            for run in runs
        )
        for name in others
    }
    milliseconds = 1000 * statistics.median(statistics.median(run["medians"][first]) for run in runs)
    return Timed(milliseconds, speedups, failures)


if __name__ == "__main__":
    print(json.dumps(one_process(Path(sys.argv[1]))))
