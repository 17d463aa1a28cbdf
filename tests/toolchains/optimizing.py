"""`fettle optimize` from its command line to what it published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tools.ports import free_port

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.runtimes import base
from fettle.store.arrays import Arrays
from fettle.store.manifest import copy_artifact
from fettle.store.store import Store
from fettle.store.uris import Mounts


def optimized(folder: Path, model: str, items: Arrays, *options: str, runtime: str = "onnxruntime") -> dict[str, Any]:
    """The status of a run of `model`, which lies in `folder`, in one runtime; items are judged without labels."""
    np.savez(folder / "items.npz", **items)  # type: ignore[arg-type]
    words = [sys.executable, "-m", "fettle.cli.main", "optimize", str(folder / model), *options, "-o", "json"]
    words += ["--evaluation", str(folder / "items.npz"), "--store", str(folder / "store"), "--measure-seconds", "1"]
    words += ["--threads", "1", "--runtime", runtime]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    status: dict[str, Any] = json.loads(done.stdout)["status"]
    return status


def answers(folder: Path, status: Mapping[str, Any], items: Arrays) -> Arrays:
    """What the published artifact answers to `items`."""
    store, (artifact,) = folder / "store", status["artifacts"]
    manifest = json.loads((store / "artifacts" / artifact["sha256"] / "manifest.json").read_text())
    (file,) = [entry for entry in manifest["model"]["files"] if entry["path"].endswith(".onnx")]
    signature = Signature.model_validate(manifest["signature"])
    settings = RuntimeSettings(threads=1)
    session = base.get(RuntimeName.ONNXRUNTIME).load(store / "blobs" / file["sha256"], settings, signature)
    return session.infer(
        {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in items.items()}
    )


def served(folder: Path, status: Mapping[str, Any], inputs: Arrays) -> Arrays:
    """What `fettle serve` answers with the published artifact, asked over HTTP."""
    (artifact,) = status["artifacts"]
    store = Store.open("pvc://store", Mounts({"store": folder / "store"}))
    copy_artifact(store, artifact["sha256"], folder / "winner")
    ports = {option: str(free_port()) for option in ("--port", "--grpc-port", "--management-port")}
    words = [sys.executable, "-m", "fettle.cli.main", "serve", str(folder / "winner"), "--name", "model"]
    words += [word for pair in ports.items() for word in pair]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "it says when it is ready"
            return _asked(f"http://127.0.0.1:{ports['--port']}/v2/models/model/infer", inputs)
        finally:
            process.terminate()


def _asked(url: str, inputs: Arrays) -> Arrays:
    tensors = [
        {"name": name, "datatype": base.v2_dtype(array), "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    body = json.dumps({"inputs": tensors}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        outputs = json.load(answer)["outputs"]
    return {row["name"]: np.array(row["data"]).reshape(row["shape"]) for row in outputs}
