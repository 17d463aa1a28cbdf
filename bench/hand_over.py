"""What it costs to run a model in a thread rather than in the event loop: `python -m bench.hand_over [--seconds 2]`.

Sixteen requests are always under way in one process, without any front. Models of growing size are run by the event loop itself, then by the
server's threads. Prints a table in Markdown: what a run takes, and for both ways requests per second and CPU time per request. The bounds between
the two are in `server/pace.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tools.serving import CLAIM, open_store, publish, saved

from fettle.api.signature import Signature, Tensor
from fettle.server.model import Batching, ServedModel, load
from fettle.server.request import InferRequest
from fettle.store.manifest import fetch_artifact
from fettle.store.uris import Mounts

WIDTH, AT_ONCE = 64, 16
LAYERS = (1, 10, 30, 60, 100, 200, 400, 1000)
SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="FP32", shape=(-1, WIDTH), batch_axis=0),),
    outputs=(Tensor(name="y", dtype="FP32", shape=(-1, WIDTH), batch_axis=0),),
)
Infer = Callable[[ServedModel, InferRequest], Awaitable[object]]


def model(layers: int) -> onnx.ModelProto:
    """So many products with a matrix, one after the other."""
    names = ["x", *(f"v{number}" for number in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[at], "w"], [names[at + 1]]) for at in range(layers)]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def loaded(layers: int, root: Path) -> ServedModel:
    """The model as a pod has it."""
    root = root / str(layers)
    store, folder = root / "store", root / "model"
    sha256 = publish(open_store(store), saved(model(layers), root), SIGNATURE)
    fetch_artifact(f"pvc://{CLAIM}/artifacts/{sha256}", sha256, folder, Mounts({CLAIM: store}))
    return load(folder, sha256, None, 2 * AT_ONCE, Batching(items=1))


async def in_the_loop(served: ServedModel, request: InferRequest) -> object:
    """As a request that is known to be short."""
    served.pace.measured(next(iter(request.inputs.values())).nbytes, 0.0)
    await asyncio.sleep(0)  # the next request's turn, as between the callbacks of a front
    return served.infer_at_once(request)


async def in_a_thread(served: ServedModel, request: InferRequest) -> object:
    """As any other."""
    return await served.infer(request, 30.0)


async def measured(served: ServedModel, infer: Infer, seconds: float) -> tuple[float, float]:
    """Requests per second, and CPU microseconds of each."""
    request = InferRequest({"x": np.zeros((1, WIDTH), np.float32)}, 1, None, None)
    until, count = time.perf_counter() + seconds, 0

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await infer(served, request)
            count += 1

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    used = time.process_time() - used
    return count / (time.perf_counter() - began), 1e6 * used / count


def run_microseconds(served: ServedModel) -> float:
    """The shortest of many runs."""
    x, took = {"x": np.zeros((1, WIDTH), np.float32)}, []
    for _ in range(200):
        began = time.perf_counter()
        served.session.infer(x)
        took.append(time.perf_counter() - began)
    return 1e6 * min(took)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="of each way with each model")
    seconds = parser.parse_args().seconds
    print("| a run, µs | in the loop: requests/s | CPU µs | in a thread: requests/s | CPU µs |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            served = loaded(layers, Path(folder))
            run = run_microseconds(served)
            figures = [asyncio.run(measured(served, infer, seconds)) for infer in (in_the_loop, in_a_thread)]
            cells = " | ".join(f"{rate:,.0f} | {cpu:,.0f}" for rate, cpu in figures)
            print(f"| {run:,.0f} | {cells} |", flush=True)
            served.close()


if __name__ == "__main__":
    main()
