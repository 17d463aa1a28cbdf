"""MLServer: a custom model in the server's own process, which is the fastest way that it has for a small one. REST and gRPC."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.peers.serve.job import read
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Served(MLModel):  # type: ignore[misc]
    """The model."""

    async def load(self) -> bool:
        """Load it."""
        self.session = read().session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request."""
        (y,) = self.session.run(["y"], {"x": NumpyCodec.decode_input(payload.inputs[0])})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


if __name__ == "__main__":
    from mlserver.cli import main

    job = read()
    folder = job.folder / "mlserver"
    folder.mkdir(exist_ok=True)
    settings = {"host": "127.0.0.1", "http_port": job.port, "grpc_port": job.grpc_port, "parallel_workers": 0}
    settings |= {"metrics_port": job.metrics_port, "use_structured_logging": False, "environments_dir": str(folder)}
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": job.name, "implementation": "bench.peers.serve.mlserver_server.Served"}
    (folder / "model-settings.json").write_text(json.dumps(model))
    sys.argv = [str(Path(sys.argv[0])), "start", str(folder)]
    main()
