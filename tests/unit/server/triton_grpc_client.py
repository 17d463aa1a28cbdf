"""NVIDIA's gRPC client, unmodified: `python triton_grpc_client.py PORT` asks a server of every type and says what came.

A process of its own: its messages bear the same names as the server's, and one process can have them only once.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def values(dtype: str) -> np.ndarray:
    if dtype == "BYTES":
        return np.array([["", "naïve"], ["日本", "a\0"]], object)
    if dtype == "BOOL":
        return np.array([[True, False], [False, True]])
    return np.array([[1, 2], [3, 100]], triton_to_np_dtype(dtype))


def inputs(dtypes: list[str]) -> list[triton.InferInput]:
    made = []
    for dtype in dtypes:
        tensor = triton.InferInput(f"x_{dtype}", [2, 2], dtype)
        tensor.set_data_from_numpy(values(dtype))
        made.append(tensor)
    return made


def plain(array: np.ndarray | None) -> Any:
    assert array is not None
    return [[cell.decode() if isinstance(cell, bytes) else cell for cell in row] for row in array.tolist()]


def error_of(call: Any) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    raise AssertionError("no error")


def streamed(client: triton.InferenceServerClient, dtypes: list[str]) -> list[str]:
    """Three requests of a stream, the second of them wrong: what came, in order."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for name in ("echo", "other", "echo"):
        client.async_stream_infer(name, inputs(dtypes), request_id="s")
    came = [answers.get(timeout=30) for _ in range(3)]
    client.stop_stream()
    return [str(error.message()) if error else result.get_response().id for result, error in came]


def main() -> None:
    port, dtypes = sys.argv[1], sys.argv[2].split(",")
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answer = client.infer("echo", inputs(dtypes), request_id="7", model_version="abc123")
        chosen = [triton.InferRequestedOutput(f"y_{dtypes[0]}")]
        short = inputs(dtypes)
        short[0]._raw_content = short[0]._raw_content[:-4]
        large = triton.InferInput("x_FP32", [2, 1 << 22], "FP32")
        large.set_data_from_numpy(np.zeros((2, 1 << 22), np.float32))
        told = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model": client.is_model_ready("echo", "abc123"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata("echo", as_json=True)["inputs"][0],
            "id": answer.get_response().id,
            "outputs": {dtype: plain(answer.as_numpy(f"y_{dtype}")) for dtype in dtypes},
            "expected": {dtype: plain(values(dtype)) for dtype in dtypes},
            "chosen": [o.name for o in client.infer("echo", inputs(dtypes), outputs=chosen).get_response().outputs],
            "unknown": error_of(lambda: client.get_model_metadata("other")),
            "short": error_of(lambda: client.infer("echo", short)),
            "large": error_of(lambda: client.infer("echo", [large, *inputs(dtypes)[1:]])),
            "other": error_of(lambda: client.get_model_config("echo")),
            "stream": streamed(client, dtypes),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
