"""The same requests over each of the server's protocols, from inside the cluster: V2 as JSON, V2 with tensors as bytes, and gRPC.

One file from a ConfigMap in a pod of the server image, which has the messages of gRPC. It prints a JSON line for each protocol: the answers, how
many bytes the requests take, and what they take in milliseconds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fettle.server import inference_pb2 as pb
from fettle.store.arrays import Array

INFER = "/inference.GRPCInferenceService/ModelInfer"
JSON_SIZE = "Inference-Header-Content-Length"
SECONDS = 30.0
Ask = Callable[[Array], tuple[int, list[float]]]  # bytes of the request, and the answer's numbers


class Asked:
    """A ModelDeployment, by the names of its one input and its one output."""

    def __init__(self, host: str, http_port: int, grpc_port: int, model: str, name: str) -> None:
        self._http = http.client.HTTPConnection(host, http_port, timeout=SECONDS)
        self._channel = grpc.insecure_channel(f"{host}:{grpc_port}")
        self._model, self._name = model, name

    def ways(self) -> dict[str, Ask]:
        """Every protocol."""
        return {"HTTP, JSON": self.as_json, "HTTP, bytes": self.as_bytes, "gRPC": self.over_grpc}

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[dict[str, Any], bytes]:
        """What is JSON in the answer, and the bytes behind it."""
        self._http.request("POST", f"/v2/models/{self._model}/infer", body, headers)
        response = self._http.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status} {answer[:300]!r}")
        size = int(response.headers.get(JSON_SIZE) or len(answer))
        return json.loads(answer[:size]), answer[size:]

    def as_json(self, array: Array) -> tuple[int, list[float]]:
        """Numbers as text."""
        values = [round(float(value), 4) for value in array.ravel()]
        tensor = {"name": self._name, "datatype": "FP32", "shape": list(array.shape), "data": values}
        body = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
        document, _ = self._post(body, {"Content-Type": "application/json"})
        return len(body), list(document["outputs"][0]["data"])

    def as_bytes(self, array: Array) -> tuple[int, list[float]]:
        """The binary extension, in the request and in its answer."""
        raw = array.tobytes()
        size = {"binary_data_size": len(raw)}
        tensor = {"name": self._name, "datatype": "FP32", "shape": list(array.shape), "parameters": size}
        head = json.dumps(
            {"inputs": [tensor], "parameters": {"binary_data_output": True}}, separators=(",", ":")
        ).encode()
        document, behind = self._post(
            head + raw, {JSON_SIZE: str(len(head)), "Content-Type": "application/octet-stream"}
        )
        answered = document["outputs"][0]["parameters"]["binary_data_size"]
        return len(head + raw), np.frombuffer(behind[:answered], np.float32).tolist()

    def over_grpc(self, array: Array) -> tuple[int, list[float]]:
        """Raw contents."""
        tensor = pb.ModelInferRequest.InferInputTensor(name=self._name, datatype="FP32", shape=list(array.shape))
        request = pb.ModelInferRequest(model_name=self._model, inputs=[tensor], raw_input_contents=[array.tobytes()])
        body = request.SerializeToString()
        infer = self._channel.unary_unary(INFER, response_deserializer=pb.ModelInferResponse.FromString)
        answer = infer(body, timeout=SECONDS, wait_for_ready=True)
        return len(body), np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()


def told(protocol: str, ask: Ask, arrays: list[Array]) -> dict[str, Any]:
    """What came of asking for each array. The first is asked for twice: it opens the connection."""
    ask(arrays[0])
    took, answers, sizes = [], [], []
    for array in arrays:
        began = time.perf_counter()
        size, answer = ask(array)
        took.append(1000 * (time.perf_counter() - began))
        sizes.append(size)
        answers.append(answer)
    return {
        "protocol": protocol,
        "requestBytes": round(statistics.mean(sizes)),
        "milliseconds": round(statistics.median(took), 2),
        "answers": answers,
    }


def main() -> None:
    """Ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True)
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--grpc-port", type=int, default=9000)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="V2 requests in JSON, one on each line")
    options = parser.parse_args()
    tensors = [json.loads(line)["inputs"][0] for line in options.bodies.read_text().splitlines()]
    arrays = [np.array(tensor["data"], np.float32).reshape(tensor["shape"]) for tensor in tensors]
    asked = Asked(options.host, options.http_port, options.grpc_port, options.model, tensors[0]["name"])
    for protocol, ask in asked.ways().items():
        print(json.dumps(told(protocol, ask, arrays)), flush=True)


if __name__ == "__main__":
    main()
