"""mosec: a front in Rust and a worker process in Python. Its workers import this module again."""

from __future__ import annotations

import sys
from typing import Any

import orjson
from bench.peers.serve.job import read
from mosec import Server, Worker


class Served(Worker):  # type: ignore[misc]
    """The model."""

    def __init__(self) -> None:
        self.job = read()
        self.session = self.job.session()

    def deserialize(self, data: bytes) -> Any:
        """As its documentation shows with another library for JSON."""
        return orjson.loads(data)

    def forward(self, data: Any) -> Any:
        """One request."""
        tensor = data["inputs"][0]
        (y,) = self.session.run(["y"], {"x": self.job.items(tensor["data"], tensor["shape"])})
        return {"outputs": self.job.outputs(y)}

    def serialize(self, data: Any) -> bytes:
        """See `deserialize`."""
        return orjson.dumps(data)


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(read().port), "--timeout", "30000", "--log-level", "error"]
    server = Server()
    server.append_worker(Served, num=1)
    server.run()
