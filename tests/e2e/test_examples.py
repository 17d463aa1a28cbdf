"""The small examples as their READMEs say: pushed, applied, served. Whether they gain anything is theirs to measure."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from tests.e2e.test_kinds import SMALL
from tools.demo import watch
from tools.demo.install import push
from tools.demo.kube import ROOT, Kube
from tools.demo.scenes import post

pytestmark = pytest.mark.timeout(900)
EXAMPLES = {"text": ("tokens", "INT64"), "tabular": ("X", "FP32")}


def manifests(name: str) -> str:
    """Both manifests of an example, cut to what is quick: one recipe in onnxruntime, one pod."""
    folder = ROOT / "examples" / name
    model, deployment = (
        yaml.safe_load((folder / f"{kind}.yaml").read_text()) for kind in ("optimizedmodel", "modeldeployment")
    )
    model["spec"]["recipes"] = model["spec"]["recipes"][-1:]
    model["spec"]["targets"][0] |= {"runtimes": ["onnxruntime"], "resources": SMALL}
    deployment["spec"]["replicas"] = 1
    return yaml.safe_dump_all([model, deployment])


@pytest.fixture(scope="module", autouse=True)
def applied(space: Kube) -> None:
    """Both examples at once: one builds while the other measures."""
    for name in EXAMPLES:
        push(space, ROOT / "examples" / name, f"pvc://models/{name}")
        space.apply(manifests(name))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_published_and_its_deployment_answers_as_the_labels_say(space: Kube, name: str) -> None:
    status = watch.optimized(space, name, 600, print)["status"]
    assert status["source"]["format"] == "ONNX"
    watch.serving(space, name, 300, print)
    tensor, dtype = EXAMPLES[name]
    with np.load(ROOT / "examples" / name / "evaluation.npz") as file:
        items, labels = file[tensor][:32], file["labels"][:32]
    inputs = {"name": tensor, "datatype": dtype, "shape": list(items.shape), "data": items.ravel().tolist()}
    answer = np.array(post(space, json.dumps({"inputs": [inputs]}), name)["outputs"][0]["data"])
    decided = answer.reshape(len(items), -1).argmax(1) if name == "text" else answer
    assert (decided == labels).mean() > 0.8
