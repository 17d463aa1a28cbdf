"""LitServe: an API process and a worker process. It reads the type of a request from `decode_request` at run time, so annotations stay types."""

from typing import Any

import litserve
from bench.peers.serve.job import read


class Served(litserve.LitAPI):  # type: ignore[misc]
    """The model."""

    def setup(self, device: str) -> None:
        """Load it."""
        self.job = read()
        self.session = self.job.session()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """The request's tensor."""
        tensor = request["inputs"][0]
        return self.job.items(tensor["data"], tensor["shape"])

    def predict(self, x: Any) -> Any:
        """One request."""
        return self.session.run(["y"], {"x": x})[0]

    def encode_response(self, output: Any) -> Any:
        """The answer."""
        return {"outputs": self.job.outputs(output)}


if __name__ == "__main__":
    server = litserve.LitServer(Served(), accelerator="cpu", workers_per_device=1, timeout=30)
    server.run(host="127.0.0.1", port=read().port, num_api_servers=1, generate_client_file=False, log_level="error")
