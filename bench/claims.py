"""Holds published claims against an independent measurement: `python bench/claims.py STORE [ARTIFACT_SHA256…]`.

For each artifact: in 5 fresh processes, by the runtime's own API and none of Fettle's code, the original (untouched source, in onnxruntime or
PyTorch with its defaults and the same threads) and the artifact are timed in turns, and the artifact's answers are compared with
`reference.npz`. Prints a table: claimed speed-up interval, widened by 5 %, against the median of the five; outputs within the manifest's
tolerance or not. An original below 5 ms is held to its outputs only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fettle.store.arrays import Arrays

ROUNDS = 12
BLOCK_SECONDS = 0.25
MARGIN = 0.05  # a claimed interval is widened by this much: another process start is another draw
QUICK_MILLISECONDS = 5.0


def runner(entry: Path, runtime: str, settings: dict[str, Any]) -> Any:
    """A function arrays -> list of outputs, in signature order, by the library's own API."""
    if runtime == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        session = ort.InferenceSession(str(entry), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)
    if runtime == "torchscript":
        return _torch_runner(entry, settings)
    import openvino as ov

    precision = {"Float32": "f32", "BFloat16": "bf16", "Float16": "f16"}[settings["precision"]]
    core = ov.Core()
    model = core.read_model(entry)
    if settings.get("batchSize"):
        model.reshape({port: [settings["batchSize"], *list(port.partial_shape)[1:]] for port in model.inputs})
    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": str(settings["streams"]),
        "INFERENCE_NUM_THREADS": str(settings["threads"]),
    }
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda inputs: [np.array(value) for value in request.infer(inputs).values()]


def _torch_runner(entry: Path, settings: dict[str, Any]) -> Any:
    """The same for a file of PyTorch's. Its tensors stand in the order of the signature."""
    import torch
    from torch.utils import _pytree

    torch.set_num_threads(settings["threads"])
    if "/constants.pkl" in str(zipfile.ZipFile(entry).namelist()):
        module = torch.jit.load(str(entry), map_location="cpu").eval()
        if settings["graphOptimization"]:
            module = torch.jit.optimize_for_inference(torch.jit.freeze(module))
    else:
        exported = torch.export.load(entry)
        program = exported.module()

        def module(*tensors: torch.Tensor) -> Any:
            args, kwargs = _pytree.tree_unflatten(tensors, exported.call_spec.in_spec)
            return program(*args, **kwargs)

    def run(inputs: Arrays) -> list[np.ndarray]:
        with torch.inference_mode():
            answer = module(*(torch.from_numpy(array.copy()) for array in inputs.values()))
        return [tensor.numpy() for tensor in _pytree.tree_leaves(answer)]

    return run


def _reference(folder: Path) -> tuple[Arrays, Arrays]:
    loaded = np.load(folder / "reference.npz", allow_pickle=False)
    inputs, outputs = (
        {
            key.removeprefix(side): _array(loaded, key)
            for key in loaded
            if key.startswith(side) and not key.endswith(".utf8")
        }
        for side in ("input.", "output.")
    )
    return inputs, outputs


def _array(loaded: Any, key: str) -> np.ndarray:
    """A stored array. Texts are two members: where each lies, and all of them one after the other."""
    array: np.ndarray = loaded[key]
    if array.dtype.names != ("start", "bytes"):
        return array
    content = loaded[f"{key}.utf8"]
    texts = np.empty(array.size, object)
    texts[:] = [content[start : start + size].decode() for start, size in array.reshape(-1).tolist()]
    return texts.reshape(array.shape)


def answers_alone(folder: Path) -> dict[str, Any]:
    """Hold only the artifact's answers against the reference; runs in a fresh process."""
    plan = json.loads((folder / "plan.json").read_text())
    run = runner(folder / "artifact" / plan["entry"], plan["runtime"], plan["settings"])
    return {"worst": _compare(run, plan, *_reference(folder))}


