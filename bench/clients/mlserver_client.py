"""MLServer's codecs for numpy and strings, in JSON and in gRPC's messages: `mlserver_client.py HTTP_PORT GRPC_PORT`.

Runs in an environment of its own; nothing of Fettle is imported.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

import grpc
import numpy as np
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, InferenceResponse, Parameters

ARRAYS: dict[str, Any] = {
    "FP32": np.array([[1.5, -2.0]], np.float32),
    "INT64": np.array([[1, -(2**62)]], np.int64),
    "BOOL": np.array([[True, False]]),
}
TEXTS = ["a", "ü"]


def request(as_bytes: bool) -> InferenceRequest:
    inputs = [NumpyCodec.encode_input(f"x_{dtype}", array) for dtype, array in ARRAYS.items()]
    texts = StringCodec.encode_input("x_BYTES", TEXTS, use_bytes=as_bytes)
    texts.shape = [1, 2]  # the codec makes a column
    return InferenceRequest(id="7", inputs=[*inputs, texts], parameters=Parameters(content_type="np"))


def check(answer: Any, what: str) -> None:
    outputs = {output.name: output for output in answer.outputs}
    for dtype, array in ARRAYS.items():
        assert NumpyCodec.decode_output(outputs[f"y_{dtype}"]).tolist() == array.tolist(), (what, dtype)
    assert StringCodec.decode_output(outputs["y_BYTES"]) == TEXTS, what
    print(f"{what}: {', '.join([*ARRAYS, 'BYTES'])}")


def main() -> None:
    body = json.dumps(request(False).model_dump()).encode()
    url = f"http://127.0.0.1:{sys.argv[1]}/v2/models/echo/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
        check(InferenceResponse.model_validate_json(answer.read()), "V2 over HTTP, JSON")
    stub = GRPCInferenceServiceStub(grpc.insecure_channel(f"127.0.0.1:{sys.argv[2]}"))
    for raw in (False, True):
        sent = ModelInferRequestConverter.from_types(request(True), model_name="echo", use_raw=raw)
        check(ModelInferResponseConverter.to_types(stub.ModelInfer(sent)), f"gRPC, {'raw' if raw else 'typed'}")


if __name__ == "__main__":
    main()
