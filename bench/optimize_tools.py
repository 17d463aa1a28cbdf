"""Runs a tool on a model: a peer's own flow in a process of its own, or `fettle optimize`. What comes out is a model file and what runs it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench.model_catalog import Case
from bench.models import specification
from bench.optimize_rows import FETTLE, Split
from bench.optimizing import optimized_model, printed, ready
from bench.peers.environments import REQUIREMENTS, ROOT, EnvironmentFailure, python
from bench.side_by_side import Subject
from tools.cluster.shell import last_line

from fettle.store.manifest import copy_artifact, model_entry
from fettle.store.store import Store
from fettle.store.uris import Mounts

PEERS = ROOT / "bench" / "peers"
LIMIT_SECONDS = 3600


@dataclass(frozen=True)
class Tool:
    """`module`: of `bench/peers`. `environment`: the name of its requirements; the locked environment where there is none."""

    name: str
    module: str = ""
    environment: str = ""
    options: dict[str, Any] = field(default_factory=dict)


TOOLS = (
    Tool(FETTLE),
    Tool("openvino-fp32", "openvino", options={"precision": "Float32"}),
    Tool("openvino-bf16", "openvino", options={"precision": "BFloat16"}),
    Tool("nncf", "nncf"),
    Tool("nncf-accuracy-control", "nncf", options={"accuracyControl": True}),
    Tool("ort-static", "ort_tools"),
    Tool("olive", "olive", "olive"),
    Tool("neural-compressor", "neural_compressor", "neural_compressor"),
)
BY_NAME = {tool.name: tool for tool in TOOLS}


@dataclass(frozen=True)
class Outcome:
    """What a tool made: a model, or why there is none."""

    wall_seconds: float
    subject: Subject | None = None
    bytes: int | None = None
    error: str | None = None


def code(tool: Tool) -> str:
    """The digest of what a tool consists of here: what an earlier state of it made says nothing of this one."""
    if tool.name == FETTLE:
        paths = sorted((ROOT / "operator" / "fettle").rglob("*.py"))
    else:
        paths = [PEERS / "job.py", PEERS / f"{tool.module}.py"]
        paths += [REQUIREMENTS / f"{tool.environment}.txt"] if tool.environment else []
    found = hashlib.sha256(json.dumps(tool.options, sort_keys=True).encode())
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def run(tool: Tool, case: Case, job: dict[str, Any], items: Split, folder: Path) -> Outcome:
    """Let `tool` work in `folder`. `job`: what peers are told; `source` in it is the model as its users have it, `code` that of the tool."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, arrays in (("calibration", items.calibration), ("evaluation", items.evaluation)):
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    if tool.name == FETTLE:
        return _fettle(case, job["source"], folder)
    try:
        interpreter = python(tool.environment)
    except EnvironmentFailure as failure:
        return Outcome(0.0, error=str(failure))
    told = {key: value for key, value in job.items() if key not in ("source", "code")} | {"options": tool.options}
    (folder / "job.json").write_text(json.dumps(told))
    return _peer(tool, [str(interpreter), "-m", f"bench.peers.{tool.module}", str(folder)], folder, job["threads"])


def _peer(tool: Tool, command: Sequence[str], folder: Path, threads: int) -> Outcome:
    seconds, error = _timed(command, folder)
    said = folder / "out" / "answer.json"
    if error is None and not said.exists():
        error = "it ended with status 0 and wrote no model"
    if error is not None:
        return Outcome(seconds, error=error)
    answer = json.loads(said.read_text())
    settings = {"threads": threads, "streams": 1, "precision": answer["precision"]}
    subject = Subject(tool.name, str(folder / "out" / answer["entry"]), answer["runtime"], settings)
    size = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file() and path != said)
    return Outcome(seconds, subject, size)


def _fettle(case: Case, source: str, folder: Path) -> Outcome:
    spec = specification(case, source, "evaluation.npz")
    spec["data"] = {
        "calibration": {"uri": "calibration.npz"},
        "evaluation": {"uri": "evaluation.npz", "metric": case.metric, **case.judged},
    }
    spec["constraints"] = {"accuracy": {"maxDrop": case.max_drop}}
    path = folder / "optimizedmodel.yaml"
    path.write_text(yaml.safe_dump(optimized_model(case.name, spec), sort_keys=False))
    command = [sys.executable, "-m", "fettle.cli.main", "optimize", "-f", str(path), "--store", str(folder / "store")]
    seconds, error = _timed([*command, "-o", "json"], folder)
    status = printed((folder / "stdout.log").read_text())
    if not status:
        return Outcome(seconds, error=error or "it printed no status")
    artifacts = status.get("artifacts", ())
    if not artifacts:
        told = ready(status)
        return Outcome(seconds, error=f"{told['reason']}: {told.get('message', '')}")
    store = Store.open("pvc://store", Mounts({"store": folder / "store"}))
    manifest = copy_artifact(store, artifacts[0]["sha256"], folder / "artifact")
    entry = str(model_entry(folder / "artifact", manifest))
    settings = manifest.settings.to_json()
    return Outcome(seconds, Subject(FETTLE, entry, manifest.runtime.value, settings), manifest.model.bytes)


def _timed(command: Sequence[str], folder: Path) -> tuple[float, str | None]:
    """Wall seconds of a command, and how it failed: what it said last. Its output is kept beside the job."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}", "NNCF_CI": "1"}
    began = time.monotonic()
    with (folder / "stdout.log").open("w") as out, (folder / "stderr.log").open("w") as err:
        try:
            done = subprocess.run(
                command, stdout=out, stderr=err, env=environment, cwd=folder, check=False, timeout=LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            return time.monotonic() - began, f"it did not end within {LIMIT_SECONDS} s"
    seconds = time.monotonic() - began
    if done.returncode == 0:
        return seconds, None
    return seconds, last_line(folder / "stderr.log") or f"exit status {done.returncode}"
