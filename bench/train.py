"""What techniques that train gain and lose on real tasks: `python -m bench.train [TASK…] [--work FOLDER] [--again]`.

For each task of `bench/train_tasks.py`: a net learns it, and `fettle optimize` tries every recipe on two runtimes. Items are split in three:
a part trains, a part certifies, and a part is seen by nothing. What is published is held against the last: `promiseHeld` says whether it lost no
more there than was allowed. Prints a table and writes bench/results/train.json. Some hours on two cores; what is done stays in FOLDER. Needs
espeak-ng and a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bench.claims import runner
from bench.train_tasks import RECIPES, SEED, TASKS, Array, Task, learned
from rich.console import Console
from rich.table import Table

from fettle.api.base import API_VERSION
from fettle.runtimes import cpu

RESULTS = Path(__file__).parent / "results" / "train.json"
SHARES = {"training": 0.45, "evaluation": 0.4}  # the rest is seen by nothing
DEADLINE_SECONDS = 14_400


def split(items: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """Training, evaluation and unseen items: three disjoint parts in a random order."""
    order = np.random.default_rng(SEED).permutation(len(items["labels"]))
    first = int(len(order) * SHARES["training"])
    second = first + int(len(order) * SHARES["evaluation"])
    places = {"training": order[:first], "evaluation": order[first:second], "unseen": order[second:]}
    return {name: {key: array[chosen] for key, array in items.items()} for name, chosen in places.items()}


def specification(task: Task) -> dict[str, Any]:
    """The task's OptimizedModel, its files beside it."""
    spec = {
        "source": {"uri": "model.pt2"},
        "data": {"evaluation": {"uri": "evaluation.npz"}, "training": {"uri": "training.npz"}},
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime", "openvino"], "threads": 1}],
        "recipes": [{"name": name, "steps": RECIPES[name], "train": {"patience": 8}} for name in task.recipes],
        "constraints": {"accuracy": {"maxDrop": task.max_drop}},
        "search": {"deadlineSeconds": DEADLINE_SECONDS},
    }
    return {"apiVersion": API_VERSION, "kind": "OptimizedModel", "metadata": {"name": task.name}, "spec": spec}


def bring(task: Task, folder: Path) -> dict[str, dict[str, Array]]:
    """The task's data and its trained net in `folder`."""
    parts = split(task.items())
    for name in SHARES:
        np.savez(folder / f"{name}.npz", **parts[name])  # type: ignore[arg-type]
    example = (torch.from_numpy(parts["training"][task.input][:2]),)
    module = learned(task, parts["training"])
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=shapes), folder / "model.pt2")
    (folder / "optimizedmodel.yaml").write_text(yaml.safe_dump(specification(task), sort_keys=False))
    return parts


def optimize(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Run the task to its end; a row for each candidate."""
    folder.mkdir(parents=True)
    parts = bring(task, folder)
    command = [sys.executable, "-m", "fettle.cli.main", "optimize", "-f", str(folder / "optimizedmodel.yaml")]
    command += ["--store", str(folder / "store"), "-o", "json"]
    began = time.monotonic()
    with (folder / "progress.log").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    status = json.loads(done.stdout)["status"]
    published = {one["sha256"] for one in status.get("artifacts", ())}
    trained = dict(trainings(folder / "store"))
    rows = []
    for one in status["candidates"]:
        row = {
            "model": task.name,
            "recipe": one["recipe"],
            "runtime": one["runtime"],
            "speedup": one.get("speedup"),
            "drop": one.get("accuracyDrop"),
            "bytes": one.get("bytes"),
            "state": one["state"],
            "reason": one.get("reason"),
            "message": one.get("message"),
            "cpu": cpu.detect().label,
            "runSeconds": round(time.monotonic() - began),
            **trained.get(one["recipe"], {}),
        }
        if one.get("artifact") in published:
            row |= held(task, folder / "store", one["artifact"], parts["unseen"])
        rows.append(row)
    return rows


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


def held(task: Task, store: Path, artifact: str, unseen: dict[str, Array]) -> dict[str, Any]:
    """Whether what is published keeps its promise on items that nothing has seen."""
    manifest = json.loads((store / "artifacts" / artifact / "manifest.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        for file in manifest["files"]:
            target = Path(folder) / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store / "blobs" / file["sha256"], target)
        run = runner(Path(folder) / manifest["entry"], manifest["runtime"], manifest["settings"])
        answers = [run({task.input: item[None]})[0] for item in unseen[task.input]]
    original = torch.export.load(store.parent / "model.pt2").module()
    with torch.inference_mode():
        wanted = [original(torch.from_numpy(item[None])).numpy() for item in unseen[task.input]]
    right, before = (
        float(np.mean([answer.argmax() == label for answer, label in zip(given, unseen["labels"], strict=True)]))
        for given in (answers, wanted)
    )
    return {"unseenDrop": before - right, "unseen": len(answers), "promiseHeld": before - right <= task.max_drop}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The results for a person."""
    made = Table(box=None, pad_edge=False)
    for name in ("MODEL", "RECIPE", "RUNTIME", "SPEEDUP", "DROP", "PARAMETERS", "BYTES", "TRAINED", "STATE", "PROMISE"):
        made.add_column(name, overflow="fold")
    for row in rows:
        speed, drop = row.get("speedup"), row.get("drop")
        promise = {True: "held", False: "BROKEN", None: ""}[row.get("promiseHeld")]
        made.add_row(
            row["model"],
            row["recipe"],
            row["runtime"],
            f"{speed['value']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]" if speed else "",
            f"{drop['value']:.4f} [{drop['low']:.4f}, {drop['high']:.4f}]" if drop else "",
            f"{row['parametersAfter'] / row['parametersBefore']:.0%}" if "parametersAfter" in row else "",
            str(row.get("bytes") or ""),
            f"{row['trainSeconds']} s" if "trainSeconds" in row else "",
            f"{row['state']} {row.get('reason') or ''}",
            promise,
        )
    return made


def main() -> None:
    """Parse the command line; exit status 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TASK", help="tasks; all of them when none is given")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "fettle-train", help="folder for what is done"
    )
    parser.add_argument("--again", action="store_true", help="do what is done again, from an empty store")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(TASKS))
    if unknown:
        parser.error(f"no such task: {', '.join(unknown)}; there are {', '.join(TASKS)}")
    rows: list[dict[str, Any]] = []
    for task in (TASKS[name] for name in options.names or TASKS):
        folder = options.work / task.name
        kept = folder / "result.json"
        if folder.exists() and (options.again or not kept.exists()):
            shutil.rmtree(folder)
        if not kept.exists():
            kept.write_text(json.dumps(optimize(task, folder)))
        rows += json.loads(kept.read_text())
    RESULTS.parent.mkdir(exist_ok=True)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    others = [row for row in before if row["model"] not in {row["model"] for row in rows}]
    RESULTS.write_text(json.dumps([*others, *rows], indent=2) + "\n")
    Console(width=200).print(table(rows))
    broken = [row["model"] for row in rows if row.get("promiseHeld") is False]
    sys.exit(f"broken promises: {', '.join(broken)}" if broken else 0)


if __name__ == "__main__":
    main()
