"""`fettle optimize` from its command line to what it published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fettle.api.recipe import RuntimeSettings
from fettle.api.signature import Signature
from fettle.api.vocabulary import RuntimeName
from fettle.runtimes import base

Arrays = Mapping[str, np.ndarray[Any, Any]]


def optimized(folder: Path, model: str, items: Arrays, *options: str) -> dict[str, Any]:
    """The status of a run of `model`, which lies in `folder`, in onnxruntime; items are judged without labels."""
    np.savez(folder / "items.npz", **items)  # type: ignore[arg-type]
    words = [sys.executable, "-m", "fettle.cli.main", "optimize", str(folder / model), *options, "-o", "json"]
    words += ["--evaluation", str(folder / "items.npz"), "--store", str(folder / "store"), "--measure-seconds", "1"]
    words += ["--threads", "1", "--runtime", "onnxruntime"]
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
