"""What the rollout bench serves: three artifacts of the digits examples, published by `fettle optimize`, brought in by `fettle push`.

`good` answers right, `slow` does nine times the work in float32, `wrong` is fast and answers each image with the least likely digit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import yaml
from tools.demo.install import DIGITS, push
from tools.demo.kube import ROOT, DemoError, Kube

FOLDER = ROOT / ".cache" / "bench-rollout"
STORE_URI = "pvc://fettle-store"
SOURCES = {"good": "first", "slow": "slow", "wrong": "wrong"}
# Quantized where 330 requests a second shall leave two cores room to breathe.
INT8: dict[str, Any] = {"name": "int8", "steps": [{"quantize": {"mode": "Static"}}]}
FP32: dict[str, Any] = {"name": "fp32", "steps": [{"optimizeGraph": {}}]}
RECIPES = {"good": INT8, "slow": FP32, "wrong": FP32}
RUNTIMES = {"good": "openvino", "slow": "onnxruntime", "wrong": "openvino"}


@dataclass(frozen=True)
class Model:
    """An artifact in the cluster's store."""

    uri: str
    sha256: str
    runtime: str

    def spec(self) -> dict[str, str]:
        """As `spec.model` names it."""
        return {"uri": self.uri, "sha256": self.sha256, "runtime": self.runtime}


def published(kube: Kube) -> dict[str, Model]:
    """The three models by name, in the cluster's store. Optimized once; a later run finds them in .cache."""
    rows = json.loads(_optimized().read_text())
    for part in ("artifacts", "blobs"):
        push(kube, FOLDER / "store" / part, f"{STORE_URI}/{part}/")
    return {
        name: Model(f"{STORE_URI}/artifacts/{row['sha256']}", row["sha256"], row["runtime"])
        for name, row in rows.items()
    }


def _optimized() -> Path:
    """The file that says what was published: model name -> row of `status.artifacts`."""
    answers, manifest, sources = FOLDER / "artifacts.json", FOLDER / "optimizedmodels.yaml", FOLDER / "models"
    asked = yaml.safe_dump_all(optimized_model(name) for name in SOURCES)
    if answers.exists() and manifest.read_text() == asked:
        return answers
    shutil.rmtree(FOLDER, ignore_errors=True)
    sources.mkdir(parents=True)
    shutil.copy(DIGITS / "evaluation.npz", sources)
    for name, example in SOURCES.items():
        if name != "wrong":
            shutil.copy(DIGITS / example / "model.onnx", sources / f"{name}.onnx")
    onnx.save(negated(onnx.load(DIGITS / SOURCES["good"] / "model.onnx")), sources / "wrong.onnx")
    manifest.write_text(asked)
    command = [sys.executable, "-m", "fettle.cli.main", "optimize", "-f", str(manifest), "-o", "json"]
    command += ["--map", f"pvc://models={sources}", "--store", str(FOLDER / "store")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"fettle optimize ended with {done.returncode}: {done.stdout[-2000:]}")
    found = json.loads(done.stdout)
    objects = found.get("items", [found])
    answers.write_text(json.dumps({one["metadata"]["name"]: one["status"]["artifacts"][0] for one in objects}))
    return answers


def negated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its logits turned round."""
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["right" if name == output.name else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["right"], [output.name]))
    onnx.checker.check_model(model)
    return model


def optimized_model(name: str) -> dict[str, Any]:
    """One candidate, one target: here only something to serve is wanted, faster or not. `wrong` may be as wrong as its own original."""
    return {
        "apiVersion": "fettle.dev/v1alpha1",
        "kind": "OptimizedModel",
        "metadata": {"name": name},
        "spec": {
            "source": {"uri": f"pvc://models/{name}.onnx"},
            "data": {
                "evaluation": {
                    "uri": "pvc://models/evaluation.npz",
                    "labelKey": "labels",
                    "output": "logits",
                    # By its labels it would be refused, as any original that does not know its items.
                    "metric": "Agreement" if name == "wrong" else "Accuracy",
                    "agreement": {"mode": "TopOne"},
                }
            },
            "targets": [{"name": "cpu", "runtimes": [RUNTIMES[name]], "threads": 1}],
            "recipes": [RECIPES[name]],
            "constraints": {"accuracy": {"maxDrop": 0.02}, "speedup": {"min": 0.5}},
        },
    }
