"""Builds TensorRT RTX engines of real models without a GPU: `make bench-engines`. Prints a table and writes bench/results/engines.json.

For each model, architecture and number format: the size of the engine, the seconds of CPU time that it took, and what the library refuses. Then what
several optimization profiles cost. How fast an engine is, only a GPU can show (`bench/gpu/check.py`).
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import click
from bench.gpu.engine_models import MODELS, ROOT, Model

from fettle.api.vocabulary import Precision
from fettle.errors import FettleError
from fettle.optimizer.steps.onnx_precision import in_precision
from fettle.runtimes import cpu
from fettle.runtimes.engine_build import Profile
from fettle.runtimes.tensorrt_rtx import RUNTIME

RESULTS = ROOT / "bench" / "results" / "engines.json"
ARCHITECTURES = ("sm75", "sm86", "sm89")  # of a T4, an A10 and an L4
PRECISIONS = (Precision.FLOAT32, Precision.FLOAT16)
# Of those whose first axis is the batch's: what profiles cost.
IN_PROFILES = ("digits", "orientation", "open-nsfw")
RANGES = {1: ((1, 64),), 2: ((1, 1), (2, 64)), 4: ((1, 1), (2, 4), (5, 16), (17, 64))}


def built(model: Model, entry: Path, architecture: str, profiles: tuple[Profile, ...], folder: Path) -> dict[str, Any]:
    """Size and seconds of an engine, or what the library refuses."""
    target = folder / "model.rtx"
    began = time.process_time()  # what other programs do meanwhile does not count
    try:
        note = RUNTIME.build(entry, target, architecture, profiles)
    except FettleError as error:
        return {"refused": error.message, "reason": str(error.reason)}
    seconds = time.process_time() - began
    layers = {name: count for name, count in note.executed.to_json().items() if count}
    return {"megabytes": megabytes(target), "cpuSeconds": round(seconds, 2), "layers": layers}


def cast(model: Model, precision: Precision, folder: Path) -> Path:
    """The model in a number format, as a build Job casts it. Raises FettleError."""
    target = folder / f"{model.name}-{precision}" / "model.onnx"
    target.parent.mkdir(exist_ok=True)
    return in_precision(model.file, target, precision)


def megabytes(path: Path) -> float:
    """Of 10^6 bytes, as disks have them."""
    return round(path.stat().st_size / 1e6, 2)


def in_each_form(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each model, architecture and number format."""
    for model in MODELS:
        for precision in PRECISIONS:
            about = {"model": model.name, "precision": str(precision), "onnxMegabytes": megabytes(model.file)}
            try:
                entry = cast(model, precision, folder)
            except FettleError as error:
                yield about | {"refused": error.message, "reason": str(error.reason)}
                continue
            for architecture in ARCHITECTURES:
                yield about | {"architecture": architecture} | built(model, entry, architecture, model.profiles, folder)


def in_profiles(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each number of profiles of one engine, all of which take batches from 1 to 64."""
    for model in (each for each in MODELS if each.name in IN_PROFILES):
        entry = cast(model, Precision.FLOAT16, folder)
        for count, ranges in RANGES.items():
            about = {"model": model.name, "profiles": count, "batches": ranges}
            yield about | built(model, entry, "sm89", model.batches(ranges), folder)


def machine() -> dict[str, Any]:
    """Where the engines were built, and by what."""
    return {
        "cpu": cpu.detect().label,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "library": f"{RUNTIME.library.distribution} {RUNTIME.library.version}",
        "date": date.today().isoformat(),
    }


def told(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    words = [f"{row['model']:14}", f"{row.get('architecture', 'sm89'):5}", f"{row.get('precision', 'Float16'):8}"]
    words += [f"{row['profiles']} profiles"] if "profiles" in row else []
    if "refused" in row:
        return " ".join([*words, f"refused ({row['reason']}): {row['refused']}"])
    return " ".join([*words, f"{row['megabytes']:8.2f} MB {row['cpuSeconds']:6.2f} s"])


def listed(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows, each printed as soon as it is known."""
    found = []
    for row in rows:
        click.echo(told(row))
        found.append(row)
    return found


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(output: Path) -> None:
    """Build engines of real models for several architectures, without a GPU."""
    with tempfile.TemporaryDirectory(prefix="fettle-engines-") as name:
        folder = Path(name)
        first = MODELS[0]
        built(first, first.file, "sm89", first.profiles, folder)  # the library prepares itself in it
        content = {
            "machine": machine(),
            "engines": listed(in_each_form(folder)),
            "profiles": listed(in_profiles(folder)),
        }
    output.write_text(json.dumps(content, indent=1) + "\n")
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
