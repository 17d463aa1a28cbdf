"""Takes other people's models through a cluster: Jobs, a published artifact, a server that answers as its reference says, the claim measured again.

    python -m tools.cluster run --torch -- python -m bench.models_cluster [NAME…] [--work FOLDER]

The cases are those of `bench/model_catalog.py`; without names, a TorchScript archive, a program of torch.export, a script that ONNX has no
operators for, an ONNX file, and one that is refused. The first two get a second target, `torch`, that torchscript must serve. Prints a table
and writes bench/results/models-cluster.json.
Needs a quiet machine; the namespace is made anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.model_catalog import CASES, READY, TORCH, Case
from bench.models import bring, claim, ended, head, judge, keep, specification, table, write_items
from bench.optimizing import optimized_model
from rich.console import Console
from tools.cluster.paths import TEST, checkout
from tools.cluster.target import resolve_target
from tools.demo import install, watch
from tools.demo.kube import Kube, condition, is_current
from tools.demo.scenes import post

from fettle.api.base import API_VERSION
from fettle.store.manifest import MANIFEST, REFERENCE, Manifest, read_reference

RESULTS = Path(__file__).parent / "results" / "models-cluster.json"
NAMESPACE = "fettle-bench-models"
NAMES = ("torch-crepe-tiny", "torch-resemblyzer-program", "torch-pesto", "magika", "silero-vad")
TORCHSCRIPT = {"name": "torch", "runtimes": ["torchscript"], "threads": 1}


def push(kube: Kube, case: Case, work: Path) -> dict[str, Any]:
    """The case's model and data in the claim `models`; the spec that names them."""
    folder = work / case.name
    write_items(case, work)
    model = bring(case, work)
    install.push(kube, model, f"pvc://models/{case.name}/{model.name}")
    if case.items is not None:
        install.push(kube, folder / "items.npz", f"pvc://models/{case.name}/items.npz")
    root = f"pvc://models/{case.name}"
    spec = specification(case, f"{root}/{model.name}", f"{root}/items.npz")
    also = [TORCHSCRIPT] if case in TORCH and not case.runtimes else []
    return spec | {"targets": [*spec["targets"], *also]}


def run(kube: Kube, case: Case, work: Path) -> dict[str, Any]:
    """Take the case to its end; its row of the table."""
    spec = push(kube, case, work)
    began = time.monotonic()
    kube.apply([optimized_model(case.name, spec)])
    status = end(kube, case, spec["search"]["deadlineSeconds"])
    row = head(case, time.monotonic() - began) | ended(case, status)
    targets = [one["target"] for one in status.get("artifacts", ())]
    row["served"] = {target: served(kube, case, target, work) for target in targets}
    row["asExpected"] &= (len(targets) == len(spec["targets"])) == (case.expected == READY)
    row["asExpected"] &= all(one["worst"] <= 1 for one in row["served"].values())
    store = work / case.name / "store"
    if targets:
        install.pull(kube, "pvc://fettle-store", store)
    return row | claim(case, status, store)


def end(kube: Kube, case: Case, seconds: float) -> dict[str, Any]:
    """The status once its Ready condition says how the run ended."""
    told = ""
    for elapsed in watch.polls(seconds):
        found = kube.get("om", case.name)
        ready = condition(found, "Ready")
        line = f"{ready.get('reason')}: {ready.get('message', '')}"
        if line != told:
            told = line
            print(f"{elapsed:5.0f} s  {case.name}: {line}", flush=True)
        if found is not None and is_current(found) and ready.get("reason") not in {None, *watch.GOING}:
            return dict(found["status"])
    raise TimeoutError(f"{case.name} did not end in {seconds:.0f} s: {told}")


def served(kube: Kube, case: Case, target: str, work: Path) -> dict[str, Any]:
    """Serve the artifact of a target by an operator's pod: its runtime, the image, and its answers' largest difference in tolerances."""
    name = f"{case.name}-{target}"
    model = {"ref": {"name": case.name, "target": target}}
    spec = {"model": model, "replicas": 1}
    kube.apply([{"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": {"name": name}, "spec": spec}])
    watch.serving(kube, name, 300, print)
    folder = work / case.name / target
    asked = ("--target", target, "--image", install.images(kube.target)["server"])
    install.fettle(kube, "pull", f"om/{case.name}", str(folder), *asked)
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    worst = max(_differences(kube, name, manifest, folder / REFERENCE))
    pods = json.loads(kube.kubectl("get", "pods", "-l", f"fettle.dev/modeldeployment={name}", "-o", "json"))["items"]
    images = {pod["spec"]["containers"][0]["image"] for pod in pods}
    known = {ref: name for name, ref in install.images(kube.target).items()}
    kube.kubectl("delete", "modeldeployment", name, "--wait=true")
    return {"runtime": manifest.runtime, "images": sorted(known[image] for image in images), "worst": worst}


def _differences(kube: Kube, name: str, manifest: Manifest, reference: Path) -> list[float]:
    """Of each output: the largest difference of the server's answer from the reference's first item, in tolerances."""
    inputs, outputs = read_reference(reference)
    tensors_of = (*manifest.signature.inputs, *manifest.signature.outputs)
    items = slice(1) if all(one.batch_axis == 0 for one in tensors_of) else slice(None)
    tensors = []
    for one in manifest.signature.inputs:
        array = inputs[one.name][items]
        tensors.append(
            {"name": one.name, "datatype": one.dtype, "shape": list(array.shape), "data": array.ravel().tolist()}
        )
    found = []
    for answer in post(kube, json.dumps({"inputs": tensors}), name)["outputs"]:
        expected = outputs[answer["name"]][items]
        tolerance = manifest.tolerances[answer["name"]]
        values = np.reshape(np.array(answer["data"], np.float64), answer["shape"])
        allowed = tolerance.atol + tolerance.rtol * np.abs(expected.astype(np.float64))
        found.append(float(np.max(np.abs(values - expected) / np.maximum(allowed, 1e-12))))
    return found


def main() -> None:
    """Parse the command line; exit status 1 when an end state, an answer or a claim is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=NAMES, help="cases")
    parser.add_argument("--work", type=Path, help="folder for what is fetched and made [default: a temporary one]")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(CASES))
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    kube = Kube(resolve_target(paths=checkout(TEST)), NAMESPACE)
    install.install(kube)
    kube.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")
    kube.ensure_namespace()
    with tempfile.TemporaryDirectory() as temporary:
        rows = [run(kube, CASES[name], options.work or Path(temporary)) for name in options.names]
    keep(rows, RESULTS)
    console = Console(width=200)
    console.print(table(rows))
    for row in rows:
        for target, one in row["served"].items():
            print(
                f"{row['model']}/{target}: {one['runtime']} in {', '.join(one['images'])}, answers within {one['worst']:.3f} of the tolerance"
            )
    judge(rows)


if __name__ == "__main__":
    main()