def one_process(folder: Path) -> dict[str, Any]:
    """Time original and artifact in turns; runs in a fresh process."""
    plan = json.loads((folder / "plan.json").read_text())
    inputs, outputs = _reference(folder)
    original = {"threads": plan["threads"], "graphOptimization": False}
    subjects = {
        "original": runner(folder / "original" / plan["originalEntry"], plan["originalRuntime"], original),
        "artifact": runner(folder / "artifact" / plan["entry"], plan["runtime"], plan["settings"]),
    }
    one = {name: array[:1] if plan["batchable"] else array for name, array in inputs.items()}
    medians: dict[str, list[float]] = {name: [] for name in subjects}
    # With one thread, time on the processor: what others of this machine take from it is not the model's.
    clock = time.process_time if plan["threads"] == 1 else time.perf_counter
    for round_number in range(ROUNDS):
        order = list(subjects) if round_number % 2 else list(subjects)[::-1]
        for name in order:
            medians[name].append(block(subjects[name], one, clock))
    ratios = [a / b for a, b in zip(medians["original"], medians["artifact"], strict=True)]
    return {
        "speedup": statistics.median(ratios),
        "milliseconds": 1000 * statistics.median(medians["original"]),
        "worst": _compare(subjects["artifact"], plan, inputs, outputs),
    }


def block(run: Any, inputs: Arrays, clock: Callable[[], float]) -> float:
    """Seconds of the median run in a block of `BLOCK_SECONDS`, after three that do not count."""
    for _ in range(3):
        run(inputs)
    times = []
    end = clock() + BLOCK_SECONDS
    while (start := clock()) < end:
        run(inputs)
        times.append(clock() - start)
    return statistics.median(times)


def _compare(run: Any, plan: dict[str, Any], inputs: Arrays, outputs: Arrays) -> float:
    """Largest excess over the tolerance, as a factor: at most 1 is within it."""
    items = len(next(iter(inputs.values()))) if plan["batchable"] else 1
    found: list[list[np.ndarray]] = []
    for index in range(items):
        found.append(run({n: a[index : index + 1] if plan["batchable"] else a for n, a in inputs.items()}))
    worst = 0.0
    for position, name in enumerate(plan["outputs"]):
        values = np.concatenate([each[position] for each in found]) if plan["batchable"] else found[0][position]
        expected = outputs[name]
        if values.shape != expected.shape:
            return np.inf
        if expected.dtype.kind not in "fiu":
            worst = max(worst, 0.0 if np.array_equal(values, expected) else np.inf)
            continue
        tolerance = plan["tolerances"].get(name, {"rtol": 0.0, "atol": 0.0})
        allowed = tolerance["atol"] + tolerance["rtol"] * np.abs(expected.astype(np.float64))
        difference = np.abs(values.astype(np.float64) - expected.astype(np.float64))
        same = (np.isnan(values) & np.isnan(expected)) | (values == expected)
        excess = np.where(same, 0.0, difference / np.maximum(allowed, 1e-12))
        worst = max(worst, float(np.max(np.nan_to_num(excess, nan=np.inf, posinf=np.inf), initial=0.0)))
    return worst


