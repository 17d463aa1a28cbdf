"""What techniques that train gain and lose on real tasks: `python -m bench.train [TASK…] [--work FOLDER] [--again] [--shared]`.

For each task of `bench/train_tasks.py`: a net learns it, and `fettle optimize` builds every recipe and measures all of them in full, whatever they
lose. Items are split in three: a part trains, a part certifies, and a part is seen by nothing. What is certified is held against the last:
`promiseHeld` says whether it lost no more there than was allowed. `gain` is the speed-up over the same net in the same runtime in float32: what the
technique brings beside the conversion. Each task's rows are written into bench/results/train.json at its end, where rows of other tasks stay. About
ten minutes for each task on two cores. What is done stays in FOLDER: a run that was stopped goes on there. Needs espeak-ng and a quiet machine;
`--shared` says in the rows that it was none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bench.claims import runner
from bench.optimizing import fettle_optimize, optimized_model, span
from bench.train_tasks import PLAIN, RECIPES, SEED, TASKS, Array, Task, learned
from rich.console import Console
from rich.table import Table
from tools.serving import open_store

from fettle.runtimes import cpu
from fettle.store.manifest import MODEL_FOLDER, copy_artifact, model_entry

RESULTS = Path(__file__).parent / "results" / "train.json"
SHARES = {"training": 0.45, "evaluation": 0.4}  # the rest is seen by nothing
UNSEEN = "unseen"
DEADLINE_SECONDS = 14_400
Row = dict[str, Any]
COLUMNS = [
    "MODEL",
    "RECIPE",
    "RUNTIME",
    "SPEEDUP",
    "GAIN",
    "DROP",
    "PARAMETERS",
    "KB",
    "PACKED",
    "TRAINED",
    "STATE",
    "UNSEEN",
    "PROMISE",
]


def split(items: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Training, evaluation and unseen items: three disjoint parts in a random order."""
    order = np.random.default_rng(SEED).permutation(len(items["labels"]))
    first = int(len(order) * SHARES["training"])
    second = first + int(len(order) * SHARES["evaluation"])
    places = {"training": order[:first], "evaluation": order[first:second], UNSEEN: order[second:]}
    return {name: {key: array[chosen] for key, array in items.items()} for name, chosen in places.items()}


def specification(task: Task) -> dict[str, Any]:
    """The task's OptimizedModel, its files beside it."""
    spec = {
        "source": {"uri": "model.pt2"},
        "data": {
            "evaluation": {"uri": "evaluation.npz", "metric": task.metric},
            "calibration": {"uri": "training.npz"},
            "training": {"uri": "training.npz"},
        },
        "targets": [{"name": "cpu", "runtimes": list(task.runtimes), "threads": 1}],
        "recipes": [{"name": name, "steps": RECIPES[name], "train": dict(task.train)} for name in task.recipes],
        "constraints": {"accuracy": {"maxDrop": task.max_drop}},
        "search": {"deadlineSeconds": DEADLINE_SECONDS, "strategy": "Exhaustive", "parallelism": 1},
    }
    return optimized_model(task.name, spec)


def bring(task: Task, folder: Path) -> None:
    """The task's data and its trained net in `folder`, last of all the net."""
    parts = split(task.items())
    for name, items in parts.items():
        np.savez(folder / f"{name}.npz", **items)  # type: ignore[arg-type]
    example = (torch.from_numpy(parts["training"][task.input][:2]),)
    module = learned(task, parts["training"])
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    partial = folder / "partial.pt2"
    torch.export.save(torch.export.export(module, example, dynamic_shapes=shapes), partial)
    partial.rename(folder / "model.pt2")


