"""BentoML: a service with one worker."""

from __future__ import annotations

import sys
from typing import Any

import bentoml
from bench.peers.serve.job import read


@bentoml.service(workers=1, traffic={"timeout": 30})
class Served:
    """The model."""

    def __init__(self) -> None:
        self.job = read()
        self.session = self.job.session()

    @bentoml.api(route="/infer")  # type: ignore  # the library is not there when types are checked
    def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One request."""
        tensor = inputs[0]
        (y,) = self.session.run(["y"], {"x": self.job.items(tensor["data"], tensor["shape"])})
        return {"outputs": self.job.outputs(y)}


if __name__ == "__main__":
    from bentoml_cli.cli import cli

    where = ["--host", "127.0.0.1", "--port", str(read().port)]
    sys.argv = ["bentoml", "serve", "bench.peers.serve.bentoml_server:Served", *where]
    cli()
