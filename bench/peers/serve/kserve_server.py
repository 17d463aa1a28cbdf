"""KServe's Python SDK: a custom model on its own server, REST and gRPC."""

from __future__ import annotations

from typing import Any

from bench.peers.serve.job import read
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Served(Model):  # type: ignore[misc]
    """The model."""

    def __init__(self) -> None:
        self.job = read()
        super().__init__(self.job.name)
        self.session = self.job.session()
        self.ready = True

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """One request; an answer is as binary as its request."""
        binary = bool(payload.request_outputs) or payload.from_grpc
        (y,) = self.session.run(["y"], {"x": payload.inputs[0].as_numpy()})
        output = InferOutput(name="y", shape=list(y.shape), datatype="FP32")
        output.set_data_from_numpy(y, binary_data=binary)
        return InferResponse(response_id=payload.id or "", model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    job = read()
    server = ModelServer(http_port=job.port, grpc_port=job.grpc_port, workers=1, enable_docs_url=False)
    server.start([Served()])
