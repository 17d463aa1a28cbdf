"""The helm binary: the one that `make cluster` built, or the machine's own."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from tools.cluster.paths import checkout

CHART = Path(__file__).parents[2] / "charts" / "fettle"


class HelmError(Exception):
    """helm's own words."""


def helm(*arguments: str, stdin: str | None = None) -> str:
    """Standard output of `helm ARGUMENTS`. Raises HelmError, also where there is no helm: `make cluster` builds it."""
    ours = checkout().bin / "helm"
    binary = str(ours) if ours.exists() else shutil.which("helm")
    if binary is None:
        raise HelmError("no helm: `make cluster` builds one in .cluster/bin, or put one on the PATH")
    done = subprocess.run([binary, *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HelmError(done.stderr.strip() + done.stdout.strip())
    return done.stdout


def render(
    values: dict[str, Any] | None = None, *, release: str = "fettle", namespace: str = "fettle-system"
) -> list[dict[str, Any]]:
    """The chart's objects with `values`."""
    found: list[dict[str, Any]] = json.loads(_rendered(json.dumps(values or {}), release, namespace))
    return found


@cache
def _rendered(values: str, release: str, namespace: str) -> str:
    """As JSON, which is read in no time: many tests look at the same objects."""
    text = helm("template", release, str(CHART), "--namespace", namespace, "--values", "-", stdin=values)
    # The CRDs are 140 kB: libyaml reads them in a tenth of the time.
    return json.dumps([found for found in yaml.load_all(text, yaml.CSafeLoader) if found])


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one object of that kind."""
    (found,) = (item for item in objects if item["kind"] == kind)
    return found
