"""KServe's InferenceRESTClient (V2 in JSON and in bytes, V1) and InferenceGRPCClient: `kserve_client.py HTTP_PORT GRPC_PORT`.

Runs in an environment of its own; nothing of Fettle is imported.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

VALUES: dict[str, Any] = {
    "FP32": np.array([[1.5, -2.0]], np.float32),
    "FP16": np.array([[1.5, -2.0]], np.float16),
    "INT64": np.array([[1, -(2**62)]], np.int64),
    "BOOL": np.array([[True, False]]),
    "BYTES": np.array([["a", "ü"]], object),
}


def request(binary: bool, dtypes: list[str], **more: Any) -> InferRequest:
    inputs = []
    for dtype in dtypes:
        tensor = InferInput(f"x_{dtype}", [1, 2], dtype)
        tensor.set_data_from_numpy(VALUES[dtype], binary_data=binary or dtype == "FP16")
        inputs.append(tensor)
    return InferRequest(model_name="echo", infer_inputs=inputs, request_id="7", **more)


def check(answer: Any, dtypes: list[str], what: str) -> None:
    found = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    for dtype in dtypes:
        texts = [[text.decode() if isinstance(text, bytes) else text for text in row] for row in found[f"y_{dtype}"]]
        assert texts == VALUES[dtype].tolist(), (what, dtype, texts)
    assert answer.id == "7"
    print(f"{what}: {', '.join(dtypes)}")


async def main() -> None:
    base, grpc = f"http://127.0.0.1:{sys.argv[1]}", f"127.0.0.1:{sys.argv[2]}"
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=30))
    assert await client.is_server_live(base) and await client.is_server_ready(base)
    assert await client.is_model_ready(base, "echo")
    every = list(VALUES)
    for binary in (True, False):
        sent = request(binary, every, parameters={"binary_data_output": binary})
        form = "bytes" if binary else "JSON, and FP16 as bytes"
        check(await client.infer(base, sent, model_name="echo"), every, f"V2 over HTTP, {form}")
    first = InferenceRESTClient(RESTConfig(protocol="v1", retries=0, timeout=30))
    row = {f"x_{dtype}": values[0].tolist() for dtype, values in VALUES.items()}
    answer = await first.infer(base, {"instances": [row]}, model_name="echo")
    assert answer["predictions"] == [{f"y_{name[2:]}": values for name, values in row.items()}], answer
    assert await first.is_model_ready(base, "echo")
    print("V1: instances")
    remote = InferenceGRPCClient(grpc)
    assert await remote.is_server_ready() and await remote.is_model_ready("echo")
    check(await remote.infer(request(True, every)), every, "gRPC, raw")


if __name__ == "__main__":
    asyncio.run(main())
