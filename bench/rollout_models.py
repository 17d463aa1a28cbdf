"""What the rollout bench serves: three models of the digits, published by `fettle optimize`, brought in by `fettle push`.

`good` is a perceptron of two layers, `slow` the convolutional network of examples/digits/first (some ten times the work), `wrong` the perceptron
with its logits negated: as fast, and it answers each image with the least likely digit. A cheap model leaves the machine's cores to what the bench
is about, rollouts under load, on every class of CPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from bench.optimizing import optimized_model
from onnx import numpy_helper
from sklearn.neural_network import MLPClassifier
from tools.demo.install import DIGITS, push
from tools.demo.kube import ROOT, DemoError, Kube

FOLDER = ROOT / ".cache" / "bench-rollout"
STORE_URI = "pvc://fettle-store"
NAMES = ("good", "slow", "wrong")
FLOAT32: dict[str, Any] = {"name": "fp32", "steps": [{"optimizeGraph": {}}]}


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
    asked = yaml.safe_dump_all(optimized_model(name, specification(name)) for name in NAMES)
    if answers.exists() and manifest.read_text() == asked:
        return answers
    shutil.rmtree(FOLDER, ignore_errors=True)
    sources.mkdir(parents=True)
    shutil.copy(DIGITS / "evaluation.npz", sources)
    good = perceptron()
    onnx.save(good, sources / "good.onnx")
    onnx.save(negated(good), sources / "wrong.onnx")
    shutil.copy(DIGITS / "first" / "model.onnx", sources / "slow.onnx")
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


def perceptron() -> onnx.ModelProto:
    """A network of two layers, trained on the calibration items: `image` [N, 1, 32, 32] to `logits` [N, 10]."""
    items = np.load(DIGITS / "calibration.npz")
    pixels = items["image"].reshape(len(items["labels"]), -1)
    trained = MLPClassifier((64,), max_iter=400, random_state=0).fit(pixels, items["labels"])
    weights = {
        f"{kind}{layer}": numpy_helper.from_array(np.asarray(values, np.float32), f"{kind}{layer}")
        for kind, layers in (("weight", trained.coefs_), ("bias", trained.intercepts_))
        for layer, values in enumerate(layers)
    }
    nodes = [
        onnx.helper.make_node("Flatten", ["image"], ["pixels"]),
        onnx.helper.make_node("Gemm", ["pixels", "weight0", "bias0"], ["hidden"]),
        onnx.helper.make_node("Relu", ["hidden"], ["active"]),
        onnx.helper.make_node("Gemm", ["active", "weight1", "bias1"], ["logits"]),
    ]
    float32 = onnx.TensorProto.FLOAT
    image = onnx.helper.make_tensor_value_info("image", float32, ["N", *items["image"].shape[1:]])
    logits = onnx.helper.make_tensor_value_info("logits", float32, ["N", len(trained.classes_)])
    graph = onnx.helper.make_graph(nodes, "digits", [image], [logits], list(weights.values()))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def negated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its logits turned round."""
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["right" if name == output.name else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["right"], [output.name]))
    onnx.checker.check_model(model)
    return model


def specification(name: str) -> dict[str, Any]:
    """One candidate, one target: here only something to serve is wanted, faster or not. `wrong` may be as wrong as its own original."""
    return {
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
        "targets": [{"name": "cpu", "runtimes": ["onnxruntime"], "threads": 1}],
        "recipes": [FLOAT32],
        "constraints": {"accuracy": {"maxDrop": 0.02}, "speedup": {"min": 0.5}},
    }