def lay_out(store: Path, sha256: str, folder: Path) -> dict[str, Any]:
    """Copy an artifact and its original out of the store; returns the claim."""
    manifest = json.loads((store / "artifacts" / sha256 / "manifest.json").read_text())
    results = [json.loads(path.read_text()) for path in sorted((store / "results").glob("*.json"))]
    prepared = next(r for r in results if r["kind"] == "prepare" and r["source"]["sha256"] == manifest["sourceSha256"])
    rows = [row for r in results if r["kind"] == "measure" for row in r["candidates"] if row.get("artifact") == sha256]
    for name, model in (("original", prepared["original"]), ("artifact", manifest["model"])):
        for file in model["files"]:
            target = folder / name / file["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((store / "blobs" / file["sha256"]).read_bytes())
    (folder / "reference.npz").write_bytes((store / "blobs" / manifest["reference"]["sha256"]).read_bytes())
    tensors = [*manifest["signature"]["inputs"], *manifest["signature"]["outputs"]]
    plan = {
        "runtime": manifest["runtime"],
        "settings": manifest["settings"],
        "threads": manifest["settings"]["threads"],
        "entry": manifest["model"]["entry"],
        "originalEntry": prepared["original"]["entry"],
        "originalRuntime": "onnxruntime" if prepared["original"]["format"] == "ONNX" else "torchscript",
        "outputs": [tensor["name"] for tensor in manifest["signature"]["outputs"]],
        "tolerances": manifest["tolerances"],
        "batchable": all(tensor.get("batchAxis") == 0 for tensor in tensors),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return dict(rows[-1])


@dataclass(frozen=True)
class Claim:
    """A speed-up as it was claimed, and as it was found: the median of five processes, and the extremes.

    `milliseconds`: median of the original's time. `outputs`: largest difference from `reference.npz`, in tolerances.
    """

    candidate: str
    value: float
    low: float
    high: float
    found: float
    found_low: float
    found_high: float
    milliseconds: float
    outputs: float
    holds: bool


def _fresh(option: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, option, str(folder)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def outputs(store: Path, sha256: str) -> float:
    """Largest difference of an artifact's answers from its `reference.npz`, in tolerances: at most 1 is within them. In a fresh process."""
    with tempfile.TemporaryDirectory() as temporary:
        lay_out(store, sha256, Path(temporary))
        return float(_fresh("--answers", Path(temporary))["worst"])


def check(store: Path, sha256: str, processes: int = 5) -> Claim:
    """Measure an artifact of the store again. A model below 5 ms need only answer right: its time is mostly overhead."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        row = lay_out(store, sha256, folder)
        found = [_fresh("--one", folder) for _ in range(processes)]
    speedups = [each["speedup"] for each in found]
    speedup, milliseconds = statistics.median(speedups), statistics.median(each["milliseconds"] for each in found)
    worst = max(each["worst"] for each in found)
    claimed = row.get("speedup") or {"value": 1.0, "low": 1.0, "high": 1.0}
    low, high = claimed["low"], claimed["high"]
    inside = low * (1 - MARGIN) <= speedup <= high * (1 + MARGIN) or milliseconds < QUICK_MILLISECONDS
    return Claim(
        candidate=row["name"],
        value=claimed["value"],
        low=low,
        high=high,
        found=speedup,
        found_low=min(speedups),
        found_high=max(speedups),
        milliseconds=milliseconds,
        outputs=worst,
        holds=inside and worst <= 1,
    )


def line(sha256: str, claim: Claim) -> str:
    """The claim for a person."""
    return (
        f"{sha256[:12]}  {claim.candidate:<40} claimed {claim.value:.3f} [{claim.low:.3f}, {claim.high:.3f}]  "
        f"found {claim.found:.3f} ({claim.found_low:.3f} to {claim.found_high:.3f}) of {claim.milliseconds:.2f} ms  "
        f"outputs {claim.outputs:.2f} of the tolerance  {'holds' if claim.holds else 'BROKEN'}"
    )


def main() -> None:
    """Parse the command line; exit status 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, nargs="?", help="folder of the store")
    parser.add_argument("artifacts", nargs="*", help="digests; all of the store when none is given")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one or options.answers:
        print(json.dumps(one_process(options.one) if options.one else answers_alone(options.answers)))
        return
    if options.store is None:
        parser.error("STORE is needed")
    chosen = options.artifacts or sorted(path.name for path in (options.store / "artifacts").iterdir())
    broken = False
    for sha256 in chosen:
        claim = check(options.store, sha256)
        broken = broken or not claim.holds
        print(line(sha256, claim))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
