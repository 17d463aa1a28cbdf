"""Olive: `olive run` with one pass, OnnxStaticQuantization in int8 for the CPU, every parameter at its default.

`olive quantize` and `olive optimize` take calibration data from a hub of data sets only; a run config takes files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers import job


def data_config(feeds: Sequence[job.Feed], folder: Path) -> dict[str, Any]:
    """The items as Olive's RawDataContainer reads them: a folder an input, a file of bare numbers an item."""
    first = feeds[0]
    folders = {name: f"input{place}" for place, name in enumerate(first)}
    for number, feed in enumerate(feeds):
        for name, array in feed.items():
            path = folder / folders[name] / f"{number:06}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(array.tobytes())
    params = {
        "data_dir": str(folder),
        "input_names": list(folders),
        "input_dirs": list(folders.values()),
        "input_shapes": [list(array.shape) for array in first.values()],
        "input_types": [array.dtype.name for array in first.values()],
    }
    return {"name": "calibration", "type": "RawDataContainer", "load_dataset_config": {"params": params}}


def run_config(work: job.Job, data: dict[str, Any], out: Path) -> dict[str, Any]:
    """The whole workflow."""
    accelerators = [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]
    return {
        "input_model": {"type": "OnnxModel", "model_path": str(work.model)},
        "systems": {"host": {"type": "LocalSystem", "accelerators": accelerators}},
        "data_configs": [data],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "target": "host",
        "cache_dir": str(work.folder / "cache"),
        "output_dir": str(out),
    }


def main() -> None:
    """Run the flow. Exits with what Olive said where it wrote no model."""
    work = job.read()
    made = work.folder / "olive"
    config = work.folder / "olive.json"
    data = data_config(work.feeds(), work.folder / "raw")
    config.write_text(json.dumps(run_config(work, data, made)))
    command = [sys.executable, "-m", "olive", "run", "--config", str(config)]
    environment = os.environ | {"OLIVE_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    sys.stderr.write(done.stdout + done.stderr)
    models = sorted(made.rglob("*.onnx"))
    if done.returncode or not models:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
        raise SystemExit(f"olive run ended with {done.returncode} and {len(models)} models: {''.join(said[-1:])}")
    for path in models[0].parent.glob("*.onnx*"):
        shutil.copy(path, work.out)
    work.answer(models[0].name, "onnxruntime")


if __name__ == "__main__":
    main()
