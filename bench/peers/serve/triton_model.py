"""What Triton's Python backend runs: the same session. Copied into a model repository as `model.py`."""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path[:0] = os.environ["BENCH_SERVE_PATH"].split(os.pathsep)

# Behind what makes them found. The second is there inside the backend.
import triton_python_backend_utils as triton  # noqa: E402
from bench.peers.serve.job import read  # noqa: E402


class TritonPythonModel:
    """The model. Triton hands over as many requests as wait."""

    def initialize(self, args: Any) -> None:
        """Load it."""
        self.session = read().session()

    def execute(self, requests: Any) -> Any:
        """Some requests."""
        answers = []
        for request in requests:
            (y,) = self.session.run(["y"], {"x": triton.get_input_tensor_by_name(request, "x").as_numpy()})
            answers.append(triton.InferenceResponse([triton.Tensor("y", y)]))
        return answers
