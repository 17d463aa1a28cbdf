"""onnx's own evaluator: slow, in Python, but it knows every opset that onnx writes. The judge of sources that no runtime reads yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from fettle.api.text import quoted
from fettle.errors import RuntimeFailure
from fettle.runtimes.base import Array


def evaluate(model: onnx.ModelProto) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A function that runs `model`. It raises RuntimeFailure."""
    evaluator = ReferenceEvaluator(model)
    names = [value.name for value in model.graph.output]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            answers = evaluator.run(None, dict(inputs))
        except Exception as error:
            raise RuntimeFailure(f"onnx's evaluator failed: {quoted(error)}") from error
        return {name: np.asarray(answer) for name, answer in zip(names, answers, strict=True)}

    return run