def optimize(task: Task, folder: Path, machine: str) -> list[Row]:
    """Run the task to its end; a row for each candidate."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.pt2").exists():
        bring(task, folder)
    path, began = folder / "optimizedmodel.yaml", time.monotonic()
    path.write_text(yaml.safe_dump(specification(task), sort_keys=False))
    candidates = fettle_optimize(path, folder / "store", folder / "progress.log").status.get("candidates")
    if not candidates:
        raise RuntimeError(
            f"{task.name}: no candidate: see {folder / 'progress.log'}, and the logs in {folder / 'store'}"
        )
    trained = dict(trainings(folder / "store"))
    shared = {
        "cpu": cpu.detect().label,
        "machine": machine,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "runSeconds": round(time.monotonic() - began),
    }
    rows = [row_of(task, one) | trained.get(one["recipe"], {}) | shared for one in candidates]
    plain = {row["runtime"]: row for row in rows if row["recipe"] == PLAIN}
    for row, one in zip(rows, candidates, strict=True):
        row["gain"] = gain(row, plain.get(row["runtime"]))
        if one.get("artifact"):
            row.update(looked_at(task, folder, one["artifact"]))
        row["promiseHeld"] = keeps(row)
    return rows


def row_of(task: Task, candidate: Mapping[str, Any]) -> Row:
    """What status says of a candidate."""
    return {
        "model": task.name,
        "recipe": candidate["recipe"],
        "runtime": candidate["runtime"],
        "metric": task.metric,
        "maxDrop": task.max_drop,
        "speedup": candidate.get("speedup"),
        "drop": candidate.get("accuracyDrop"),
        "bytes": candidate.get("bytes"),
        "state": candidate["state"],
        "reason": candidate.get("reason"),
        "message": candidate.get("message"),
    }


def trainings(store: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """By recipe: parameters before and after its last training, and the seconds of all of them."""
    seconds: dict[str, float] = {}
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((store / "results").glob("*.json"), key=lambda path: path.stat().st_mtime):
        report = json.loads(path.read_text())
        if report.get("kind") != "build" or "training" not in report:
            continue
        recipe, figures = report["name"].partition("-torchscript")[0], report["training"]
        seconds[recipe] = seconds.get(recipe, 0.0) + report["seconds"]
        found[recipe] = {
            "parametersBefore": figures["parametersBefore"],
            "parametersAfter": figures["parametersAfter"],
            "trainSeconds": round(seconds[recipe], 1),
        }
    yield from found.items()


def gain(row: Row, plain: Row | None) -> dict[str, float] | None:
    """How many times as fast as the original in the same runtime; both were timed in turns with the same baseline. The interval is not too narrow,
    since both speed-ups may be at opposite ends of theirs."""
    if plain is None or row["speedup"] is None or plain["speedup"] is None:
        return None
    own, other = row["speedup"], plain["speedup"]
    if row is plain:
        return {"value": 1.0, "low": 1.0, "high": 1.0}
    return {
        "value": own["value"] / other["value"],
        "low": own["low"] / other["high"],
        "high": own["high"] / other["low"],
    }


def looked_at(task: Task, folder: Path, artifact: str) -> Row:
    """The size of an artifact's files when they are compressed, and what it loses on items that nothing has seen."""
    with np.load(folder / f"{UNSEEN}.npz") as stored:
        items = {name: stored[name] for name in stored.files}
    with tempfile.TemporaryDirectory() as name:
        manifest = copy_artifact(open_store(folder / "store"), artifact, Path(name))
        files = [path for path in (Path(name) / MODEL_FOLDER).rglob("*") if path.is_file()]
        compressed = sum(len(zlib.compress(path.read_bytes())) for path in files)
        run = runner(model_entry(Path(name), manifest), manifest.runtime.value, manifest.settings.to_json())
        given = np.stack([run({task.input: item[None]})[0][0] for item in items[task.input]])
    original = torch.export.load(folder / "model.pt2").module()
    with torch.inference_mode():
        wanted = np.stack([original(torch.from_numpy(item[None])).numpy()[0] for item in items[task.input]])
    score = SCORES[task.metric]
    drop = score(wanted, items["labels"]) - score(given, items["labels"])
    return {"compressedBytes": compressed, "unseenDrop": float(f"{drop:.6g}"), "unseen": len(given)}


def accuracy(answers: Array, labels: Array) -> float:
    """The share of right classes."""
    return float(np.mean(answers.argmax(1) == labels))


def exact(answers: Array, labels: Array) -> float:
    """The mean squared error, negated: more is better, as of every score."""
    return -float(np.mean(np.square(answers - labels)))


SCORES: dict[str, Callable[[Array, Array], float]] = {"Accuracy": accuracy, "MeanSquaredError": exact}


def keeps(row: Row) -> bool | None:
    """Whether what was certified loses no more than was allowed on the unseen items; None if it was not certified."""
    if row["drop"] is None or row["drop"]["high"] > row["maxDrop"] or "unseenDrop" not in row:
        return None
    return bool(row["unseenDrop"] <= row["maxDrop"])


def merged(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Rows in the order of the tasks; those of `now` replace earlier ones of the same tasks."""
    done = {row["model"] for row in now}
    rows = [*(row for row in before if row["model"] not in done and row["model"] in TASKS), *now]
    return sorted(rows, key=lambda row: list(TASKS).index(row["model"]))


def written(rows: Sequence[Row]) -> None:
    """Write rows of a task beside those of others."""
    RESULTS.parent.mkdir(exist_ok=True)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps(merged(before, rows), indent=2) + "\n")


def table(rows: Sequence[Row]) -> Table:
    """The results for a person."""
    made = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*cells(row))
    return made


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    unseen = row.get("unseenDrop")
    return (
        row["model"],
        row["recipe"],
        row["runtime"],
        span(row["speedup"], "2f"),
        span(row["gain"], "2f"),
        span(row["drop"], "4g" if abs(row["maxDrop"]) < 0.001 else "4f"),
        f"{row['parametersAfter'] / row['parametersBefore']:.0%}" if "parametersAfter" in row else "",
        *(f"{row[name] / 1000:.0f}" if row.get(name) else "" for name in ("bytes", "compressedBytes")),
        f"{row['trainSeconds']:.0f} s" if "trainSeconds" in row else "",
        f"{row['state']} {row['reason'] or ''}",
        f"{unseen:.4g}" if unseen is not None else "",
        {True: "held", False: "BROKEN", None: ""}[row["promiseHeld"]],
    )


def main() -> None:
    """Parse the command line; exit status 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TASK", help="tasks; all of them when none is given")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "fettle-train", help="folder for what is done"
    )
    parser.add_argument("--again", action="store_true", help="do what is done again, from an empty store")
    parser.add_argument("--shared", action="store_true", help="say in the rows that the machine had other work")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(TASKS))
    if unknown:
        parser.error(f"no such task: {', '.join(unknown)}; there are {', '.join(TASKS)}")
    machine = f"{cpu.usable_cores()} of {os.cpu_count()} cores{', shared with other work' if options.shared else ''}"
    rows: list[Row] = []
    for task in (TASKS[name] for name in options.names or TASKS):
        folder = options.work / task.name
        if options.again:
            shutil.rmtree(folder, ignore_errors=True)
        kept = folder / "result.json"
        if not kept.exists():
            began = time.monotonic()
            found = optimize(task, folder, machine)
            kept.write_text(json.dumps(found))
            print(f"{task.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        rows += json.loads(kept.read_text())
        written(rows)
    Console(width=220).print(table(rows))
    broken = [f"{row['model']} {row['recipe']}" for row in rows if row["promiseHeld"] is False]
    sys.exit(f"broken promises: {', '.join(broken)}" if broken else 0)


if __name__ == "__main__":
    main()
