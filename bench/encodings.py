"""What a request costs the server in each encoding: `python -m bench.encodings` prints CPU time and bytes of requests and answers.

The model answers what it is asked, so that all that is counted is the way there and back. CPU time of the server's process, not time on a clock:
other work on the machine changes it little. One client, one request after another.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnx
import orjson
import psutil
from onnx import TensorProto, helper
from tools.serving import ServerProcess, open_store, publish, saved

from fettle.api.signature import Signature, Tensor
from fettle.server.inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse

MODEL = "echo"
SIZES = (4, 3 * 224 * 224, 4 << 20)  # numbers in a request
SECONDS = 3.0  # of asking, each
_INFER = f"/v2/models/{MODEL}/infer"
_GRPC = "/inference.GRPCInferenceService/ModelInfer"
Ask = Callable[[], int]  # asks once; bytes of the answer


def model() -> onnx.ModelProto:
    """y = x, of any shape [N, M]."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "M"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], MODEL, values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@contextmanager
def served(root: Path) -> Iterator[ServerProcess]:
    """A server of that model."""
    x, y = (Tensor(name=name, dtype="FP32", shape=(-1, -1), batch_axis=0) for name in "xy")
    sha256 = publish(open_store(root / "store"), saved(model(), root), Signature(inputs=(x,), outputs=(y,)))
    told: dict[str, Any] = {"model": MODEL, "samples": 0, "grpc_max_message_bytes": 1 << 26}
    server = ServerProcess(root / "store", sha256, root / "model", **told)
    try:
        yield server
    finally:
        server.stop()


def over_http(client: httpx.Client, content: bytes, json_size: int | None) -> Ask:
    """A request and its answer over HTTP."""
    headers = {} if json_size is None else {"inference-header-content-length": str(json_size)}

    def ask() -> int:
        answer = client.post(_INFER, content=content, headers=headers)
        answer.raise_for_status()
        return len(answer.content)

    return ask


def over_grpc(channel: grpc.Channel, request: bytes) -> Ask:
    """The same over gRPC. The answer is looked at, not built."""
    infer = channel.unary_unary(_GRPC)

    def ask() -> int:
        answer: bytes = infer(request)
        return len(answer)

    return ask


def requests(array: np.ndarray, client: httpx.Client, channel: grpc.Channel) -> Iterator[tuple[str, int, Ask]]:
    """Each encoding: its name, bytes of the request, and how to ask."""
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(array.shape)}
    data = orjson.dumps({"inputs": [{**tensor, "data": array.reshape(-1)}]}, option=orjson.OPT_SERIALIZE_NUMPY)
    yield "HTTP, JSON", len(data), over_http(client, data, None)
    told = {"inputs": [{**tensor, "parameters": {"binary_data_size": array.nbytes}}]}
    head = orjson.dumps({**told, "parameters": {"binary_data_output": True}})
    yield "HTTP, binary", len(head) + array.nbytes, over_http(client, head + array.tobytes(), len(head))
    entry = ModelInferRequest.InferInputTensor(**tensor)
    raw = ModelInferRequest(model_name=MODEL, inputs=[entry], raw_input_contents=[array.tobytes()]).SerializeToString()
    yield "gRPC, raw", len(raw), over_grpc(channel, raw)
    entry.contents.CopyFrom(InferTensorContents(fp32_contents=array.reshape(-1).tolist()))
    typed = ModelInferRequest(model_name=MODEL, inputs=[entry]).SerializeToString()
    assert ModelInferResponse.FromString(channel.unary_unary(_GRPC)(typed)).outputs[0].name == "y"
    yield "gRPC, typed", len(typed), over_grpc(channel, typed)


def cost(server: ServerProcess, ask: Ask) -> tuple[float, int]:
    """Milliseconds of the server's CPU for one request, and bytes of the answer."""
    size, count = ask(), 0
    before, until = server.cpu_seconds(), time.monotonic() + SECONDS
    while time.monotonic() < until:
        ask()
        count += 1
    return (server.cpu_seconds() - before) * 1000 / count, size


def main() -> None:
    """Print the table."""
    print("| numbers | encoding | request, bytes | answer, bytes | CPU of the server, ms |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="fettle-bench-") as folder, served(Path(folder)) as server:
        options = (("grpc.max_receive_message_length", -1),)
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client,
            grpc.insecure_channel(f"127.0.0.1:{server.grpc}", options) as channel,
        ):
            for size in SIZES:
                array = np.random.default_rng(5).standard_normal((1, size), np.float32)
                for name, sent, ask in requests(array, client, channel):
                    spent, answered = cost(server, ask)
                    print(f"| {size:,} | {name} | {sent:,} | {answered:,} | {spent:.3f} |", flush=True)
        used = psutil.Process(server.process.pid).memory_info().rss
        print(f"\nResident memory of the server afterwards: {used / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
