"""The small examples through `fettle optimize`, as real processes: every word of their YAML but for what only takes time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[3] / "examples"


def optimize(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Status of an example's OptimizedModel, with fields of its only target or its spec replaced. AssertionError unless it is published."""
    document = yaml.safe_load((EXAMPLES / name / "optimizedmodel.yaml").read_text())
    document["spec"]["targets"][0] |= changes.pop("target", {})
    document["spec"] |= changes
    file = folder / "optimizedmodel.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "fettle.cli.main", "optimize", "-f", str(file), "-o", "json"]
    command += ["--measure-seconds", "1"]  # what is gained here is nobody's claim
    command += ["--map", f"pvc://models={EXAMPLES}", "--store", str(folder / "store")]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status: dict[str, Any] = json.loads(done.stdout)["status"]
    return status


def row(status: dict[str, Any], name: str) -> dict[str, Any]:
    """The candidate of that name."""
    return next(found for found in status["candidates"] if found["name"] == name)
