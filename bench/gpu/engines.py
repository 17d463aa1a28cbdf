"""Builds TensorRT RTX engines of real models without a GPU: `make bench-engines`. Prints a table and writes bench/results/engines.json.

For each model, architecture and number format: the size of the engine, the seconds of CPU time that it took, and what the library refuses. The
files are those of Fettle's own stages: the portable form, its quantization with generated items, and the cast. Then what several optimization
profiles cost. How fast an engine is, only a GPU can show (`bench/gpu/check.py`).
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
from bench.gpu.engine_models import MODELS, ROOT, Model, prepared
from bench.gpu.forms import FLOAT16, FORMS, Form, Subject, quantized

from fettle.errors import FettleError
from fettle.optimizer.steps.onnx_precision import in_precision
from fettle.runtimes import cpu
from fettle.runtimes.engine_build import Profile
from fettle.runtimes.tensorrt_rtx import RUNTIME

RESULTS = ROOT / "bench" / "results" / "engines.json"
ARCHITECTURES = ("sm75", "sm86", "sm89")  # of a T4, an A10 and an L4
FORMATS = tuple(form for form in FORMS if form.name in ("float32", "float16", "int8"))
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
        return refused(error)
    seconds = time.process_time() - began
    layers = {name: count for name, count in note.executed.to_json().items() if count}
    return {"megabytes": megabytes(target), "cpuSeconds": round(seconds, 2), "layers": layers}


def refused(error: FettleError) -> dict[str, Any]:
    """Why there is no engine."""
    return {"refused": error.message, "reason": str(error.reason)}


def made(subject: Subject, form: Form, folder: Path) -> Path:
    """The file of a model in a number format, as build Jobs make it. Raises FettleError."""
    inside = folder / f"{subject.name}-{form.name}"
    inside.mkdir()
    entry = quantized(subject, form, inside / "quantized")
    target = inside / "model.onnx"
    return in_precision(entry, target, form.precision)


def megabytes(path: Path) -> float:
    """Of 10^6 bytes, as disks have them."""
    return round(path.stat().st_size / 1e6, 2)


def in_each_format(model: Model, subject: Subject, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each number format and architecture."""
    for form in FORMATS:
        about = {"model": model.name, "format": form.name, "onnxMegabytes": megabytes(model.file)}
        try:
            entry = made(subject, form, folder)
        except FettleError as error:
            yield about | refused(error)
            continue
        for architecture in ARCHITECTURES:
            yield about | {"architecture": architecture} | built(model, entry, architecture, model.profiles, folder)


def in_profiles(model: Model, subject: Subject, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each number of profiles of one engine, all of which take batches from 1 to 64."""
    entry = folder / f"{subject.name}-{FLOAT16.name}" / "model.onnx"
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
    words = [f"{row['model']:14}", f"{row.get('architecture', 'sm89'):5}", f"{row.get('format', FLOAT16.name):8}"]
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
@click.option("--only", help="One model, by its name.")
def main(output: Path, only: str | None) -> None:
    """Build engines of real models for several architectures, without a GPU."""
    engines, profiles = [], []
    with tempfile.TemporaryDirectory(prefix="fettle-engines-") as name:
        folder = Path(name)
        first = MODELS[0]
        built(first, first.file, "sm89", first.profiles, folder)  # the library prepares itself in it
        for model in (each for each in MODELS if only in (None, each.name)):
            try:
                subject = prepared(model, folder)
            except FettleError as error:
                engines.append({"model": model.name, "onnxMegabytes": megabytes(model.file), **refused(error)})
                continue
            engines += listed(in_each_format(model, subject, folder))
            profiles += listed(in_profiles(model, subject, folder)) if model.name in IN_PROFILES else []
    output.write_text(json.dumps({"machine": machine(), "engines": engines, "profiles": profiles}, indent=1) + "\n")
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
