"""The upper line: granian, orjson and the session in the event loop, in as few lines as a server can have. Nothing is checked, counted, bounded
or drained. With uvloop where it is installed.
"""

from __future__ import annotations

from typing import Any

import orjson
import uvloop
from bench.peers.serve.job import read
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

JOB = read()
SESSION = JOB.session()
HEADERS = [("content-type", "application/json")]


async def app(scope: Any, protocol: Any) -> None:
    """Answer one request."""
    tensor = orjson.loads(await protocol())["inputs"][0]
    (y,) = SESSION.run(["y"], {"x": JOB.items(tensor["data"], tensor["shape"])})
    output = {"name": "y", "datatype": "FP32", "shape": y.shape, "data": y.reshape(-1)}
    answer = {"model_name": JOB.name, "outputs": [output]}
    protocol.response_bytes(200, HEADERS, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))


async def main() -> None:
    """Serve until the process is ended."""
    told: dict[str, Any] = {"interface": Interfaces.RSGI, "http": HTTPModes.http1, "log_level": LogLevels.error}
    await Server(app, address="127.0.0.1", port=JOB.port, websockets=False, backlog=1024, **told).serve()


if __name__ == "__main__":
    uvloop.run(main())
