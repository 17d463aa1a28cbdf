"""The runtime's own loop, without a server: one run after the other for `seconds`, and a line of JSON that says how long each took."""

from __future__ import annotations

import json
import time

import numpy as np
from bench.peers.serve.job import read


def main() -> None:
    """Run, and print the figures."""
    job = read()
    session, x = job.session(), np.zeros((1, *job.item), job.dtype)
    for _ in range(10):
        session.run(["y"], {"x": x})
    took, until = [], time.perf_counter() + job.seconds
    ended = time.perf_counter()
    while ended < until:
        began, _ = ended, session.run(["y"], {"x": x})
        ended = time.perf_counter()
        took.append(ended - began)
    median, late = (1000 * float(value) for value in np.quantile(took, (0.5, 0.99)))
    print(json.dumps({"requestsPerSecond": len(took) / sum(took), "p50Milliseconds": median, "p99Milliseconds": late}))


if __name__ == "__main__":
    main()
