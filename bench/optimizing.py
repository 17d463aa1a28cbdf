"""`fettle optimize` in a process of its own, and what a bench reads in the status that it prints.

Imported in the environments of toolchains as well, which lack what prints tables.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.cluster.shell import last_line

from fettle.api.base import API_VERSION

Status = Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a run ended. `status`: of the OptimizedModel; empty where none was printed. `last`: the last line of its log."""

    exit_status: int
    status: dict[str, Any]
    last: str


def optimized_model(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The OptimizedModel of that name."""
    return {"apiVersion": API_VERSION, "kind": "OptimizedModel", "metadata": {"name": name}, "spec": spec}


def fettle_optimize(manifest: Path, store: Path, log: Path, *options: str) -> Ended:
    """Run the one OptimizedModel of a manifest to its end. What the command tells meanwhile is appended to `log`."""
    command = [sys.executable, "-m", "fettle.cli.main", "optimize", "-f", str(manifest), "--store", str(store)]
    with log.open("a") as lines:
        done = subprocess.run(
            [*command, *options, "-o", "json"], stdout=subprocess.PIPE, stderr=lines, text=True, check=False
        )
    return Ended(done.returncode, printed(done.stdout), last_line(log))


def printed(stdout: str) -> dict[str, Any]:
    """The status in what `fettle optimize -o json` printed; empty where there is none."""
    try:
        status: dict[str, Any] = json.loads(stdout)["status"]
    except json.JSONDecodeError:
        return {}
    return status


def ready(status: Status) -> dict[str, str]:
    """The condition that says how a run ended."""
    found: dict[str, str] = next(one for one in status["conditions"] if one["type"] == "Ready")
    return found


def span(interval: Mapping[str, float] | None, digits: str = "2f") -> str:
    """A value with its interval, as '2f' or '4g'; empty where there is none."""
    if interval is None:
        return ""
    return f"{interval['value']:.{digits}} [{interval['low']:.{digits}}, {interval['high']:.{digits}}]"
